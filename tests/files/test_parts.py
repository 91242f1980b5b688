"""Rows that a bucket cannot append lie in parts beside their file; none is lost, and none counts twice."""

import pytest

from mot import files
from mot.files import writing


@pytest.fixture
def file(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "EVERY", 0.0)
    file = files.as_path(f"{bucket}/{tmp_path.name}/rows")
    files.write_atomically(file, "0\n")
    return file


def test_rows_come_back_in_their_order(file):
    rows = files.appender(file)
    for i in range(1, 25):
        rows.append(b"%d\n" % i)
        if i % 2:
            assert rows.write() is None
    rows.close()
    assert len(list(file.parent.glob("rows.*"))) > 10
    assert files.read_appended(file) == b"".join(b"%d\n" % i for i in range(25))


def test_a_bucket_that_fails_for_a_while_costs_no_row(file, monkeypatch):
    rows = files.appender(file)
    rows.append(b"1\n")
    put = writing._put
    monkeypatch.setattr(writing, "_put", lambda file, content: OSError(5, "the network is gone"))
    rows.append(b"2\n")
    assert rows.write().strerror == "the network is gone"
    monkeypatch.setattr(writing, "_put", put)
    rows.append(b"3\n")
    assert rows.write() is None
    rows.close()
    assert files.read_appended(file) == b"0\n1\n2\n3\n"


def test_what_a_bucket_does_not_take_is_an_error_of_the_disk(bucket):
    error = writing._put(files.as_path("gs://no-such-bucket/a"), b"")
    assert isinstance(error, OSError)
    assert "FileNotFoundError" in error.strerror


def test_rows_that_were_merged_into_the_file_count_once(file):
    rows = files.appender(file)
    rows.append(b"1\n")
    rows.append(b"2\n")
    rows.close()
    files.write_atomically(file, files.read_appended(file))  # and then a kill: the parts are still there
    assert files.read_appended(file) == b"0\n1\n2\n"
    again = files.appender(file)
    again.append(b"3\n")
    again.close()
    assert [p.name for p in file.parent.glob("rows.*")] == ["rows.000001"]
    assert files.read_appended(file) == b"0\n1\n2\n3\n"


def test_what_others_have_beside_the_parts_is_neither_read_nor_removed(file):
    others = file.with_name("rows.2026-backup")
    others.write_bytes(b"mine\n")
    rows = files.appender(file)
    rows.append(b"1\n")
    rows.close()
    assert files.read_appended(file) == b"0\n1\n"
    files.appender(file).close()
    assert others.read_bytes() == b"mine\n"


def test_parts_whose_file_is_gone_are_read(file):
    rows = files.appender(file)
    rows.append(b"1\n")
    rows.close()
    file.unlink()
    assert files.read_appended(file) == b"1\n"

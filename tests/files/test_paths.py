"""What is the same for a folder and for a bucket."""

import importlib.util
import time

import pytest

from mot import files


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """A folder that is empty, and a place in a bucket where nothing is."""
    if request.param == "folder":
        return tmp_path
    return files.as_path(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def test_a_file_is_written_listed_moved_and_removed(place):
    folder = place / "a"
    files.make_folder(folder)
    files.write_atomically(folder / "text", "é")
    files.write_atomically(folder / "bytes", b"123")
    assert (folder / "text").read_text(encoding="utf-8") == "é"
    assert files.size(folder / "bytes") == 3
    files.make_folder(folder / "deep")
    files.move(folder / "bytes", folder / "deep" / "moved")
    assert files.names_within(folder) == ["deep/moved", "text"]
    files.remove(folder)
    assert not folder.exists()
    files.remove(folder)  # what is not there is no fault


def test_the_time_of_a_file_is_told(place):
    files.touch(place / "sign")
    assert abs(files.modified(place / "sign") - time.time()) < 5


def test_numbered_folders_are_those_that_hold_the_file(place):
    for name in ("3/manifest.json", "12/manifest.json", "4/other", "05/manifest.json", "x/manifest.json"):
        files.make_folder((place / name).parent)
        files.write_atomically(place / name, "")
    assert files.numbered(place, holding="manifest.json") == [3, 12]
    assert files.numbered(place) == [3, 4, 12]
    assert files.numbered(place / "absent") == []


def test_a_path_of_a_bucket_is_its_address(bucket):
    path = files.as_path(f"{bucket}/a/b")
    assert files.is_bucket(path)
    assert str(path / "c") == f"{bucket}/a/b/c"
    assert files.absolute(str(path)) == str(path)
    assert not files.is_bucket(files.as_path("runs/gs"))


def test_without_gcsfs_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"gs://some/a: gcsfs is not installed.*install mot's extra gcs"):
        files.as_path("gs://some/a")


@pytest.mark.parametrize(
    "address",
    ["gs://", "gs:///a", "gs:/bucket/a", "GS://bucket/a", "gs://bucket/a[1]", "gs://bucket/p*/r", "gs://bucket/a//b"],
)
def test_what_is_no_address_of_a_bucket_is_refused(address):
    with pytest.raises(OSError, match=r"must be gs://BUCKET/FOLDER, without any of \* \? \[ \] #"):
        files.as_path(address)

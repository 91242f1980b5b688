"""Copies of remote datasets: whole, within the limit, and never taken from a process that uses them."""

import os
import subprocess
import sys

import fsspec
import pytest

from mot import files
from mot.data import manifest, remote
from mot.errors import UserError
from tests.conftest import ROOT
from tests.support.records import dataset


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_in_use", {})
    return tmp_path / "cache" / "mot" / "datasets"


def put(folder, address):
    system, root = fsspec.core.url_to_fs(address)
    for name in files.names_within(folder):
        system.pipe_file(f"{root}/{name}", (folder / name).read_bytes())


def test_a_dataset_of_a_bucket_is_copied_whole(bucket, tmp_path, cache):
    dataset(tmp_path / "d")
    put(tmp_path / "d", f"{bucket}/sets/d")
    copy = remote.local(f"{bucket}/sets/d")
    assert copy.parent == cache
    names = [name for name, _, _ in manifest.files(manifest.read_json(copy))]
    assert set(files.names_within(copy)) == {*names, "dataset.json", remote.USED}
    for name in names:
        assert (copy / name).read_bytes() == (tmp_path / "d" / name).read_bytes()


def ended(tmp_path, name, documents, age):
    """The copy of a dataset that a process used which has ended, so many seconds ago."""
    dataset(tmp_path / name, documents)
    put(tmp_path / name, f"memory://sets/{name}")
    copy = remote.local(f"memory://sets/{name}")
    os.close(remote._in_use.pop(copy))
    used = copy / remote.USED
    os.utime(used, (used.stat().st_mtime - age,) * 2)
    return copy


def test_copies_that_were_used_longest_ago_make_room(tmp_path, cache, monkeypatch):
    copies = [ended(tmp_path, f"d{i}", 7 + i, 100 - i) for i in range(3)]
    dataset(tmp_path / "new", 5)  # smaller than each of these
    put(tmp_path / "new", "memory://sets/new")
    monkeypatch.setenv(remote.LIMIT, str(sum(map(remote._size, copies)) / 1e9))
    new = remote.local("memory://sets/new")
    assert sorted(cache.iterdir()) == sorted([*copies[1:], new])


HOLD = """
import sys, time
from pathlib import Path
from mot.data import manifest, remote
remote._use(Path(sys.argv[1]))
print("used", flush=True)
time.sleep(100)
"""


def test_a_copy_that_a_process_uses_stays_and_the_new_one_is_refused(tmp_path, cache, monkeypatch):
    copy = ended(tmp_path, "d0", 7, 100)
    dataset(tmp_path / "new", 11)
    put(tmp_path / "new", "memory://sets/new")
    monkeypatch.setenv(remote.LIMIT, str(remote._size(copy) / 1e9))
    user = subprocess.Popen([sys.executable, "-c", HOLD, str(copy)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert user.stdout.readline() == b"used\n"
        with pytest.raises(UserError, match=rf"memory://sets/new: its copy needs .* GB are in use; set {remote.LIMIT}"):
            remote.local("memory://sets/new")
        assert files.names_within(copy)
    finally:
        user.kill()
        user.communicate()
    with pytest.raises(UserError, match="set MOT_CACHE_GB to more"):  # it is too large for an empty cache, too
        remote.local("memory://sets/new")
    assert not copy.exists()


@pytest.mark.parametrize("said", ["0", "-1", "much", "nan"])
def test_a_limit_that_is_none_is_refused(tmp_path, cache, monkeypatch, said):
    dataset(tmp_path / "d")
    put(tmp_path / "d", "memory://sets/d")
    monkeypatch.setenv(remote.LIMIT, said)
    with pytest.raises(UserError, match=rf"MOT_CACHE_GB='{said}': must be a number above 0"):
        remote.local("memory://sets/d")

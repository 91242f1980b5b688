"""What lies in a folder of checkpoints, and folders of any name."""

import os
import shutil

import jax
import pytest

from mot import checkpoint
from mot.checkpoint import folder, saving
from mot.errors import UserError
from tests.support.checkpoints import LIKE, TREES, same


@pytest.fixture
def littered(saved):
    """FAULTS 4: empty, partial and foreign folders, a file, numbers that are no step's."""
    (saved / "30").mkdir()
    (saved / "31").mkdir()
    (saved / "31" / "params").mkdir()
    (saved / "32").write_text("a file", encoding="utf-8")
    (saved / "40.partial").mkdir()
    shutil.copytree(saved / "20", saved / "40.partial.orbax-checkpoint-tmp")
    shutil.copytree(saved / "20", saved / ("9" * 40))
    shutil.copytree(saved / "20", saved / "021")
    shutil.copytree(saved / "20", saved / "20.damaged")
    (saved / "notes").mkdir()
    return saved


def test_what_is_no_step_is_named_and_never_chosen(littered):
    told = []
    assert checkpoint.steps(littered) == [10, 20]
    assert checkpoint.newest(littered, told.append) == 20
    assert [line.removeprefix(f"{littered}: passed over ") for line in told] == [
        "021 (not the name of a step)",
        "20.damaged (it was damaged, and set aside when its step was saved again)",
        "30 (an empty folder)",
        "31 (it has no manifest.json)",
        "32 (a file, not a folder)",
        "40.partial (left by a save, or by a removal, that was interrupted)",
        "40.partial.orbax-checkpoint-tmp (left by a save, or by a removal, that was interrupted)",
        f"{'9' * 40} (not the name of a step)",
        "notes (not the name of a step)",
    ]


def test_a_save_removes_what_an_interrupted_one_has_left_and_nothing_else(littered):
    before = {path.name for path in littered.iterdir()}
    checkpoint.save(littered, 50, TREES, {}, keep=3)
    assert before - {path.name for path in littered.iterdir()} == {"40.partial", "40.partial.orbax-checkpoint-tmp"}


def test_a_folder_of_a_huge_number_is_passed_over_as_it_holds_another_step(saved):
    shutil.copytree(saved / "20", saved / ("9" * 18))
    told = []
    assert checkpoint.newest(saved, told.append) == 20
    assert f"holds step 20, not {'9' * 18}" in told[0]


def test_an_absent_folder_has_no_steps(tmp_path):
    assert folder.ignored(tmp_path / "none") == []
    assert checkpoint.newest(tmp_path / "none", print) is None


ODD = [
    "proj [v2]",
    "a\\b",
    "a*b?",
    "gs:",
    "50%",
    "50%41",
    "{x}",
    "~me",
    "#1",
    "a;b|c&d",
    "$(HOME)",
    "'q\"",
    "new\nline",
    "ü漢😀",
    "x" * 200,
    os.fsdecode(b"\xff"),
]


@pytest.mark.parametrize("name", ODD)
def test_any_folder_that_the_file_system_allows_gives_back_what_it_holds(tmp_path, name):
    checkpoint.save(tmp_path / name, 1, TREES, {}, keep=1)
    same(checkpoint.restore(tmp_path / name, 1, LIKE)[0])


def test_several_processes_are_refused_a_folder_that_needs_a_link(tmp_path, monkeypatch):
    checkpoint.refuse_odd(tmp_path / "proj [v2]")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    checkpoint.refuse_odd(tmp_path / "plain")
    with pytest.raises(UserError, match=r"\[ \] in a path of checkpoints works with one process, and there are 2"):
        checkpoint.refuse_odd(tmp_path / "proj [v2]")


def test_temporary_files_may_lie_in_an_odd_folder_too(tmp_path, monkeypatch):
    odd = tmp_path / "tmp [x]"
    odd.mkdir()
    monkeypatch.setattr(folder.tempfile, "tempdir", str(odd))
    checkpoint.save(tmp_path / "proj [v2]", 1, TREES, {}, keep=1)
    checkpoint.restore(tmp_path / "proj [v2]", 1, LIKE)
    monkeypatch.setattr(folder.os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"a link to it is needed, and none of .*; set TMPDIR to a folder of a plain"):
        checkpoint.save(tmp_path / "proj [v3]", 1, TREES, {}, keep=1)


def test_a_folder_that_cannot_hold_checkpoints_is_refused_before_training(tmp_path, monkeypatch):
    plain = tmp_path / "checkpoints"
    checkpoint.refuse_unwritable(plain)
    assert not list(plain.iterdir())
    too_deep = tmp_path
    while len(str(too_deep)) < 3980:  # of 4,096 that Linux allows: the folder is made, its files are not
        too_deep /= "d" * 50
    with pytest.raises(
        UserError, match=r"cannot hold checkpoints: .*File name too long.*nothing was trained"
    ) as caught:
        checkpoint.refuse_unwritable(too_deep)
    assert "tensorstore_spec" not in str(caught.value)
    assert not list(too_deep.iterdir())

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(saving.ocp.AsyncCheckpointer, "save", full)
    with pytest.raises(UserError, match=f"No space left on the disk of {plain}; nothing was trained"):
        checkpoint.refuse_unwritable(plain)

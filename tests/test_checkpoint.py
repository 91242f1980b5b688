import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot import checkpoint
from mot.errors import Damaged, UserError

TREES = {"params": {"a": {"w": jnp.arange(6.0).reshape(2, 3)}}, "opt": {"count": jnp.int32(3)}}
LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), TREES)


@pytest.fixture
def saved(tmp_path):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, TREES, {"step": step}, keep=3)
    return tmp_path


def test_what_is_saved_is_restored_bit_for_bit(saved):
    trees, data = checkpoint.restore(saved, 20, LIKE)
    jax.tree.map(np.testing.assert_array_equal, trees, TREES)
    assert data == {"step": 20}
    assert {x.dtype for x in jax.tree.leaves(trees)} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_the_newest_are_kept(saved):
    for step in (30, 40):
        checkpoint.save(saved, step, TREES, {}, keep=2)
    assert checkpoint.steps(saved) == [30, 40]


def test_a_flipped_bit_in_any_file_is_found_and_the_file_named(saved):
    files = [p for p in (saved / "20").rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) > 8
    for file in files:
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(Damaged, match=file.name) as caught:
            checkpoint.restore(saved, 20, LIKE)
        assert "the run then resumes from step 10" in str(caught.value)
        file.write_bytes(content)
    checkpoint.restore(saved, 20, LIKE)


@pytest.mark.parametrize("what", ["delete", "truncate", "add"])
def test_missing_truncated_and_foreign_files_are_named(saved, what):
    file = max((saved / "20" / "params").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    if what == "delete":
        file.unlink()
    elif what == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file = saved / "20" / "notes.txt"
        file.write_text("mine", encoding="utf-8")
    with pytest.raises(Damaged, match={"delete": "missing", "truncate": "damaged", "add": "foreign"}[what]) as caught:
        checkpoint.restore(saved, 20, LIKE)
    assert file.name in str(caught.value)


def test_half_written_steps_are_no_checkpoints(saved):
    (saved / "30.partial").mkdir()
    (saved / "notes").mkdir()
    assert checkpoint.steps(saved) == [10, 20]
    (saved / "40").mkdir()
    with pytest.raises(Damaged, match=r"40/manifest.json cannot be read"):
        checkpoint.restore(saved, 40, LIKE)


def test_another_format_is_refused(saved):
    meta = saved / "20" / "meta" / "metadata"
    meta.write_text(json.dumps(json.loads(meta.read_text(encoding="utf-8")) | {"format": 99}), encoding="utf-8")
    (saved / "20" / checkpoint.MANIFEST).write_text(json.dumps(checkpoint._digests(saved / "20")), encoding="utf-8")
    with pytest.raises(Damaged, match="has format 99; this version reads 1"):
        checkpoint.restore(saved, 20, LIKE)


def test_a_renamed_step_another_shape_and_a_lost_item_are_named(saved):
    (saved / "20").rename(saved / "30")
    with pytest.raises(Damaged, match="holds step 20, not 30"):
        checkpoint.restore(saved, 30, LIKE)
    other = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype, sharding=x.sharding), LIKE)
    with pytest.raises(Damaged, match="10 does not hold what this run needs"):
        checkpoint.restore(saved, 10, other)
    shutil.rmtree(saved / "10" / "params")
    (saved / "10" / checkpoint.MANIFEST).write_text(json.dumps(checkpoint._digests(saved / "10")), encoding="utf-8")
    with pytest.raises(Damaged, match="10 does not hold what this run needs"):
        checkpoint.restore(saved, 10, LIKE)


@pytest.mark.parametrize("content", ["5", "[]", "[" * 100_000])
def test_a_manifest_that_is_none_is_named(saved, content):
    (saved / "20" / checkpoint.MANIFEST).write_text(content, encoding="utf-8")
    with pytest.raises(Damaged, match=r"20/manifest.json cannot be read"):
        checkpoint.restore(saved, 20, LIKE)


ODD = [
    "proj [v2]",
    "a\\b",
    "a*b?",
    "gs:",
    "50%",
    "{x}",
    "~me",
    "#1",
    "a;b|c&d",
    "$(HOME)",
    "'q\"",
    "new\nline",
    "ü漢😀",
    "x" * 200,
]


@pytest.mark.parametrize("name", ODD)
def test_any_folder_that_the_file_system_allows_gives_back_what_it_holds(tmp_path, name):
    checkpoint.save(tmp_path / name, 1, TREES, {}, keep=1)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.restore(tmp_path / name, 1, LIKE)[0], TREES)


def test_several_processes_are_refused_a_folder_that_needs_a_link(tmp_path, monkeypatch):
    checkpoint.refuse_odd(tmp_path / "proj [v2]")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    checkpoint.refuse_odd(tmp_path / "plain")
    with pytest.raises(UserError, match=r"\[ \] in a path of checkpoints works with one process, and there are 2"):
        checkpoint.refuse_odd(tmp_path / "proj [v2]")


def test_the_first_step_is_read_back_before_it_is_trusted(tmp_path, monkeypatch):
    write = checkpoint.ocp.Checkpointer.save

    def damaging(checkpointer, path, args):
        write(checkpointer, path, args)
        for file in (path / "params").rglob("*"):
            if file.is_file():
                file.write_bytes(b"")

    monkeypatch.setattr(checkpoint.ocp.Checkpointer, "save", damaging)
    with pytest.raises(UserError, match=r"10 was not saved: .*; no step of this run was saved before"):
        checkpoint.save(tmp_path, 10, TREES, {}, keep=1)
    assert not list(tmp_path.iterdir())


FAULTS = [
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [OS error 28]\nmore"),
    PermissionError(errno.EACCES, "Permission denied"),
]


@pytest.mark.parametrize("error", FAULTS, ids=["disk", "library", "permission"])
def test_a_step_that_cannot_be_written_leaves_nothing_and_says_what_was_saved_last(saved, monkeypatch, error):
    def failing(checkpointer, path, args):
        (path.with_name(f"{path.name}.orbax-checkpoint-tmp") / "params").mkdir(parents=True)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.ocp.Checkpointer, "save", failing)
        with pytest.raises(UserError) as caught:
            checkpoint.save(saved, 30, TREES, {}, keep=3)
    why = "Permission denied" if isinstance(error, PermissionError) else "No space left on the disk"
    assert why in str(caught.value)
    assert "step 20 was saved last, and the same command resumes from there" in str(caught.value)
    assert sorted(path.name for path in saved.iterdir()) == ["10", "20"]
    checkpoint.save(saved, 30, TREES, {}, keep=3)
    assert checkpoint.steps(saved) == [10, 20, 30]


def test_a_folder_that_cannot_hold_checkpoints_is_refused_before_training(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    checkpoint.refuse_unwritable(folder)
    assert not list(folder.iterdir())
    too_deep = tmp_path
    while len(str(too_deep)) < 3980:  # of 4,096 that Linux allows: the folder is made, its files are not
        too_deep /= "d" * 50
    with pytest.raises(UserError, match=r"cannot hold checkpoints: .*File name too long.*nothing was trained"):
        checkpoint.refuse_unwritable(too_deep)
    assert not list(too_deep.iterdir())

    def full(checkpointer, path, args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp.Checkpointer, "save", full)
    with pytest.raises(UserError, match=f"No space left on the disk of {folder}; nothing was trained"):
        checkpoint.refuse_unwritable(folder)


def test_temporary_files_may_lie_in_an_odd_folder_too(tmp_path, monkeypatch):
    odd = tmp_path / "tmp [x]"
    odd.mkdir()
    monkeypatch.setattr(checkpoint.tempfile, "tempdir", str(odd))
    checkpoint.save(tmp_path / "proj [v2]", 1, TREES, {}, keep=1)
    checkpoint.restore(tmp_path / "proj [v2]", 1, LIKE)
    monkeypatch.setattr(checkpoint.os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"a link to it is needed, and none of .*; set TMPDIR to a folder of a plain"):
        checkpoint.save(tmp_path / "proj [v3]", 1, TREES, {}, keep=1)

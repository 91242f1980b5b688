import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot import checkpoint
from mot.errors import Damaged

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

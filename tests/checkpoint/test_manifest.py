"""A step's manifest: FAULTS 3, every class of file flipped, truncated and deleted; other versions; edits by hand."""

import json
import re

import numpy as np
import pytest

from mot import checkpoint
from mot.checkpoint import arrays, manifest
from mot.errors import Damaged
from mot.files import digest_of
from tests.support.checkpoints import LIKE, same


def files_of(target):
    return sorted(path for path in target.rglob("*") if path.is_file() and path.stat().st_size)


def flip(file, rng):
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)


def truncate(file, _):
    file.write_bytes(file.read_bytes()[:-1])


def delete(file, _):
    file.unlink()


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_damage_to_any_file_is_found_and_the_older_step_is_used(saved, damage):
    rng = np.random.default_rng(0)
    files = files_of(saved / "20")
    assert len(files) > 8
    named = 0
    for file in files * (8 if damage is flip else 1):
        content = file.read_bytes()
        damage(file, rng)
        told = []
        if file.name == "manifest.json" and damage is delete:
            assert checkpoint.newest(saved, told.append) == 10
            assert "20 (it has no manifest.json)" in told[0]
        else:
            assert checkpoint.newest(saved, told.append) == 10
            assert told[0].startswith(f"warning: step 20 is passed over: {saved / '20'}")
            assert file.name in told[0] or "has format" in told[0]
            named += "params/a/w" in told[0] or "opt/count" in told[0]
        file.write_bytes(content)
    assert named >= 4  # the files that hold arrays name what they hold
    assert checkpoint.newest(saved, print) == 20
    same(checkpoint.restore(saved, 20, LIKE)[0])


def test_the_message_names_file_and_parameter_and_what_the_run_resumes_from(saved):
    file = max(files_of(saved / "20" / "params" / "d"), key=lambda path: path.stat().st_size)
    file.write_bytes(b"")
    with pytest.raises(Damaged, match=rf"{file} is damaged: .* \(params/a/w cannot be read from it\)") as caught:
        checkpoint.restore(saved, 20, LIKE)
    assert "the run then resumes from step 10" in str(caught.value)
    file.unlink()
    with pytest.raises(Damaged, match=rf"{file} is missing \(params/a/w cannot be read from it\)"):
        checkpoint.verify(saved / "20")


def test_a_file_that_the_manifest_does_not_list_is_foreign(saved):
    (saved / "20" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(Damaged, match=r"notes.txt is foreign: the manifest does not list it"):
        checkpoint.verify(saved / "20")


def rewritten(target, **changes):
    """The manifest with other values, and a digest that is right."""
    content = json.loads((target / "manifest.json").read_text(encoding="utf-8")) | changes
    manifest.write(target, content["step"], content["arrays"], content["made_by"], content["files"])


def test_a_manifest_that_was_edited_by_hand_is_refused(saved):
    file = saved / "20" / "manifest.json"
    text = file.read_text(encoding="utf-8")
    for edited in (
        text.replace("20", "30", 1),
        text.replace("float32", "float16"),
        re.sub(r'"made_by": ..', '"x": {', text),
    ):
        file.write_text(edited, encoding="utf-8")
        with pytest.raises(Damaged, match=r"20/manifest.json cannot be read"):
            checkpoint.verify(saved / "20")


@pytest.mark.parametrize("content", ["5", "[]", "[" * 100_000, "", "{}x", '{"format": true}', '{"format": 2}'])
def test_a_manifest_that_is_none_is_named(saved, content):
    (saved / "20" / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(Damaged, match=r"20/manifest.json cannot be read"):
        checkpoint.restore(saved, 20, LIKE)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": None},
        {"files": {"a": 1}},
        {"step": "20"},
        {"made_by": []},
        {"arrays": []},
        {"arrays": {"a": "b"}},
        {"arrays": {"a": {"shape": [1], "dtype": "f"}}},
        {"arrays": {"a": {"shape": 1, "dtype": "f", "digest": "d"}}},
    ],
)
def test_a_manifest_of_a_right_digest_that_describes_nothing_is_passed_over(saved, changes):
    file = saved / "20" / "manifest.json"
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(content | {"digest": digest_of(content)}), encoding="utf-8")
    with pytest.raises(Damaged, match=r"20/manifest.json cannot be read \(it does not describe files and arrays"):
        checkpoint.verify(saved / "20")
    assert checkpoint.newest(saved, print) == 10


@pytest.mark.parametrize("content", ['{"step": 10}', "[]", "{", '{"step": "20"}'])
def test_a_step_with_the_position_of_another_is_passed_over(saved, content):
    target = saved / "20"
    (target / "data" / "metadata").write_text(content, encoding="utf-8")
    rewritten(target, files=manifest.digests(target, manifest.files(target)))
    assert checkpoint.newest(saved, print) == 10


def test_another_format_is_refused(saved):
    file = saved / "20" / "manifest.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | {"format": 99}), encoding="utf-8")
    with pytest.raises(Damaged, match="has format 99; this version reads 1 and 2"):
        checkpoint.restore(saved, 20, LIKE)


def test_the_format_before_which_described_no_arrays_is_read(saved):
    target = saved / "20"
    (target / "meta").mkdir()
    (target / "meta" / "metadata").write_text('{"made_by": {"host": "one"}}', encoding="utf-8")
    digests = manifest.digests(target, manifest.files(target))
    (target / "manifest.json").write_text(json.dumps(digests), encoding="utf-8")
    assert checkpoint.newest(saved, print) == 20
    same(checkpoint.restore(saved, 20, LIKE)[0])
    assert checkpoint.made_by(target) == {"host": "one"}


def test_a_step_of_another_name_is_refused(saved):
    (saved / "20").rename(saved / "30")
    with pytest.raises(Damaged, match="holds step 20, not 30"):
        checkpoint.restore(saved, 30, LIKE)


def test_an_array_is_read_by_its_path_and_a_fault_tells_what_is_other(saved):
    target = saved / "20"
    described = manifest.read(target)["arrays"]
    np.testing.assert_array_equal(arrays.read(target, "params/a/w"), np.arange(6.0, dtype=np.float32).reshape(2, 3))
    assert arrays.read(target, "opt/count") == 3
    said = described["params/a/w"]
    assert arrays.fault(target, "params/a/w", said) == ""
    assert arrays.fault(target, "params/a/w", said | {"digest": "0" * 16}) == "its digest is not the manifest's"
    assert (
        arrays.fault(target, "params/a/w", said | {"shape": [3, 2]})
        == "float32[2, 3], and the manifest says float32[3, 2]"
    )
    assert "does not exist" in arrays.fault(target, "params/a/v", said)


def test_an_array_that_comes_back_with_another_digest_is_refused(saved):
    target = saved / "20"
    described = manifest.read(target)["arrays"]
    described["params/a/w"]["digest"] = "0" * 16
    rewritten(target, arrays=described)
    with pytest.raises(Damaged, match="params/a/w came back changed"):
        checkpoint.restore(saved, 20, LIKE)

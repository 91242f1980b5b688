"""Folders of safetensors: what is missing, damaged or foreign is one message, and nothing is unpickled."""

import json
import os
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mot.errors import UserError
from mot.interop import shards
from mot.tokenizers import safetensors
from tests.support import published

INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path):
    return published.save(tmp_path / "hf", published.tensors())


def change_index(folder, file):
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    index["weight_map"]["model.norm.weight"] = file
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def refuses(folder, says):
    with pytest.raises(UserError, match=says):
        shards.headers(folder)


def test_tensors_come_back_from_several_files_and_dtypes(folder):
    wanted = published.tensors()
    found = shards.headers(folder)
    assert {name: header.shape for name, header in found.items()} == {name: x.shape for name, x in wanted.items()}
    for name, x in shards.tensors(found, "reading"):
        np.testing.assert_array_equal(x, wanted[name])
    x = np.array([1.5, -2], ml_dtypes.bfloat16)
    single = folder.parent / "single"
    single.mkdir()
    save_file({"a": x, "b": np.array([[3]], np.float16)}, single / "model.safetensors")
    read = dict(shards.tensors(shards.headers(single), "reading"))
    assert {name: (x.dtype, x.tolist()) for name, x in read.items()} == {
        "a": (ml_dtypes.bfloat16, [1.5, -2]),
        "b": (np.float16, [[3]]),
    }


def test_a_missing_shard(folder):
    (folder / SECOND).unlink()
    refuses(folder, f"{SECOND} is missing, and {INDEX} names it")


@pytest.mark.parametrize("file", ["../other/model.safetensors", "/etc/model.safetensors", "a\\b.safetensors", 3])
def test_an_index_that_names_files_outside_the_folder(folder, file):
    change_index(folder, file)
    refuses(folder, r"model\.norm\.weight lies in .*; must be the name of a \.safetensors file of this folder")


def test_pickles_are_never_opened(folder, tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harmed"), "w"))

    change_index(folder, "pytorch_model.bin")
    refuses(folder, "a pickle can run code, and is never opened")
    (folder / INDEX).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harm()))
    refuses(folder, r"pytorch_model\.bin and no model\.safetensors: a pickle can run code")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Harm()) * 10)
    refuses(folder, r"model\.safetensors is no safetensors file")
    assert not (tmp_path / "harmed").exists()


def test_a_file_that_is_cut_off_a_tensor_that_is_elsewhere_and_an_unknown_dtype(folder):
    whole = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(whole[:-5])
    refuses(folder, f"{SECOND} is no safetensors file")
    (folder / SECOND).write_bytes(whole)
    change_index(folder, SECOND if "norm" not in whole[:400].decode("latin1") else "model-00001-of-00002.safetensors")
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    del index["weight_map"]["lm_head.weight"]
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    refuses(folder, f"and {INDEX} says otherwise")
    (folder / INDEX).unlink()
    save_file({"a": np.zeros(2, np.int8)}, folder / "model.safetensors")
    refuses(folder, "a has dtype I8; known are F32, F16, BF16")


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_what_is_no_file_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=f"{name} cannot be read .it is no file"):
        safetensors.read_json(folder / name)


def test_a_new_folder_has_a_name(folder):
    for out in (".", "/", folder, folder / INDEX):
        with pytest.raises(UserError, match=r"name a new folder"):
            shards.refuse_taken(Path(out))
    shards.refuse_taken(folder / "new")


def test_files_are_planned_by_their_size():
    shapes = {"a": (10,), "b": (10,), "c": (100,), "d": (1,)}
    assert shards.planned(shapes, 10_000) == {"model.safetensors": ["a", "b", "c", "d"]}
    assert list(shards.planned(shapes, 80).values()) == [["a", "b"], ["c"], ["d"]]

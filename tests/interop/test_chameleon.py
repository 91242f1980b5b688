"""A model whose images' ids lie amid text's: what is refused, how its ids lie in ours, and what an export puts back."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from launch import flags
from mot.config import load
from mot.errors import UserError
from mot.files import write_atomically
from mot.interop import aside, exporting, families, importing
from mot.model import params
from mot.runs import rundir, written
from mot.train import restore
from tests.support import published

CODES = [3, 0, 4, 1, 2]  # of images, in the order of their ids, which begin with 2
FIRST = 2
NAMES = [f"IMGIMG{chr(ord('A') + code)}Z" for code in CODES]
ABOUT = published.ABOUT | dict(
    architectures=["ChameleonForConditionalGeneration"],
    model_type="chameleon",
    swin_norm=True,
    vq_config={"embed_dim": 4},
    vocabulary_map={"<unk>": 0, "<s>": 1} | {name: FIRST + i for i, name in enumerate(NAMES)},
)
VQ = "model.vqmodel.quantize.embedding.weight"


def tensors():
    rng = np.random.default_rng(5)
    found = published.tensors() | {VQ: rng.standard_normal((5, 4)).astype(np.float32)}
    for layer in range(2):
        for x, heads in (("q", 4), ("k", 2)):
            for weight in ("weight", "bias"):
                name = f"model.layers.{layer}.self_attn.{x}_norm.{weight}"
                found[name] = rng.standard_normal((heads, 4)).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    root = tmp_path_factory.mktemp("chameleon")
    codes = published.codes(root / "codes", ("<unk>", "<s>", *NAMES), len(CODES))
    folder = published.save(root / "hf", tensors(), ABOUT, codes / "tokenizer.json")
    (folder / "preprocessor_config.json").write_text('{"size": 512}', encoding="utf-8")
    return importing.run(folder, str(codes / "data"), root / "run"), root


def test_rows_of_codes_lie_in_the_order_of_codes(imported):
    config, _, weights = restore.load(imported[0].path)
    assert config.vocab == published.IDS + 5
    assert config.model.norm == "post"
    theirs, flat = tensors(), params.paths(weights)
    for path, name in (("embed/tokens", "model.embed_tokens.weight"), ("head/out", "lm_head.weight")):
        ours = np.asarray(flat[path] if path == "embed/tokens" else flat[path].T)
        np.testing.assert_array_equal(ours[[0, 1]], theirs[name][[0, 1]])
        np.testing.assert_array_equal(ours[FIRST + np.array(CODES)], theirs[name][FIRST : FIRST + 5])
        np.testing.assert_array_equal(ours[FIRST + 5 : published.IDS], theirs[name][FIRST + 5 :])


def test_a_run_that_begins_from_it_is_exported_with_what_was_kept(imported):
    done, root = imported
    config = flags.build(
        load.read(f"configs/records.py:data={root / 'codes' / 'data'},arch=dense,init={done.path}", {})
    )
    assert config.streams["image"].first_id == FIRST
    flat = params.paths(restore.load(done.path)[2])
    for path, x in params.paths(restore.upcycled(config)).items():
        np.testing.assert_array_equal(x, flat[path], err_msg=path)
    further = root / "further"
    further.mkdir()
    write_atomically(further / "config.json", written.sealed(rundir.anchored(rundir.plain(config))))
    assert aside.of_run(further, "chameleon") == done.path / aside.FOLDER
    alone = dataclasses.replace(config, init=dataclasses.replace(config.init, run=""))
    write_atomically(further / "config.json", written.sealed(rundir.anchored(rundir.plain(alone))))
    with pytest.raises(UserError, match=r"keeps in aside/ of a run, and neither this run nor one with whose weights"):
        aside.of_run(further, "chameleon")


def test_an_export_gives_back_every_tensor_and_field(imported):
    done, root = imported
    out = root / "out"
    exporting.run(done.path, None, out, 2**30)
    found, theirs = published.read(out), tensors()
    assert found.keys() == theirs.keys()
    for name, x in theirs.items():
        np.testing.assert_array_equal(found[name][: len(x)], x, err_msg=name)
    about = json.loads((out / "config.json").read_text(encoding="utf-8"))
    for key in ("model_type", "vq_config", "vocabulary_map", "swin_norm", "hidden_size", "rms_norm_eps"):
        assert about[key] == ABOUT[key]
    assert json.loads((out / "preprocessor_config.json").read_text(encoding="utf-8")) == {"size": 512}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(rms_norm_eps=1e-6), r"rms_norm_eps: 1e-06; allowed: 1e-05"),
        (dict(mlp_bias=True), r"mlp_bias: True; allowed: False"),
        (dict(head_dim=8), r"head_dim: 8; allowed: 4"),
        (dict(vocabulary_map=None), r"vocabulary_map must give each token its id"),
        (dict(vocabulary_map={"IMGIMGBZ": 3, "IMGIMGCZ": 4}), r"names 2 codes of images, and must name all from 0"),
        (dict(vocabulary_map={"IMGIMGAZ": 3, "IMGIMGBZ": 5}), r"codes are 3 to 5, 2 of them; they must lie together"),
    ],
)
def test_what_cannot_be_said_is_refused(change, says):
    with pytest.raises(UserError, match=says):
        families.of_theirs(ABOUT | change, "config.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(vocabulary_map={name: 9 + i for i, name in enumerate(NAMES)}), r"ids 9 to 13 are those of image's codes"),
        (dict(model_type="llama", swin_norm=None, vq_config=None, vocabulary_map=None), r"is of a llama, and the run"),
    ],
)
def test_what_was_kept_of_another_model_is_refused(change, says, imported, tmp_path):
    done, _ = imported
    shutil.copytree(done.path, tmp_path / "run")
    file = tmp_path / "run" / aside.FOLDER / "config.json"
    file.write_text(json.dumps(ABOUT | change), encoding="utf-8")
    with pytest.raises(UserError, match=says):
        exporting.run(tmp_path / "run", None, tmp_path / "out", 2**30)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_was_kept_and_lost_is_missed(imported, tmp_path):
    done, _ = imported
    shutil.copytree(done.path, tmp_path / "run")
    (tmp_path / "run" / aside.FOLDER / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"aside has neither model\.safetensors"):
        exporting.run(tmp_path / "run", None, tmp_path / "out", 2**30)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_ids_of_codes_for_which_the_embedding_has_no_row_are_refused(imported, tmp_path):
    _, root = imported
    shutil.copytree(root / "hf", tmp_path / "hf")
    about = ABOUT | dict(vocabulary_map={name: published.IDS - 2 + i for i, name in enumerate(NAMES)})
    (tmp_path / "hf" / "config.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(UserError, match=r"ids 298 to 302 are those of image's codes.*the embedding 300 rows"):
        importing.run(tmp_path / "hf", str(root / "codes" / "data"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_codes_than_the_models_own_are_refused(imported):
    _, root = imported
    published.pictures(root / "pictures", root / "codes")
    with pytest.raises(
        UserError, match=r"its image has not the 5 codes of a chameleon's own image tokenizer, but 12 ids"
    ):
        importing.run(root / "hf", str(root / "pictures" / "data"), root / "other")
    assert not (root / "other").exists()

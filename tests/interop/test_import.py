"""`mot import` and `mot export` without torch: a run that others begin from, and refusals that leave nothing behind."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from launch import flags
from mot.config import load
from mot.errors import UserError
from mot.interop import exporting, importing, prompt
from mot.model import params
from mot.train import restore
from tests.support import published
from tests.support.commands import run


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("published") / "texts")


@pytest.fixture(scope="module")
def imported(texts, tmp_path_factory):
    root = tmp_path_factory.mktemp("imported")
    folder = published.save(root / "hf", published.tensors(), tokenizer=texts / "tokenizer.json")
    return importing.run(folder, str(texts / "data"), root / "run")


def test_the_checkpoint_of_step_0_is_read_and_others_begin_from_it(imported, texts):
    theirs = published.tensors()
    config, position, weights = restore.load(imported.path)
    assert position.step == 0
    assert restore.open_data(config)[0] == config, "it has budgets, which evaluation and sampling need"
    flat = params.paths(weights)
    q = np.stack([theirs[f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(2)])
    np.testing.assert_array_equal(flat["blocks/main/attn/text/wq"], q.transpose(0, 2, 1).reshape(2, 16, 4, 4))
    new = flat["embed/tokens"][published.IDS :]
    assert len(new) == 5, "mot's special tokens"
    np.testing.assert_allclose(new, theirs["model.embed_tokens.weight"].mean(0)[None].repeat(5, 0), atol=1e-6)
    file = f"configs/records.py:data={texts / 'data'},arch=dense,init={imported.path}"
    begun = restore.upcycled(flags.build(load.read(file, {})))
    for path, x in params.paths(begun).items():
        np.testing.assert_array_equal(x, flat[path], err_msg=path)


def test_a_run_that_begins_from_one_with_experts_takes_them(texts, tmp_path):
    """Mixtral's, whose files have each expert apart; an architecture with experts of its own keeps these."""
    theirs = published.tensors()
    rng = np.random.default_rng(1)
    for layer in range(2):
        for name, at in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            dense = theirs.pop(f"model.layers.{layer}.mlp.{name}_proj.weight")
            for expert in range(3):
                x = rng.standard_normal(dense.shape).astype(np.float32)
                theirs[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{at}.weight"] = x
        theirs[f"model.layers.{layer}.block_sparse_moe.gate.weight"] = rng.standard_normal((3, 16)).astype(np.float32)
    about = published.ABOUT | dict(model_type="mixtral", num_local_experts=3, num_experts_per_tok=2, sliding_window=16)
    folder = published.save(tmp_path / "hf", theirs, about, texts / "tokenizer.json")
    done = importing.run(folder, str(texts / "data"), tmp_path / "run")
    assert done.family == "mixtral"
    assert done.told[0].startswith("its attention looks back 16 tokens; rows of 16 are no longer")
    file = f"configs/records.py:data={texts / 'data'},arch=dense,init={done.path}"
    config = flags.build(load.read(file, {}))
    assert (config.ffn["text"].experts, config.ffn["text"].normalise, config.ffn["text"].balance) == (3, True, "pooled")
    begun = params.paths(restore.upcycled(config))
    x = theirs["model.layers.1.block_sparse_moe.experts.2.w2.weight"]
    np.testing.assert_array_equal(begun["blocks/sparse/ffn/text/w2"][1, 2], x.T)
    assert load.read(file.replace("dense", "moe_tc4"), {}).ffn.text.experts == 4


def test_an_export_is_whole_or_absent_and_has_a_card(imported, tmp_path):
    out = tmp_path / "hf"
    done = exporting.run(imported.path, None, out, 10_000)
    assert (done.family, done.step) == ("llama", 0)
    assert done.files > 2
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["vocab_size"] == published.IDS + 5
    assert Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab_size() == published.IDS + 5
    assert "A llama of 13,680 parameters: step 0" in (out / "README.md").read_text(encoding="utf-8")
    code, _, err = run("export", imported.path, f"--out={out}")
    assert code == 2
    assert "exists; nothing was overwritten" in err
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_weights_in_bfloat16_come_back_rounded(imported, texts, tmp_path):
    done = exporting.run(imported.path, None, tmp_path / "hf", 10**9, "bfloat16")
    whole = exporting.run(imported.path, None, tmp_path / "whole", 10**9)
    assert done.files == whole.files == 1
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("hf", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    assert json.loads((tmp_path / "hf" / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    again = importing.run(tmp_path / "hf", str(texts / "data"), tmp_path / "run")
    assert any("the logits stored beside the weights are those of the run's" in line for line in again.told)
    before, after = (params.paths(restore.load(path)[2]) for path in (imported.path, again.path))
    for path, x in before.items():
        np.testing.assert_array_equal(after[path], np.asarray(x).astype("bfloat16").astype("float32"), err_msg=path)


def test_logits_that_are_not_the_weights_own_are_refused(imported, texts, tmp_path):
    out = tmp_path / "hf"
    exporting.run(imported.path, None, out, 10**9)
    with np.load(out / "prompt.npz") as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["logits"] = changed["logits"] + 1
    np.savez(out / "prompt.npz", **changed)
    code, _, err = run("import", out, f"--data={texts / 'data'}", f"--out={tmp_path / 'run'}")
    assert code == 2
    assert "the logits of a fixed prompt are" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (dict(ids=np.array([1.5]), logits=np.ones((1, 9), "f")), "it has no ids and logits"),
        (dict(ids=np.array([1]), logits=np.full((1, 9), "a")), "it has no ids and logits"),
        (dict(ids=np.array([1]), logits=np.ones((1, 0), "f")), "1 ids, and logits"),
        (dict(ids=np.ones(9, int), logits=np.ones((9, 9), "f")), "9 ids, and logits"),
        (dict(logits=np.ones((1, 9), "f")), "it has no ids and logits"),
    ],
)
def test_a_file_that_is_no_prompts_is_refused(arrays, says, tmp_path):
    np.savez(tmp_path / prompt.NAME, **arrays)
    with pytest.raises(UserError, match=f"{prompt.NAME} cannot be read .*{says}"):
        prompt.read(tmp_path)
    np.savez_compressed(tmp_path / prompt.NAME, ids=np.array([1]), logits=np.ones((1, 9), "f"))
    with pytest.raises(UserError, match="it is compressed"):
        prompt.read(tmp_path)


def test_a_text_model_becomes_both_towers_of_a_mixture(texts, tmp_path):
    published.pictures(tmp_path / "pictures", texts)
    folder = published.save(tmp_path / "hf", published.tensors(), tokenizer=texts / "tokenizer.json")
    data = str(tmp_path / "pictures" / "data")
    dense = importing.run(folder, data, tmp_path / "dense")
    mixture = importing.run(folder, data, tmp_path / "mot", "mot")
    assert mixture.parameters > dense.parameters
    assert "12 ids of other modalities are new; their rows begin at random" in mixture.told
    logits = {}
    for run_ in (dense, mixture):
        config, _, weights = restore.load(run_.path)
        logits[run_.arch] = prompt.logits(weights, config, np.arange(7, dtype=np.int32))
        flat = params.paths(weights)
    np.testing.assert_array_equal(logits["mot"], logits["dense"])
    np.testing.assert_array_equal(flat["blocks/main/attn/image/wq"], flat["blocks/main/attn/text/wq"])
    assert np.ptp(flat["embed/tokens"][published.IDS + 7 :]) > 0, "ids of pictures begin at random"
    code, _, err = run("import", folder, f"--data={data}", f"--out={tmp_path / 'other'}", "--arch=mott")
    assert code == 2
    assert "arch=mott: no such architecture" in err
    assert not (tmp_path / "other").exists()


def test_sizes_of_a_run_that_is_none(tmp_path):
    (tmp_path / "config.json").write_text('{"streams": {"text": {"width": "8"}}, "model": {}}', encoding="utf-8")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"init=.*no run's config\.json can be read there"):
            load.read(f"configs/records.py:data=x,init={folder}", {})


def small_tokenizer(folder):
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_tokens(["<one>"])
    tokenizer.save(str(file))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda x, _: x.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda x, _: x.update(extra=np.zeros(1)), "extra has dtype F64"),
        (lambda x, _: x.update(extra=np.zeros(1, "f")), "extra is in no table of this family"),
        (
            lambda x, _: x.update({"model.layers.1.mlp.up_proj.weight": np.zeros((24, 15), "f")}),
            "model.layers.1.mlp.up_proj.weight has shape [24, 15]; must be [24, 16]",
        ),
        (
            lambda x, _: x.update({n: x[n][:-1] for n in ("model.embed_tokens.weight", "lm_head.weight")}),
            f"has ids up to {published.IDS - 1}, and the embedding has {published.IDS - 1} rows",
        ),
        (lambda _, about: about.update(hidden_size=15), "head_size: 3"),
        (
            lambda _, about: about.update(model_type="mixtral", num_local_experts=10**6, num_experts_per_tok=2),
            "config.json describes 2,000,000 experts in 2 layers, and the files have 21 tensors",
        ),
        (lambda _, about: about.update(sliding_windows=4), "sliding_windows: 4; it is not known what it changes"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(spoil, says, texts, tmp_path):
    arrays, about = published.tensors(), dict(published.ABOUT)
    spoil(arrays, about)
    folder = published.save(tmp_path / "hf", arrays, about, texts / "tokenizer.json")
    code, _, err = run("import", folder, f"--data={texts / 'data'}", f"--out={tmp_path / 'run'}")
    assert code == 2, err
    assert says in err
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_another_tokenizer_than_the_datas_and_none(texts, tmp_path):
    folder = published.save(tmp_path / "hf", published.tensors(), tokenizer=texts / "tokenizer.json")
    small_tokenizer(folder)
    code, _, err = run("import", folder, f"--data={texts / 'data'}", f"--out={tmp_path / 'run'}")
    assert code == 2
    assert "its text tokenizer is another one" in err
    (folder / "tokenizer.json").unlink()
    code, _, err = run("import", folder, f"--data={texts / 'data'}", f"--out={tmp_path / 'run'}")
    assert code == 2
    assert "has no tokenizer.json; save it there" in err

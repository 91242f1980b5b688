"""Mixtures of transformers without torch: what is said of them, what is refused, and tensors there and back."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mot.config import load, resolve
from mot.errors import UserError
from mot.interop import exporting, families, importing
from tests.support import published

P, SIDE = 8, 3
COSMOS3 = dict(
    _class_name="Cosmos3OmniTransformer",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    patch_latent_dim=P,
    latent_channel=2,
    rope_axes_dim=[2, 1, 1],
    unified_3d_mrope_temporal_modality_margin=0,
)
LLM = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
BAGEL = dict(model_type="bagel", llm_config=LLM, vae_config=dict(z_channels=2), max_latent_size=SIDE)
ABOUTS = {"Cosmos3OmniTransformer": COSMOS3, "bagel": BAGEL}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures")
    texts = published.write(folder / "texts")
    published.latents(folder / "pictures", texts, P)
    return folder


def config_of(name, data):
    _, said = families.of_theirs(ABOUTS[name], "config.json")
    tree = load.read(f"configs/records.py:data={data / 'pictures' / 'data'},arch={said.arch},size=smoke,length=64", {})
    tree.update_from_flattened_dict({key.format(vectors="latents"): x for key, x in said.values.items()})
    for stream in tree.streams.values():
        stream.budget = 32
    tree.data.length = 0
    return resolve(tree)


def saved(name, folder, data, **changes):
    """A folder of random tensors: of those that the family has, and of one that is outside of our model."""
    rng = np.random.default_rng(0)
    config = config_of(name, data)
    pieces = families.pieces(families.rows_of(name, config), config, published.IDS)
    tensors = {theirs: rng.standard_normal(families.shape_of(own)).astype("f") for theirs, own in pieces.items()}
    if name == "bagel":
        by_column, by_row = rng.standard_normal((2, SIDE, 8)).astype("f")
        square = [np.concatenate([by_column[c], by_row[r]]) for r in range(SIDE) for c in range(SIDE)]
        tensors["latent_pos_embed.pos_embed"] = np.stack(square)
    tensors["connector.fc1.bias" if name == "bagel" else "audio_proj_in.bias"] = np.ones(3, np.float32)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(ABOUTS[name]), encoding="utf-8")
    save_file(tensors | changes, folder / f"{families.stem(name)}.safetensors")
    (folder / "tokenizer.json").write_bytes((data / "texts" / "tokenizer.json").read_bytes())
    return tensors


@pytest.mark.parametrize("name", ABOUTS)
def test_tensors_there_and_back(name, data, tmp_path):
    wanted = saved(name, tmp_path / "theirs", data)
    done = importing.run(tmp_path / "theirs", str(data / "pictures" / "data"), tmp_path / "run")
    assert any("1 tensors of 3 numbers are outside of this model" in line for line in done.told)
    exporting.run(tmp_path / "run", None, tmp_path / "back", 10**9)
    found = load_file(tmp_path / "back" / f"{families.stem(name)}.safetensors")
    assert found.keys() == wanted.keys()
    for theirs, x in wanted.items():
        np.testing.assert_array_equal(found[theirs][: len(x)], x, err_msg=theirs)
    about = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    assert families.of_theirs(about, "back") == families.of_theirs(ABOUTS[name], "theirs")


@pytest.mark.parametrize("name", ABOUTS)
def test_a_run_of_ours_has_the_family_without_what_is_outside(name, data):
    config = config_of(name, data)
    assert families.of_ours(config, "run") == name
    about = families.about_theirs(name, config, published.IDS, {}) | families.about_alone(name, config)
    assert families.of_theirs(about, "config.json")[1] == families.of_theirs(ABOUTS[name], "config.json")[1]
    assert (about["latent_patch_size"], about.get("visual_und", False)) == (2, False)


def test_a_table_of_places_that_was_trained_is_refused(data, tmp_path):
    table = np.random.default_rng(1).standard_normal((SIDE**2, 16)).astype("f")
    saved("bagel", tmp_path / "theirs", data, **{"latent_pos_embed.pos_embed": table})
    with pytest.raises(UserError, match=r"latent_pos_embed\.pos_embed is no table whose first half"):
        importing.run(tmp_path / "theirs", str(data / "pictures" / "data"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_without_the_latents_of_the_model_are_refused(data, tmp_path):
    saved("bagel", tmp_path / "theirs", data)
    with pytest.raises(UserError, match=r"its vectors are none; this model draws pictures"):
        importing.run(tmp_path / "theirs", str(data / "texts" / "data"), tmp_path / "run")
    about = BAGEL | dict(vae_config=dict(z_channels=16))
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(UserError, match=r"its latents have 8 features, and this model's 64"):
        importing.run(tmp_path / "theirs", str(data / "pictures" / "data"), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("Cosmos3OmniTransformer", {"hidden_act": "relu2"}, r"hidden_act: 'relu2'; allowed: 'silu'"),
        ("Cosmos3OmniTransformer", {"qk_norm_for_text": False}, r"qk_norm_for_text: False; allowed: True"),
        ("Cosmos3OmniTransformer", {"rope_axes_dim": [2, 2, 0]}, r"rope_axes_dim: \[2, 2, 0\]; allowed: \[a, b, b\]"),
        ("Cosmos3OmniTransformer", {"timestep_scale": 1.0}, r"timestep_scale: 1\.0; allowed: 0\.001"),
        ("Cosmos3OmniTransformer", {"patch_latent_dim": "8"}, r"patch_latent_dim is '8'; must be a whole number"),
        ("bagel", {"llm_config": None}, r"llm_config, vae_config: objects are needed"),
        ("bagel", {"llm_config": LLM | {"layer_module": "Qwen2MoEDecoderLayer"}}, r"llm_config\.layer_module: .*MoE"),
        ("bagel", {"llm_config": LLM | {"qk_norm": False}}, r"llm_config\.qk_norm: False; allowed: True"),
        ("bagel", {"interpolate_pos": True}, r"interpolate_pos: True; allowed: False"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(name, change, says):
    with pytest.raises(UserError, match=says):
        families.of_theirs(ABOUTS[name] | change, "config.json")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("bagel", {"streams.latents.diffusion.time_of_clean": False}, r"time_of_clean: False; must be True"),
        ("Cosmos3OmniTransformer", {"model.rope_interleaved": False}, r"model\.rope_interleaved: False; must be True"),
        ("Cosmos3OmniTransformer", {"towers.ffn.latents": "text"}, r"towers\.ffn: .*; latents must have its own"),
    ],
)
def test_a_run_of_ours_that_is_not_quite_one_is_told_why(name, change, says, data):
    tree = load.read(f"configs/records.py:data={data / 'pictures' / 'data'},arch=mot,size=smoke,length=64", {})
    values = families.of_theirs(ABOUTS[name], "config.json")[1].values
    tree.update_from_flattened_dict({key.format(vectors="latents"): x for key, x in values.items()} | change)
    if "towers.ffn.latents" in change:
        del tree.ffn["latents"]
    for stream in tree.streams.values():
        stream.budget = 32
    tree.data.length = 0
    with pytest.raises(UserError, match=says):
        families.of_ours(resolve(tree), "run")

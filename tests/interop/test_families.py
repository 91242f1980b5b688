"""What of a config.json is said, what is refused, and which of our configurations have a family."""

import pytest

from configs.base import rope_scaling
from mot.config import resolve
from mot.errors import UserError
from mot.interop import families
from tests.support import examples
from tests.support.published import ABOUT

MIXTRAL = dict(model_type="mixtral", num_local_experts=4, num_experts_per_tok=2)
GEMMA2 = dict(norm="both", qk_norm="none", activation="geglu", norm_offset=True, embed_scale=True, tied=True)
GEMMA2 |= dict(attention_cap=50.0, logits_cap=30.0, query_size=6)
QWEN = dict(model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12)


def test_fields_become_keys_and_absent_ones_are_what_the_class_takes():
    name, said = families.of_theirs(ABOUT, "config.json")
    values = said.values
    assert (name, said.arch) == ("llama", "dense")
    assert values["model.head_size"] == 4
    assert values["model.rope_theta"] == 10_000.0
    assert values["streams.text.width"] == 16
    gemma = {k: v for k, v in ABOUT.items() if k != "tie_word_embeddings"}
    gemma |= {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh", "rope_parameters": {"rope_theta": 7}}
    values = families.of_theirs(gemma, "config.json")[1].values
    assert values["model.head_size"] == 256
    assert values["model.rope_theta"] == 7.0
    assert values["model.tied"] is True
    assert values["model.norm_offset"] is True


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "mamba"}, r"model_type 'mamba' is no family that is known; known are llama, mistral, mi"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is no family"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor: None; must be a number above 0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, r"rope_scaling: .*dynamic.*; allowed: null, or of rope_t"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4}},
            r"rope_scaling\.original_max_position_embeddings: None; must be a number above 0",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2, "base": 3}},
            r"rope_scaling\.base: 3; allowed: no such field",
        ),
        (MIXTRAL | {"num_local_experts": None}, r"num_local_experts: None; must be a whole number from 1"),
        (MIXTRAL | {"router_aux_loss_coef": "a"}, r"router_aux_loss_coef: 'a'; must be a number of 0 or more"),
        (MIXTRAL | {"sliding_window": 4.5}, r"sliding_window: 4\.5; must be a whole number above 0, or null"),
        (QWEN | {"mlp_only_layers": [1]}, r"decoder_sparse_step, mlp_only_layers: None, \[1\]; layers with experts mu"),
        (QWEN | {"num_hidden_layers": 5, "decoder_sparse_step": 2}, r"decoder_sparse_step, mlp_only_layers: 2, None"),
        (
            {"model_type": "deepseek_v3"},
            r"'deepseek_v3' cannot be said: its attention compresses keys and values .*MLA",
        ),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, r"partial_rotary_factor: 0\.5"),
        ({"use_sliding_window": True}, r"use_sliding_window: True; allowed: False"),
        ({"layer_types": ["sliding_attention"]}, r"layer_types: .*; allowed: 'full_attention' alone"),
        ({"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping: 50\.0; allowed: null"),
        (
            {"model_type": "gemma2", "hidden_act": None, "attn_logit_softcapping": "high"},
            r"attn_logit_softcapping: 'high'; must be a number above 0, or null",
        ),
        (
            {"model_type": "gemma2", "hidden_act": None, "layer_types": ["linear_attention"]},
            r"layer_types: .*; allowed: 'full_attention' and 'sliding_attention'",
        ),
        ({"attention_bias": True}, r"attention_bias: True; allowed: False"),
        ({"hidden_act": "relu"}, r"hidden_act: 'relu'; allowed: 'silu'"),
        ({"num_experts": 8}, r"num_experts: 8; it is not known what it changes; remove it from config\.json"),
        ({"hidden_size": "16"}, r"hidden_size is '16'; must be a whole number from 1 to 1048576; repair"),
        ({"hidden_size": 10**400}, r"hidden_size is 1000.*; must be a whole number from 1 to 1048576; repair"),
        ({"rope_theta": 10**400}, r"rope_theta is 1000.*; must be a number above 0"),
        ({"num_hidden_layers": 10**12}, r"num_hidden_layers is 1000000000000; must be a whole number from 1"),
        (MIXTRAL | {"num_local_experts": 10**12}, r"num_local_experts: 1000000000000; must be a whole number from 1"),
        ({"num_hidden_layers": None}, r"num_hidden_layers is None; must be a whole number"),
        ({"rms_norm_eps": float("nan")}, r"rms_norm_eps is nan; must be a number above 0"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(change, says):
    with pytest.raises(UserError, match=says):
        families.of_theirs(ABOUT | change, "config.json")


def of_text(arch="dense", **model):
    tree = examples.tree(arch, **model)
    del tree.streams["image"]
    for component in ("attn", "ffn", "norm"):
        tree.towers[component] = {"text": "text"}
    for component in ("attn", "ffn"):
        tree[component] = {"text": tree[component]["text"]}
    return tree


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (dict(qk_norm="none"), "llama"),
        (dict(qk_norm="none", qkv_bias=True, tied=True), "qwen2"),
        (dict(), "qwen3"),
        (dict(qk_norm="none", activation="geglu", norm_offset=True, embed_scale=True, tied=True), "gemma"),
        (dict(qk_norm="rms_flat", norm="post"), "olmo2"),
        (GEMMA2, "gemma2"),
        (GEMMA2 | dict(attention_cap=0.0, query_size=8), "gemma2"),
    ],
)
def test_a_configuration_has_the_family_that_it_says(model, name):
    config = resolve(of_text(**model))
    assert families.of_ours(config, "run") == name
    about = families.about_theirs(name, config, 12, {"<bos>": 1}, "float32")
    values = families.of_theirs(about, "config.json")[1].values
    assert values["model.layers"] == 2
    assert {key: values[f"model.{key}"] for key in model} == model
    assert about["bos_token_id"] == 1


def test_a_configuration_of_no_family_is_one_message():
    with pytest.raises(UserError, match=r"streams: text \(next_token\), image \(next_token\); it must have text alone"):
        families.of_ours(examples.make("mot"), "run")
    tree = of_text(qk_norm="layer", norm="post")
    with pytest.raises(UserError, match=r"why it is no olmo2:\n  model\.qk_norm: 'layer'; must be 'rms_flat'"):
        families.of_ours(resolve(tree), "run")
    with pytest.raises(
        UserError, match=r"why it is no llama:\n  model\.qk_norm: 'layer'; must be 'none'\nknown are llama"
    ):
        families.of_ours(resolve(of_text(qk_norm="layer")), "run")
    tree = of_text()
    tree.ffn.text.update(experts=4, active=2, groups=2, active_groups=2)
    with pytest.raises(UserError, match=r"why it is no qwen3:\n  ffn\.text\.experts: it has experts; must be 0"):
        families.of_ours(resolve(tree), "run")
    assert [*families.FAMILIES["qwen3_moe"].faults("qwen3_moe", resolve(tree))] == ["ffn.text.groups: 2; must be 1"]
    tree.ffn.text.update(groups=1, active_groups=1, balance="bias")
    with pytest.raises(UserError, match="no family of published models"):  # none has the router's bias
        families.of_ours(resolve(tree), "run")


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        (dict(model_type="mistral"), 4096),
        (dict(model_type="mistral", sliding_window=None), 0),
        (dict(model_type="mistral", sliding_window=9), 9),
        (MIXTRAL, 0),
        (dict(model_type="gemma2", hidden_act=None), 4096),
        (dict(model_type="gemma2", hidden_act=None, layer_types=["full_attention"] * 2), 0),
        (dict(model_type="qwen2", sliding_window=4096), 0),
    ],
)
def test_how_far_back_attention_looks(fields, window):
    assert families.of_theirs(ABOUT | fields, "config.json")[1].window == window


@pytest.mark.parametrize("kind", ["", "linear", "llama3", "yarn"])
def test_stretched_wavelengths_there_and_back(kind):
    length = 0 if kind in ("", "linear") else 64
    scaling = rope_scaling(kind, 4.0 if kind else 1.0, length=length)
    about = families.about_theirs("llama", resolve(of_text(qk_norm="none", rope_scaling=scaling)), 12, {}, "float32")
    assert about["rope_parameters"]["rope_type"] == kind or "default"
    found = families.of_theirs(about, "config.json")[1].values
    assert found == found | {f"model.rope_scaling.{key}": scaling[key] for key in ("kind", "factor") if kind}
    whole = {"model.rope_scaling." + key: value for key, value in scaling.items()}
    assert {key: x for key, x in found.items() if "scaling" in key}.items() <= whole.items()
    older = {key: x for key, x in about.items() if key != "rope_parameters"}
    older |= {"rope_theta": 7.0, "rope_scaling": about["rope_parameters"]}
    assert families.of_theirs(older, "config.json")[1].values == found | {"model.rope_theta": 7.0}


@pytest.mark.parametrize(("layers", "dense", "every"), [(4, 0, 1), (5, 2, 1), (6, 0, 3), (7, 1, 2)])
def test_layers_with_experts_there_and_back(layers, dense, every):
    tree = of_text(layers=layers, dense_layers=dense, sparse_every=every)
    tree.ffn.text.update(experts=4, active=2, normalise=True, balance="pooled", balance_rate=0.02)
    config = resolve(tree)
    assert families.of_ours(config, "run") == "qwen3_moe"
    about = families.about_theirs("qwen3_moe", config, 12, {}, "float32")
    values = families.of_theirs(about, "config.json")[1].values
    assert (values["model.dense_layers"], values["model.sparse_every"]) == (dense, every)
    assert {
        key: values[f"ffn.text.{key}"] for key in ("experts", "active", "normalise", "balance", "balance_rate")
    } == {
        "experts": 4,
        "active": 2,
        "normalise": True,
        "balance": "pooled",
        "balance_rate": 0.02,
    }
    by_step = about | {"mlp_only_layers": [], "decoder_sparse_step": every}
    if not dense:
        assert families.of_theirs(by_step, "config.json")[1].values == values

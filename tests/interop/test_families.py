"""What of a config.json is said, what is refused, and which of our configurations have a family."""

import pytest

from mot.config import resolve
from mot.errors import UserError
from mot.interop import families
from tests.support import examples
from tests.support.published import ABOUT


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
        ({"model_type": "mamba"}, r"model_type 'mamba' is no family that is known; known are llama, qwen2, qwen3, gem"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is no family"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling: .*linear.*; allowed: null, or none at all"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4}}, r"rope_scaling: .*yarn"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, r"partial_rotary_factor: 0\.5"),
        ({"use_sliding_window": True}, r"use_sliding_window: True; allowed: False"),
        ({"layer_types": ["sliding_attention"]}, r"layer_types: .*; allowed: 'full_attention' alone"),
        ({"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping: 50\.0; allowed: null"),
        ({"attention_bias": True}, r"attention_bias: True; allowed: False"),
        ({"hidden_act": "relu"}, r"hidden_act: 'relu'; allowed: 'silu'"),
        ({"num_experts": 8}, r"num_experts: 8; it is not known what it changes; remove it from config\.json"),
        ({"hidden_size": "16"}, r"hidden_size is '16'; must be a whole number above 0; repair"),
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
    with pytest.raises(UserError, match=r"model\.norm: 'post'; must be 'pre'"):
        families.of_ours(resolve(tree), "run")
    with pytest.raises(
        UserError, match=r"why it is no llama:\n  model\.qk_norm: 'layer'; must be 'none'\nknown are llama"
    ):
        families.of_ours(resolve(of_text(qk_norm="layer")), "run")
    tree = of_text()
    tree.ffn.text.update(experts=2, active=1)
    with pytest.raises(UserError, match=r"ffn\.text\.experts: it has experts"):
        families.of_ours(resolve(tree), "run")

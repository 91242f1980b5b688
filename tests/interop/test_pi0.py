"""A model of two towers that other vectors enter: what is refused, and how names of tensors may be written."""

from pathlib import Path

import pytest

from mot.errors import UserError
from mot.interop import families, importing, shards
from tests.support import published

HEADS = dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=8)
GEMMA = HEADS | dict(hidden_act="gelu_pytorch_tanh", use_bidirectional_attention=True)
TEXT = GEMMA | dict(hidden_size=16, intermediate_size=24)
EXPERT = GEMMA | dict(hidden_size=12, intermediate_size=20, is_causal=True)
ABOUT = dict(
    model_type="pi0",
    dit_config=EXPERT,
    vlm_config=dict(text_config=TEXT, vision_config=dict(hidden_size=12)),
    max_state_dim=4,
    max_action_dim=3,
    chunk_size=5,
    min_period=0.004,
)


def test_what_a_config_json_says_becomes_keys_of_four_streams():
    name, said = families.of_theirs(ABOUT, "config.json")
    assert (name, said.arch) == ("pi0", "loo_chunk+state")
    assert said.needs == {"latents": 12, "state": 4, "chunk": 3}
    for key, value in {
        "streams.text.width": 16,
        "streams.latents.ffn": 24,
        "streams.chunk.width": 12,
        "streams.state.ffn": 20,
        "streams.state.ends_prefix": True,
        "streams.chunk.diffusion.time": "mlp",
        "data.blocks": "prefix",
        "model.tied": True,
        "model.norm_offset": True,
    }.items():
        assert said.values[key] == value, key


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(max_period=8.0), r"max_period: 8\.0; allowed: 4\.0"),
        (dict(time_sampling_beta_alpha=1.0), r"time_sampling_beta_alpha: 1\.0; allowed: 1\.5"),
        (
            dict(dit_config=EXPERT | dict(head_dim=4)),
            r"dit_config\.head_dim: 4; allowed: 8, as in vlm_config\.text_conf",
        ),
        (dict(dit_config=EXPERT | dict(attention_bias=True)), r"dit_config\.attention_bias: True; allowed: False"),
        (dict(max_state_dim=None), r"max_state_dim is None; must be a whole number from 1 to 1048576"),
        (dict(vlm_config=dict(text_config=TEXT)), r"hidden_size is None; must be a whole number from 1"),
        (dict(adaptive_norm=True), r"adaptive_norm: True; it is not known what it changes"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(change, says):
    with pytest.raises(UserError, match=says):
        families.of_theirs(ABOUT | change, "config.json")


def test_data_that_lack_what_it_reads_are_refused(tmp_path):
    texts = published.write(tmp_path / "texts")
    folder = published.save(tmp_path / "hf", {"x": published.tensors()["model.norm.weight"]}, ABOUT)
    (folder / "tokenizer.json").write_bytes((texts / "tokenizer.json").read_bytes())
    with pytest.raises(
        UserError, match=r"a pi0 has text, latents of 12 .*, chunk of 3 features, and these data have no"
    ):
        importing.run(folder, str(texts / "data"), tmp_path / "run")
    robot = published.robot(tmp_path / "robot", texts, actions=7) / "data"
    with pytest.raises(UserError, match=r"these data have latents of 12, state of 4, chunk of 7; prepare data"):
        importing.run(folder, str(robot), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_names_as_others_write_them_become_ours():
    inside = "paligemma_with_expert.paligemma.model.language_model."
    other = {
        "model.action_in_proj.weight": "action_in_proj.weight",
        f"model.{inside}norm.weight": f"{inside}model.norm.weight",
        "model.paligemma_with_expert.paligemma.lm_head.weight": f"{inside}model.embed_tokens.weight",
        f"{inside}model.layers.0.input_layernorm.weight": f"{inside}model.layers.0.input_layernorm.weight",
    }
    found = {name: shards.Header(Path("x"), (1,), "F32", name) for name in other}
    renamed = shards.renamed(found, families.aliases("pi0"))
    assert {header.name: name for name, header in renamed.items()} == other

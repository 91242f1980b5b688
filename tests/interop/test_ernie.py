"""A model with experts by modality: what is refused, what its tensors are, and what an export must find equal."""

from pathlib import Path

import numpy as np
import pytest

from configs import archs
from mot.config import resolve
from mot.errors import UserError
from mot.interop import exporting, families
from mot.interop.transforms import TRANSFORMS
from tests.support import vectors

TEXT = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    moe_num_experts=4,
    moe_k=2,
    moe_num_shared_experts=2,
    moe_intermediate_size=[12, 8],
    rope_parameters=dict(rope_type="default", rope_theta=5000.0, mrope_section=[1, 1, 2]),
)
ABOUT = dict(model_type="ernie4_5_vl_moe", text_config=TEXT, vision_config={}, image_token_id=9)
NAME = "ernie4_5_vl_moe"


def config(**changes):
    """What the file says, on data of text and of vectors that are as wide as a token."""
    said = families.of_theirs(ABOUT, "config.json")[1]
    tree = vectors.tree(layers=3)
    del tree.streams["sound"]
    tree.streams["latents"] = tree.streams["image"]
    del tree.streams["image"]
    tree.streams.latents.update(latent=16, modality="latents")
    archs.choose(tree, said.arch)
    tree.update_from_flattened_dict(dict(said.values) | changes)
    return resolve(tree)


def test_experts_of_images_follow_those_of_text():
    c = config()
    assert c.stacks == ("main", "sparse_1", "sparse_1")
    assert families.of_ours(c, "run") == NAME
    pieces = families.pieces(families.rows_of(NAME, c), c, c.vocab)
    (piece,) = pieces["model.layers.2.mlp.experts.5.up_proj.weight"]
    assert (piece.ours, piece.index) == ("blocks/sparse_1/ffn/latents/w3", (1, 1))
    assert families.shape_of(pieces["model.layers.1.mlp.moe_statics.e_score_correction_bias"]) == (2, 4)
    assert "model.layers.0.mlp.gate_proj.weight" in pieces
    about = families.about_theirs(NAME, c, 12, {}, "float32")
    assert families.of_theirs(about, "config.json")[1].values == families.of_theirs(ABOUT, "config.json")[1].values
    changed = config(**{"ffn.latents.active": 3})
    with pytest.raises(UserError, match=rf"why it is no {NAME}:\n  ffn\.latents\.active: 3; must be 2"):
        families.of_ours(changed, "run")


def test_neighbours_that_turn_together_become_halves():
    x = np.arange(16, dtype=np.float32).reshape(8, 2)  # two heads of four features
    ours = TRANSFORMS["split_pairs"].to_ours(x, (2, 2, 4))
    assert ours[0].tolist() == [[0, 4, 2, 6], [8, 12, 10, 14]]
    np.testing.assert_array_equal(TRANSFORMS["split_pairs"].to_theirs(ours), x)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(use_bias=True), r"use_bias: True; allowed: False"),
        (dict(mlp_layer_types=["sparse", "dense", "sparse"]), r"mlp_layer_types: .*; allowed: 'dense' first, then"),
        (dict(mlp_layer_types=["sparse"] * 3), r"mlp_layer_types: .*; allowed: 'dense' first, then 'sparse', some of"),
        (dict(moe_intermediate_size=[12]), r"moe_intermediate_size: \[12\]; must be two whole numbers above 0"),
        (dict(rope_parameters=dict(mrope_section=[1, 2, 1])), r"mrope_section: \[1, 2, 1\]; allowed: as many rows"),
        (dict(mlp_layer_types=5), r"mlp_layer_types: 5; allowed: 'dense' first, then 'sparse', some of"),
        (dict(num_hidden_layers=10**12), r"mlp_layer_types: None; allowed"),
        (
            dict(rope_parameters=dict(mrope_section=["a", "a", 1])),
            r"mrope_section: \['a', 'a', 1\]; allowed: as many rows",
        ),
        (dict(num_hidden_layers=None), r"num_hidden_layers is None|mlp_layer_types: None"),
        (dict(moe_k=0), r"moe_k is 0; must be a whole number from 1"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(change, says):
    with pytest.raises(UserError, match=says):
        families.of_theirs(ABOUT | dict(text_config=TEXT | change), "config.json")


def test_a_run_in_which_copies_have_moved_apart_is_not_exported():
    copies = families.copies(NAME, config())
    assert copies["blocks/sparse_1/ffn/latents/shared_w1"] == "blocks/sparse_1/ffn/text/shared_w1"
    one, other = next(iter(copies.items()))
    arrays = {one: np.ones(3), other: np.ones(3)}
    exporting.refuse_unequal(arrays, copies={one: other}, name=NAME, path=Path("run"))
    arrays[one][1] = 2
    with pytest.raises(
        UserError, match=r"shared_w\d is not blocks/.*; a ernie4_5_vl_moe has one for both, and training"
    ):
        exporting.refuse_unequal(arrays, copies={one: other}, name=NAME, path=Path("run"))

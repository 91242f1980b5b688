"""RoPE by sections, stretched and of a part of a head, against the modules of transformers' models."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.models.llama import modeling_llama
from transformers.models.phi3 import modeling_phi3
from transformers.models.qwen2_vl import configuration_qwen2_vl, modeling_qwen2_vl
from transformers.models.qwen3_vl import configuration_qwen3_vl, modeling_qwen3_vl

from configs.base import rope_scaling
from mot.config import RopeScaling
from mot.model import ops

HEAD, THETA = 128, 1e4


def rotary(qwen, sections):
    """transformers' module of the rotation, and its function that applies it."""
    rope = {"rope_type": "default", "rope_theta": THETA, "mrope_section": list(sections)}
    if qwen == 2:
        config = configuration_qwen2_vl.Qwen2VLTextConfig(
            hidden_size=HEAD * 2, num_attention_heads=2, rope_parameters=rope
        )
        return modeling_qwen2_vl.Qwen2VLRotaryEmbedding(config), modeling_qwen2_vl.apply_rotary_pos_emb
    config = configuration_qwen3_vl.Qwen3VLTextConfig(head_dim=HEAD, num_attention_heads=2, rope_parameters=rope)
    return modeling_qwen3_vl.Qwen3VLTextRotaryEmbedding(config), modeling_qwen3_vl.apply_rotary_pos_emb


@pytest.mark.parametrize(("qwen", "sections"), [(2, (16, 24, 24)), (3, (24, 20, 20))])
def test_sections_are_those_that_are_published(qwen, sections):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 3, 11, HEAD)).astype("f")  # [B, N, T, H]
    position = rng.integers(0, 60, (3, 2, 11))
    embedding, apply = rotary(qwen, sections)
    cos, sin = embedding(torch.tensor(q), torch.tensor(position))
    want, _ = apply(torch.tensor(q), torch.tensor(q), cos, sin)
    axes = ops.axes_of_pairs(sections, interleaved=qwen == 3)
    got = ops.rope(jnp.asarray(q.swapaxes(1, 2)), jnp.asarray(np.moveaxis(position, 0, -1)), THETA, axes)
    np.testing.assert_allclose(np.asarray(got).swapaxes(1, 2), want.numpy(), atol=5e-5)


LLAMA3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512)


@pytest.mark.parametrize(
    ("theirs", "changes", "share"),
    [
        (dict(rope_type="linear", factor=4.0), dict(), 1.0),
        (dict(rope_type="llama3", factor=8.0, **LLAMA3), dict(length=512), 1.0),
        (dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=512), dict(length=512), 1.0),
        (
            dict(
                rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=8.0, attention_factor=0.9
            ),
            dict(length=64, most_turns=8.0, amplitude=0.9),
            1.0,
        ),
        (dict(rope_type="default"), dict(), 0.75),
    ],
)
def test_wavelengths_are_stretched_as_published_and_a_part_of_a_head_turns(theirs, changes, share):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 3, 11, HEAD)).astype("f")  # [B, N, T, H]
    position = rng.integers(0, 600, (2, 11))
    sizes = dict(hidden_size=HEAD * 2, num_attention_heads=2, max_position_embeddings=4096, pad_token_id=0)
    rope = theirs | dict(rope_theta=THETA, partial_rotary_factor=share)
    if share == 1:
        embedding = modeling_llama.LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_parameters=rope))
    else:  # Llama's own cannot turn a part
        embedding = modeling_phi3.Phi3RotaryEmbedding(Phi3Config(**sizes, rope_parameters=rope))
    cos, sin = embedding(torch.tensor(q), torch.tensor(position))
    want, _ = modeling_phi3.apply_rotary_pos_emb(torch.tensor(q), torch.tensor(q), cos, sin)
    kind = theirs["rope_type"].replace("default", "")
    scaling = RopeScaling(**rope_scaling(kind, theirs.get("factor", 1.0), **changes))
    got = ops.rope(
        jnp.asarray(q.swapaxes(1, 2)), jnp.asarray(position[..., None]), THETA, (), int(share * HEAD) // 2, scaling
    )
    np.testing.assert_allclose(np.asarray(got).swapaxes(1, 2), want.numpy(), atol=3e-4)

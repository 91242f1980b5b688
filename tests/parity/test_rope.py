"""RoPE by sections, and the integers that it reads, against transformers' Qwen2-VL and Qwen3-VL."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl import configuration_qwen2_vl, modeling_qwen2_vl
from transformers.models.qwen3_vl import configuration_qwen3_vl, modeling_qwen3_vl

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

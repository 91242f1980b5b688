"""Token choice against published blocks: Mixtral's and Qwen2-MoE's, tiny, with random weights."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import MixtralConfig, Qwen2MoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from configs.base import moe
from mot.batches import length
from mot.config import resolve
from mot.data.packing import document, pack
from mot.model import layers, params, transformer
from mot.model.context import Context
from mot.model.joint import join
from tests.support import examples

SIZES = dict(hidden_size=16, num_attention_heads=4, vocab_size=24)
QWEN = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, shared_expert_intermediate_size=20)
BLOCKS = {
    "mixtral": (
        lambda: MixtralSparseMoeBlock(
            MixtralConfig(intermediate_size=12, num_local_experts=4, num_experts_per_tok=2, **SIZES)
        ),
        moe(4, width=12, active=2, normalise=True),
    ),
    "qwen2_moe": (
        lambda: Qwen2MoeSparseMoeBlock(Qwen2MoeConfig(norm_topk_prob=False, **QWEN, **SIZES)),
        moe(4, width=12, active=2, shared=20, shared_gate=True),
    ),
}


def filled(block):
    """Random weights; a block alone leaves its experts' uninitialised."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in block.parameters():
            weight.copy_(0.4 * torch.randn_like(weight))
    return block.eval().float()


def ours(block):
    """The block's weights under our names."""

    def numpy(x):
        return jnp.asarray(x.detach().numpy())

    gate, up = np.split(np.asarray(numpy(block.experts.gate_up_proj)), 2, axis=1)
    w = {"router": numpy(block.gate.weight).T, "w1": jnp.asarray(gate).swapaxes(1, 2)}
    w |= {"w3": jnp.asarray(up).swapaxes(1, 2), "w2": numpy(block.experts.down_proj).swapaxes(1, 2)}
    if hasattr(block, "shared_expert"):
        shared = block.shared_expert
        for name, layer in (("w1", shared.gate_proj), ("w3", shared.up_proj), ("w2", shared.down_proj)):
            w[f"shared_{name}"] = numpy(layer.weight).T
        w["shared_gate"] = numpy(block.shared_expert_gate.weight).T
    return w


@pytest.mark.parametrize("how", ["einsum", "blocked", "ragged"])
@pytest.mark.parametrize("name", BLOCKS)
def test_token_choice_equals_a_published_block(name, how):
    make, chosen = BLOCKS[name]
    block = filled(make())
    tree = examples.tree("dense", dispatch=how)
    tree.ffn.text = chosen
    c, rng = resolve(tree), np.random.default_rng(0)
    T, rows = 20, 3
    tokens = rng.integers(0, 2 * examples.IDS, (rows, T))
    tokens = np.sort(tokens, axis=1)  # text first: stream order is document order
    batch = pack([[document(0, 0, row, row >= examples.IDS)] for row in tokens], list(c.streams), (24, 24))
    x_BTD = rng.standard_normal((rows, T, 16)).astype("f")
    padded = np.zeros((rows, 48, 16), "f")
    padded[:, :T] = x_BTD
    weights = ours(block)
    expected = {path.split("/")[4] for path in params.table(c) if path.startswith("blocks/sparse/ffn/text/")}
    assert set(weights) == expected
    groups = [transformer.merge(batch, list(c.streams), c, length(batch))]
    row = join(groups, c.mesh.rules, length(batch))
    context = Context(c, groups, [None], row, None, False, None, towers=c.towers_in(c.stacks[-1]))
    (y_RD,), _ = layers.feed_forward([jnp.asarray(padded.reshape(-1, 16))], {"text": weights}, context)
    with torch.no_grad():
        theirs = block(torch.tensor(x_BTD)).numpy()
    np.testing.assert_allclose(np.asarray(y_RD).reshape(rows, 48, 16)[:, :T], theirs, atol=1e-5)

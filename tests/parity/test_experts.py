"""Token choice against published blocks, tiny, with random weights; and the balance loss that they share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import DeepseekV3Config, MixtralConfig, Qwen2MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from configs.base import moe
from mot.batches import length
from mot.config import resolve
from mot.data.packing import document, pack
from mot.model import layers, params, router, transformer
from mot.model.context import Context
from mot.model.joint import join
from mot.objectives import losses
from tests.support import examples

SIZES = dict(hidden_size=16, num_attention_heads=4, vocab_size=24)
QWEN = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, shared_expert_intermediate_size=20)
DEEPSEEK = dict(n_routed_experts=12, num_experts_per_tok=3, n_group=4, topk_group=2, routed_scaling_factor=2.5)
DEEPSEEK |= dict(n_shared_experts=2, moe_intermediate_size=12)
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
    "deepseek_v3": (
        lambda: DeepseekV3MoE(DeepseekV3Config(**DEEPSEEK, **SIZES)),
        moe(
            12,
            width=12,
            active=3,
            shared=24,
            score="sigmoid",
            normalise=True,
            weight_scale=2.5,
            groups=4,
            active_groups=2,
            balance="bias",
        ),
    ),
}


def filled(block):
    """Random weights; a block alone leaves its experts' uninitialised."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in block.parameters():
            weight.copy_(0.4 * torch.randn_like(weight))
        for bias in block.buffers():  # DeepSeek-V3's, which no gradient moves
            bias.copy_(0.2 * torch.randn_like(bias))
    return block.eval().float()


def ours(block):
    """The block's weights under our names."""

    def numpy(x):
        return jnp.asarray(x.detach().numpy())

    gate, up = np.split(np.asarray(numpy(block.experts.gate_up_proj)), 2, axis=1)
    w = {"router": numpy(block.gate.weight).T, "w1": jnp.asarray(gate).swapaxes(1, 2)}
    w |= {"w3": jnp.asarray(up).swapaxes(1, 2), "w2": numpy(block.experts.down_proj).swapaxes(1, 2)}
    if hasattr(block.gate, "e_score_correction_bias"):
        w["router_bias"] = numpy(block.gate.e_score_correction_bias)
    shared = getattr(block, "shared_expert", getattr(block, "shared_experts", None))
    if shared is not None:
        for name, layer in (("w1", shared.gate_proj), ("w3", shared.up_proj), ("w2", shared.down_proj)):
            w[f"shared_{name}"] = numpy(layer.weight).T
    if hasattr(block, "shared_expert_gate"):
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


def test_the_pooled_balance_loss_is_transformers():
    """Of three layers and rows with padding; ours by rows is another number."""
    E, active = 6, 2
    tree = examples.tree("moe_tc4")
    tree.ffn.text.update(experts=E, active=active, balance="pooled", balance_rate=1.0, z_loss=0.0)
    c = resolve(tree)
    rng = np.random.default_rng(0)
    logits_LBCE = 2 * rng.standard_normal((3, 4, 10, E)).astype("f") + rng.standard_normal(E).astype("f")
    real_BC = np.arange(10)[None] < np.array([10, 7, 3, 9])[:, None]

    def ours(logits_LBCE, experts=c.ffn["text"], c=c):
        def layer(logits_BCE):
            places_BC = jnp.tile(jnp.arange(10), (4, 1))
            traffic = router.Traffic(logits_BCE, None, places_BC, real_BC, places_BC, jnp.zeros_like(places_BC))
            return router.route(traffic, {"router": jnp.eye(E)}, experts, 1)[1]

        reports = [layer(logits_BCE) for logits_BCE in logits_LBCE]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *reports)
        return losses.routing({"ffn/text": stacked}, {"ffn/text": jnp.float32(real_BC.sum())}, c)

    got, gradient = jax.value_and_grad(ours)(jnp.asarray(logits_LBCE))
    given = torch.tensor(logits_LBCE, requires_grad=True)
    want = load_balancing_loss_func(tuple(given.reshape(3, 40, E)), E, active, torch.tensor(real_BC))
    want.backward()
    np.testing.assert_allclose(got, want.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, given.grad, atol=1e-6)
    tree.ffn.text.balance = "loss"
    by_rows = resolve(tree)
    assert ours(jnp.asarray(logits_LBCE), by_rows.ffn["text"], by_rows) > 1.2 * got

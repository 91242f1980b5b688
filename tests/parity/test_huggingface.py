"""The dense configuration against published implementations: hidden states of tiny models with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    ChameleonConfig,
    ChameleonModel,
    ChameleonVQVAEConfig,
    GemmaConfig,
    GemmaModel,
    LlamaConfig,
    LlamaModel,
    Qwen2Config,
    Qwen2Model,
)

from mot.config import resolve
from mot.data.packing import document, pack
from mot.model import params, transformer
from tests.support import examples
from tests.support.arrays import in_document_order
from tests.support.networks import shaken

SIZES = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=2 * examples.IDS,
    rms_norm_eps=1e-5,
    pad_token_id=None,
    tie_word_embeddings=False,
)
BUDGETS = (24, 24)


def ours(network, c):
    """The network's weights under our paths."""

    def numpy(x):
        return x.detach().numpy()

    layers = network.layers
    m = c.model

    def stack(f):
        return jnp.asarray(np.stack([f(layer) for layer in layers]))

    def heads(name, n):
        return stack(lambda x: numpy(getattr(x.self_attn, f"{name}_proj").weight).T.reshape(-1, n, m.head_size))

    def matrix(name):
        return stack(lambda x: numpy(getattr(x.mlp, f"{name}_proj").weight).T)

    flat = {
        "embed/tokens": jnp.asarray(numpy(network.embed_tokens.weight)),
        "blocks/main/attn/text/wq": heads("q", m.heads),
        "blocks/main/attn/text/wk": heads("k", m.kv_heads),
        "blocks/main/attn/text/wv": heads("v", m.kv_heads),
        "blocks/main/attn/text/wo": stack(
            lambda x: numpy(x.self_attn.o_proj.weight).T.reshape(m.heads, m.head_size, -1)
        ),
        "blocks/main/ffn/text/w1": matrix("gate"),
        "blocks/main/ffn/text/w3": matrix("up"),
        "blocks/main/ffn/text/w2": matrix("down"),
        "blocks/main/norm/text/attn": stack(lambda x: numpy(x.input_layernorm.weight)),
        "blocks/main/norm/text/ffn": stack(lambda x: numpy(x.post_attention_layernorm.weight)),
        "final_norm/text/scale": jnp.asarray(numpy(network.norm.weight)),
    }
    if m.qkv_bias:
        for x, n in (("q", m.heads), ("k", m.kv_heads), ("v", m.kv_heads)):
            flat[f"blocks/main/attn/text/{x}_bias"] = stack(
                lambda y, x=x, n=n: numpy(getattr(y.self_attn, f"{x}_proj").bias).reshape(n, m.head_size)
            )
    if m.qk_norm == "layer":
        for x in "qk":
            flat[f"blocks/main/attn/text/{x}_norm"] = stack(
                lambda y, x=x: numpy(getattr(y.self_attn, f"{x}_norm").weight)
            )
            flat[f"blocks/main/attn/text/{x}_norm_bias"] = stack(
                lambda y, x=x: numpy(getattr(y.self_attn, f"{x}_norm").bias)
            )
    specs = params.table(c)
    for path, value in flat.items():
        assert value.shape == specs[path].shape, path
    return params.nest(flat)


def agree(network, tolerance=1e-4, **choices):
    """Hidden states of a mixed document, ours in two streams, theirs in one sequence."""
    tree = examples.tree("dense", BUDGETS, layers=3, head_size=4, **choices)
    c = resolve(tree)
    rng = np.random.default_rng(0)
    stream = rng.permutation(np.repeat([0, 1], BUDGETS))
    ids = rng.integers(0, examples.IDS, len(stream)) + examples.IDS * stream
    batch = pack([[document(0, 0, ids, stream)]], examples.STREAMS, BUDGETS)
    with torch.no_grad():
        theirs = network(input_ids=torch.tensor(ids)[None]).last_hidden_state.numpy()
    states = jax.jit(lambda w: in_document_order(transformer.forward(w, batch, c).hidden))(ours(network, c))
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(states, theirs, atol=tolerance)


def test_llama():
    agree(shaken(LlamaModel(LlamaConfig(**SIZES))), qk_norm="none")


def test_gemma():
    """GELU by tanh, norms of 1 + w, embeddings times the root of the width."""
    network = GemmaModel(GemmaConfig(**SIZES, head_dim=4, hidden_activation="gelu_pytorch_tanh"))
    agree(shaken(network), 1e-5, qk_norm="none", activation="geglu", norm_offset=True, embed_scale=True)


def test_qwen2():
    """Queries, keys and values with biases."""
    agree(shaken(Qwen2Model(Qwen2Config(**SIZES))), 1e-5, qk_norm="none", qkv_bias=True)


@pytest.mark.parametrize(("swin", "norm"), [(False, "pre"), (True, "post")])
def test_chameleon_in_both_norm_forms(swin, norm):
    vq = ChameleonVQVAEConfig(
        embed_dim=8,
        num_embeddings=8,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1],
        num_res_blocks=1,
        resolution=16,
    )
    network = ChameleonModel(
        ChameleonConfig(**SIZES, swin_norm=swin, vq_config=vq.to_dict(), vocabulary_map={"<image>": 1})
    )
    agree(shaken(network), qk_norm="layer", norm=norm)

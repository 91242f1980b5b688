"""Tiny models of the publisher's own classes, saved by them, imported, and exported: `mot import`, `mot export`."""

import copy
import shutil

import jax
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from mot.data.packing import document, pack
from mot.interop import families, prompt, shards
from mot.interop.transforms import TRANSFORMS
from mot.model import params, transformer
from mot.train import restore
from tests.support import published
from tests.support.commands import succeeds
from tests.support.networks import shaken

SIZES = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    rope_parameters=dict(rope_type="default", rope_theta=5000.0),
    max_position_embeddings=96,
)
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=4.0, original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=32)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2)
IDS = published.IDS + 5
# Fewer rows than mot has ids, rows for more ids than there are, and as many; whole and in shards.
CASES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, vocab_size=published.IDS), "1GB"),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, vocab_size=IDS + 15, tie_word_embeddings=True), "8KB"),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, vocab_size=IDS + 3, head_dim=8), "8KB"),
    "gemma": (GemmaForCausalLM, GemmaConfig(**SIZES, vocab_size=IDS, head_dim=8), "1GB"),
    "llama with llama3's rope": (
        LlamaForCausalLM,
        LlamaConfig(
            **SIZES | dict(rope_parameters=LLAMA3 | dict(low_freq_factor=1.0, high_freq_factor=4.0)), vocab_size=IDS
        ),
        "1GB",
    ),
    "qwen2 with yarn": (
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES | dict(rope_parameters=YARN), vocab_size=IDS),
        "1GB",
    ),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, vocab_size=IDS, sliding_window=32), "1GB"),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(
            **SIZES,
            vocab_size=IDS,
            head_dim=8,
            query_pre_attn_scalar=5,
            attn_logit_softcapping=0.7,
            final_logit_softcapping=3.0,
            sliding_window=32,
            attn_implementation="eager",
        ),
        "1GB",
    ),
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig(**SIZES, vocab_size=IDS, num_local_experts=4, num_experts_per_tok=2),
        "8KB",
    ),
    "qwen2_moe": (
        Qwen2MoeForCausalLM,
        Qwen2MoeConfig(
            **SIZES, **EXPERTS, vocab_size=IDS, moe_intermediate_size=12, shared_expert_intermediate_size=20
        ),
        "8KB",
    ),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(
            **SIZES | dict(num_hidden_layers=3),
            **EXPERTS,
            vocab_size=IDS + 3,
            head_dim=8,
            moe_intermediate_size=12,
            norm_topk_prob=True,
            mlp_only_layers=[0],
        ),
        "1GB",
    ),
    "olmoe": (OlmoeForCausalLM, OlmoeConfig(**SIZES, **EXPERTS, vocab_size=IDS), "1GB"),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config(**SIZES, vocab_size=IDS), "1GB"),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("published") / "texts")


def saved(name, folder, texts):
    """A model of random weights, whose folder is written."""
    of, config, most = CASES[name]
    model = shaken(of(config))
    model.save_pretrained(folder, max_shard_size=most)
    shutil.copy(texts / "tokenizer.json", folder)
    return model


def loss(weights, config, ids):
    """Mean cross entropy of a text's next ids, and the logits."""
    batch = pack([[document(0, 0, ids, np.zeros(len(ids)))]], ("text",), (len(ids),))
    ((h_RD, _),) = transformer.forward(weights, batch, config).hidden
    logits_TV = transformer.logits(h_RD, transformer.head(weights, config), config)
    logits_TV = logits_TV[:, : published.IDS]  # of ids that both have
    log_p = jax.nn.log_softmax(logits_TV[:-1])
    return -log_p[np.arange(len(ids) - 1), ids[1:]].mean(), logits_TV


def theirs(model, ids):
    logits = model(input_ids=torch.tensor(ids)[None].long()).logits[0][:, : published.IDS]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]).long()), logits


def gradients(model, folder):
    """The model's gradients by the names of its files: there experts lie apart, and in its memory together."""
    slopes = copy.deepcopy(model)
    with torch.no_grad():
        for weight, of in zip(slopes.parameters(), model.parameters(), strict=True):
            weight.copy_(of.grad)
    slopes.save_pretrained(folder)
    return dict(shards.tensors(shards.headers(folder), "gradients"))


@pytest.mark.parametrize("name", CASES)
def test_logits_gradients_and_tensors_there_and_back(name, tmp_path, texts):
    model = saved(name, tmp_path / "hf", texts)
    out, _ = succeeds("import", tmp_path / "hf", f"--data={texts / 'data'}", f"--out={tmp_path / 'run'}")
    assert ("its attention looks back 32 tokens" in out) == (name in ("mistral", "gemma2"))
    config, position, weights = restore.load(tmp_path / "run")
    assert position.step == 0
    ids = np.random.default_rng(1).integers(0, published.IDS, 24).astype(np.int32)
    value, logits = theirs(model, ids)
    value.backward()
    (ours, our_logits), gradient = jax.jit(jax.value_and_grad(lambda w: loss(w, config, ids), has_aux=True))(weights)
    assert np.abs(logits.detach().numpy()).max() > 1
    np.testing.assert_allclose(our_logits, logits.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(ours, value.item(), atol=1e-5)
    slopes = gradients(model, tmp_path / "slopes")
    flat = params.paths(gradient)
    rows = families.rows_of(families.of_ours(config, "run"), config)
    for theirs_name, own in families.pieces(rows, config, config.vocab).items():
        parts = [TRANSFORMS[x.transform].to_theirs(np.asarray(flat[x.ours][x.index])) for x in own]
        found = np.concatenate(parts)
        wanted = slopes[theirs_name]
        n = min(len(found), len(wanted))  # ids that both have
        np.testing.assert_allclose(found[:n], wanted[:n], atol=1e-4, err_msg=theirs_name)
    back = tmp_path / "back"
    out, _ = succeeds("export", tmp_path / "run", f"--out={back}", "--format=hf", "--shard-mb=1")
    assert "the logits are those that the import stored" in out
    again = AutoModelForCausalLM.from_pretrained(back)
    assert type(again) is (LlamaForCausalLM if name == "mistral" else type(model))  # without its window it is one
    for key, tensor in model.state_dict().items():
        found = again.state_dict()[key]
        assert torch.equal(found[: len(tensor)], tensor), key  # mot's special tokens come after theirs
        assert (
            len(found) == max(len(tensor), IDS) if "embed" in key or "lm_head" in key else found.shape == tensor.shape
        )
    np.testing.assert_allclose(theirs(again.eval(), ids)[1].detach(), logits.detach(), atol=1e-5)
    stored = np.load(back / "prompt.npz")
    tokenizer = AutoTokenizer.from_pretrained(back)
    assert tokenizer(prompt.TEXT)["input_ids"][: prompt.LONGEST] == stored["ids"].tolist()
    with torch.no_grad():
        now = again(input_ids=torch.tensor(stored["ids"])[None].long()).logits[0]
    np.testing.assert_allclose(stored["logits"], now[:, : stored["logits"].shape[1]], atol=1e-4)

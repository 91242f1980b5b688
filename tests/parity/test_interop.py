"""Tiny models of the publisher's own classes, saved by them, imported, and exported: `mot import`, `mot export`."""

import shutil

import jax
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mot.data.packing import document, pack
from mot.interop import families, prompt
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
IDS = published.IDS + 5
# Fewer rows than mot has ids, rows for more ids than there are, and as many; whole and in shards.
CASES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, vocab_size=published.IDS), "1GB"),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, vocab_size=IDS + 15, tie_word_embeddings=True), "8KB"),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, vocab_size=IDS + 3, head_dim=8), "8KB"),
    "gemma": (GemmaForCausalLM, GemmaConfig(**SIZES, vocab_size=IDS, head_dim=8), "1GB"),
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
    logits_TV = h_RD @ transformer.head(weights, config)
    logits_TV = logits_TV[:, : published.IDS]  # of ids that both have
    log_p = jax.nn.log_softmax(logits_TV[:-1])
    return -log_p[np.arange(len(ids) - 1), ids[1:]].mean(), logits_TV


def theirs(model, ids):
    logits = model(input_ids=torch.tensor(ids)[None].long()).logits[0][:, : published.IDS]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]).long()), logits


@pytest.mark.parametrize("name", CASES)
def test_logits_gradients_and_tensors_there_and_back(name, tmp_path, texts):
    model = saved(name, tmp_path / "hf", texts)
    succeeds("import", tmp_path / "hf", f"--data={texts / 'data'}", f"--out={tmp_path / 'run'}")
    config, position, weights = restore.load(tmp_path / "run")
    assert position.step == 0
    ids = np.random.default_rng(1).integers(0, published.IDS, 24).astype(np.int32)
    value, logits = theirs(model, ids)
    value.backward()
    (ours, our_logits), gradient = jax.jit(jax.value_and_grad(lambda w: loss(w, config, ids), has_aux=True))(weights)
    assert np.abs(logits.detach().numpy()).max() > 1
    np.testing.assert_allclose(our_logits, logits.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(ours, value.item(), atol=1e-5)
    gradients = dict(model.named_parameters())
    flat = params.paths(gradient)
    rows = families.rows_of(name, config)
    for theirs_name, own in families.pieces(rows, config, config.vocab).items():
        parts = [TRANSFORMS[x.transform].to_theirs(np.asarray(flat[x.ours][x.index])) for x in own]
        found = np.concatenate(parts)
        wanted = gradients[theirs_name].grad.numpy()
        n = min(len(found), len(wanted))  # ids that both have
        np.testing.assert_allclose(found[:n], wanted[:n], atol=1e-4, err_msg=theirs_name)
    back = tmp_path / "back"
    out, _ = succeeds("export", tmp_path / "run", f"--out={back}", "--format=hf", "--shard-mb=1")
    assert "the logits are those that the import stored" in out
    again = AutoModelForCausalLM.from_pretrained(back)
    assert type(again) is type(model)
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

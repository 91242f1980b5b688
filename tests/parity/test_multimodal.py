"""Tiny models of several modalities, of the publisher's own classes, saved by them, imported, and exported."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
from transformers import AutoConfig, ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig

from mot.data.packing import document, pack
from mot.interop import families
from mot.interop.transforms import TRANSFORMS
from mot.model import params, transformer
from mot.train import restore
from tests.support import published
from tests.support.arrays import in_document_order
from tests.support.commands import succeeds
from tests.support.networks import shaken

CODES = 6  # of images
IDS = published.IDS + 5  # with special tokens of mot's
ORDER = [4, 1, 0, 5, 3, 2]  # in which their ids lie amid text's, from id 2 on
FIRST = 2
NAMES = ["IMGIMG" + chr(ord("A") + code) + "Z" for code in ORDER]
VQ = ChameleonVQVAEConfig(
    embed_dim=8,
    num_embeddings=CODES,
    latent_channels=8,
    base_channels=32,
    channel_multiplier=[1],
    num_res_blocks=1,
    resolution=16,
)


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    return published.codes(tmp_path_factory.mktemp("codes") / "codes", ("<unk>", "<s>", *NAMES), CODES)


def chameleon(folder, codes, swin=False):
    """A model of random weights, whose folder is written: rows for fewer ids than mot has."""
    vocabulary = json.loads((codes / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    config = ChameleonConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        swin_norm=swin,
        rope_parameters=dict(rope_type="default", rope_theta=5000.0),
        max_position_embeddings=96,
        vocab_size=published.IDS,
        vq_config=VQ.to_dict(),
        vocabulary_map=vocabulary | {"<image>": 1},
    )
    model = shaken(ChameleonForConditionalGeneration(config))
    model.save_pretrained(folder, max_shard_size="20KB")
    shutil.copy(codes / "tokenizer.json", folder)
    return model


def compare_gradients(name, config, gradient, model):
    """Those of our parameters with those of their tensors, but for ids that they do not have."""
    flat, theirs = params.paths(gradient), {key: x.grad for key, x in model.named_parameters()}
    seen = 0
    for key, pieces in families.pieces(families.rows_of(name, config), config, config.vocab).items():
        for piece in pieces:
            found = TRANSFORMS[piece.transform].to_theirs(np.asarray(flat[piece.ours][piece.index]))
            if piece.ours in ("embed/tokens", "head/out") and name == "chameleon":
                found = found.copy()
                found[FIRST + np.array([ORDER.index(code) for code in range(CODES)])] = found[FIRST : FIRST + CODES]
            wanted = theirs[key].numpy()
            n = min(len(found), len(wanted))
            np.testing.assert_allclose(found[:n], wanted[:n], atol=1e-4, err_msg=key)
            seen += 1
    assert seen > 20


@pytest.mark.parametrize("swin", [False, True])
def test_chameleon(swin, tmp_path, codes):
    model = chameleon(tmp_path / "hf", codes, swin)
    run, back = tmp_path / "run", tmp_path / "back"
    out, _ = succeeds("import", tmp_path / "hf", f"--data={codes / 'data'}", f"--out={run}")
    assert "are outside of this model (model.vqmodel.encoder, model.vqmodel.post_quant_conv" in out
    config, position, weights = restore.load(run)
    assert (position.step, config.model.norm) == (0, "post" if swin else "pre")
    assert (config.streams["image"].first_id, config.streams["image"].ids, config.vocab) == (FIRST, CODES, IDS)

    rng = np.random.default_rng(1)
    stream = np.repeat([0, 1, 0], [7, 9, 8])
    image = rng.integers(0, CODES, 9)
    text = rng.integers(FIRST + CODES, published.IDS, 24)
    ids, their_ids = text.copy(), text.copy()
    ids[stream == 1] = FIRST + image
    their_ids[stream == 1] = [FIRST + ORDER.index(code) for code in image]
    batch = pack([[document(0, 0, ids, stream)]], ("text", "image"), (15, 9))

    def loss(w):
        states = in_document_order(transformer.forward(w, batch, config).hidden)
        logits_TV = (states.reshape(24, -1) @ transformer.head(w, config))[:, : published.IDS]
        return -jax.nn.log_softmax(logits_TV[:-1])[np.arange(23), ids[1:]].mean(), logits_TV

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    their_tokens = torch.tensor(their_ids)[None].long()
    their_logits = model.lm_head(model.model(input_ids=their_tokens).last_hidden_state)[0]
    their_loss = torch.nn.functional.cross_entropy(their_logits[:-1], their_tokens[0, 1:])
    their_loss.backward()
    there = np.arange(published.IDS)
    there[FIRST : FIRST + CODES] = [FIRST + ORDER.index(code) for code in range(CODES)]
    assert np.abs(their_logits.detach().numpy()).max() > 1
    np.testing.assert_allclose(logits, their_logits.detach().numpy()[:, there], atol=1e-4)
    np.testing.assert_allclose(value, their_loss.item(), atol=1e-5)
    compare_gradients("chameleon", config, gradient, model)

    succeeds("export", run, f"--out={back}", "--format=hf", "--shard-mb=1")
    again = ChameleonForConditionalGeneration.from_pretrained(back)
    for key, tensor in model.state_dict().items():
        found = again.state_dict()[key]
        assert torch.equal(found[: len(tensor)], tensor), key  # mot's special tokens come after theirs
        assert len(found) == (IDS if "embed_tokens" in key or "lm_head" in key else len(tensor))
    saved = AutoConfig.from_pretrained(back)
    assert saved.vq_config.to_dict() == model.config.vq_config.to_dict()
    assert saved.vocabulary_map == model.config.vocabulary_map
    stored = np.load(back / "prompt.npz")
    with torch.no_grad():
        now = again.eval()(input_ids=torch.tensor(stored["ids"])[None].long()).logits[0].numpy()
    is_text = ~np.isin(np.arange(IDS), range(FIRST, FIRST + CODES))  # their class forbids images' ids
    np.testing.assert_allclose(stored["logits"][:, is_text], now[:, is_text], atol=1e-4)
    out, _ = succeeds("import", back, f"--data={codes / 'data'}", f"--out={tmp_path / 'again'}")
    assert "the logits stored beside the weights are those of the run's" in out
    for path, x in params.paths(restore.load(tmp_path / "again")[2]).items():
        np.testing.assert_array_equal(x, params.paths(weights)[path], err_msg=path)

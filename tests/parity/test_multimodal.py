"""Tiny models of several modalities, of the publisher's own classes, saved by them, imported, and exported."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeForConditionalGeneration,
    PI0Config,
    PI0ForConditionalGeneration,
)

from mot.data import positions, roles
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
    torch.manual_seed(1)
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


PI0_NAMES = (
    (r"^paligemma_with_expert\.paligemma\.model\.language_model\.model\.", "model.vlm.language_model."),
    (r"^paligemma_with_expert\.paligemma\.model\.", "model.vlm."),
    (r"^paligemma_with_expert\.gemma_expert\.model\.", "model.dit."),
    (r"^(state_proj|action_in_proj|action_time)", r"embed_action_time.\1"),
)


def compare_pi0_gradients(config, gradient, theirs):
    flat, seen = params.paths(gradient), 0
    for key, (piece,) in families.pieces(families.rows_of("pi0", config), config, config.vocab).items():
        for pattern, new in PI0_NAMES:
            key = re.sub(pattern, new, key)
        found = TRANSFORMS[piece.transform].to_theirs(np.asarray(flat[piece.ours][piece.index]))
        wanted = 0 * theirs[key].detach().numpy() if theirs[key].grad is None else theirs[key].grad.numpy()
        n = min(len(found), len(wanted))
        np.testing.assert_allclose(found[:n], wanted[:n], atol=1e-4, err_msg=key)
        seen += theirs[key].grad is not None
    return seen


@pytest.mark.parametrize("swin", [False, True])
def test_chameleon(swin, tmp_path, codes):
    model = chameleon(tmp_path / "hf", codes, swin)
    run, back = tmp_path / "run", tmp_path / "back"
    out, _ = succeeds("import", tmp_path / "hf", f"--data={codes / 'data'}", f"--out={run}")
    assert "are outside of this model (model.vqmodel); they are kept for an export" in out
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


HEADS = dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=8, rms_norm_eps=1e-6)
VISION = dict(
    hidden_size=12,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
    vision_use_head=False,
)


def pi0(folder, texts):
    """A model of random weights, whose folder is written; each of two images is four patches."""
    of_text = dict(model_type="gemma", hidden_size=16, intermediate_size=24, vocab_size=published.IDS, **HEADS)
    vision = dict(model_type="siglip_vision_model", vocab_size=published.IDS, **VISION)
    config = PI0Config(
        vlm_config=dict(
            model_type="paligemma",
            text_config=of_text,
            vision_config=vision,
            projection_dim=16,
            image_token_id=published.IDS,
        ),
        dit_config=dict(model_type="gemma", hidden_size=12, intermediate_size=20, **HEADS),
        chunk_size=5,
        max_state_dim=4,
        max_action_dim=3,
    )
    torch.manual_seed(1)
    model = shaken(PI0ForConditionalGeneration(config))
    model.save_pretrained(folder, max_shard_size="20KB")
    shutil.copy(texts / "tokenizer.json", folder)
    return model


def test_pi0(tmp_path, codes):
    model, data = pi0(tmp_path / "hf", codes), published.robot(tmp_path / "robot", codes) / "data"
    run, back = tmp_path / "run", tmp_path / "back"
    out, _ = succeeds("import", tmp_path / "hf", f"--data={data}", f"--out={run}")
    assert "vision_tower" in out
    config, position, weights = restore.load(run)
    assert position.step == 0
    names = list(config.streams)

    rng = np.random.default_rng(1)
    ids = rng.integers(0, published.IDS, 6)
    pixels = torch.tensor(rng.standard_normal((1, 2, 3, 28, 28)).astype("f"))
    with torch.no_grad():
        features = model.model.vlm.vision_tower(pixels[0]).last_hidden_state.reshape(8, 12)
    state, noise, actions = (rng.standard_normal(shape).astype("f") for shape in ((1, 4), (5, 3), (5, 3)))
    t, g = np.float32(0.7), rng.standard_normal((5, 3)).astype("f")
    their_ids = torch.tensor([published.IDS] * 8 + ids.tolist())[None]
    velocity = model(
        state=torch.tensor(state),
        noise=torch.tensor(noise)[None],
        actions=torch.tensor(actions)[None],
        timestep=torch.tensor([t]),
        input_ids=their_ids,
        pixel_values=pixels,
        pixel_attention_mask=torch.ones((1, 2), dtype=torch.bool),
        attention_mask=torch.ones_like(their_ids),
    ).logits[0]
    (velocity * torch.tensor(g)).sum().backward()

    stream = np.repeat([names.index(s) for s in ("latents", "text", "state", "chunk")], [8, 6, 1, 5])
    unit = np.repeat([1, 2, 0, 3, 4], [4, 4, 6, 1, 5])
    token = np.zeros(20, int)
    token[8:14] = ids
    noised = t * noise + (1 - t) * actions
    values = {names.index("latents"): features.numpy(), names.index("state"): state, names.index("chunk"): noised}
    d = roles.assign(document(0, 0, token, stream, values, unit=unit), list(config.streams.values()), "prefix", 0)
    d = d._replace(noise=d.noise * t)
    sizes = {"text": 6, "latents": 8, "state": 1, "chunk": 5}
    widths = [config.streams[name].latent for name in names]
    batch = pack([[d]], names, [sizes[name] for name in names], widths)

    def dot(w):
        found = transformer.forward(w, batch, config).latents["chunk"][0]
        return (found * g).sum(), found

    (_, found), gradient = jax.jit(jax.value_and_grad(dot, has_aux=True))(weights)
    assert np.abs(velocity.detach().numpy()).max() > 0.3
    np.testing.assert_allclose(found, velocity.detach().numpy(), atol=1e-4)
    theirs = {f"{key}": x for key, x in model.named_parameters()}
    seen = compare_pi0_gradients(config, gradient, theirs)
    assert seen > 40

    succeeds("export", run, f"--out={back}", "--format=hf", "--shard-mb=1")
    again = PI0ForConditionalGeneration.from_pretrained(back)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key][: len(tensor)], tensor), key


def ernie(folder, texts):
    """A model of random weights, whose folder is written: three layers, of which two have experts by modality."""
    rope = dict(rope_type="default", rope_theta=5000.0, mrope_section=[1, 1, 2])
    text = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1)
    text |= dict(moe_num_experts=4, moe_k=2, moe_num_shared_experts=2, moe_intermediate_size=[12, 8])
    vision = dict(depth=1, hidden_size=16, num_heads=2, intermediate_size=16, patch_size=4)
    config = Ernie4_5_VLMoeConfig(
        text_config=text | dict(vocab_size=published.IDS, rope_parameters=rope), vision_config=vision
    )
    torch.manual_seed(1)
    model = shaken(Ernie4_5_VLMoeForConditionalGeneration(config))
    model.save_pretrained(folder, max_shard_size="20KB")
    shutil.copy(texts / "tokenizer.json", folder)
    return model


def compare_ernie_gradients(config, gradient, theirs):
    """Experts' are stacked in the class, gate and up in one, and the FFN of both modalities is twice in ours."""
    flat, seen = params.paths(gradient), 0
    for copy, of in families.copies("ernie4_5_vl_moe", config).items():
        flat[of] = flat[of] + flat[copy]
    for key, pieces in families.pieces(families.rows_of("ernie4_5_vl_moe", config), config, config.vocab).items():
        found = [TRANSFORMS[p.transform].to_theirs(np.asarray(flat[p.ours][p.index])) for p in pieces]
        found, key = np.concatenate(found), key.replace("model.", "model.language_model.", 1)
        expert = re.fullmatch(r"(.*\.mlp)\.experts\.(\d+)\.(\w+)_proj\.weight", key)
        if expert:
            block, number, which = expert[1], int(expert[2]), expert[3]
            moe = "text_moe" if number < 4 else "vision_moe"
            if which == "down":
                wanted = theirs[f"{block}.{moe}.experts.down_proj"].grad[number % 4]
            else:
                wanted = theirs[f"{block}.{moe}.experts.gate_up_proj"].grad[number % 4].chunk(2)[which == "up"]
        elif "moe_statics" in key:
            continue  # no gradient moves it
        elif ".mlp.gate." in key:
            moe = "vision_moe" if key.endswith("_1") else "text_moe"
            wanted = theirs[re.sub(r"gate\.weight.*", f"{moe}.gate.weight", key)].grad.T
        else:
            wanted = theirs[key].grad
        n = min(len(found), len(wanted))
        np.testing.assert_allclose(found[:n], wanted.numpy()[:n], atol=1e-4, err_msg=key)
        seen += 1
    return seen


def test_ernie(tmp_path, codes):
    """Text and an image of two rows and three columns, whose features are given."""
    model, data = ernie(tmp_path / "hf", codes), published.pictured(tmp_path / "pictured", codes, 16) / "data"
    run, back = tmp_path / "run", tmp_path / "back"
    out, _ = succeeds("import", tmp_path / "hf", f"--data={data}", f"--out={run}")
    assert "are outside of this model (model.vision_model, model.resampler_model)" in out
    config, position, weights = restore.load(run)
    assert (position.step, config.stacks) == (0, ("main", "sparse_1", "sparse_1"))
    assert {tower: e.width for tower, e in config.ffn.items()} == {"text": 12, "latents": 8}

    rng = np.random.default_rng(1)
    stream = np.repeat([0, 1, 0], [4, 6, 5])
    ids = np.where(stream == 0, rng.integers(0, published.IDS, 15), 0)
    image = rng.standard_normal((6, 16)).astype("f")
    place = np.zeros((15, 3), int)
    place[stream == 1] = positions.places((2, 3), 6)
    d = document(0, 0, ids, stream, {1: image}, unit=stream, place=place)
    batch = pack([[d]], ["text", "latents"], [9, 6], [0, 16], positions.rule(config))
    at = np.concatenate([batch["text"].rope_position[0], batch["latents"].rope_position[0]])
    at = at[np.argsort(np.concatenate([batch["text"].position[0], batch["latents"].position[0]]))]
    assert at[3:11].tolist() == [[3, 3, 3], [4, 4, 4], [4, 4, 5], [4, 4, 6], [4, 5, 4], [4, 5, 5], [4, 5, 6], [7, 7, 7]]
    learns = np.flatnonzero((stream[:-1] == 0) & (stream[1:] == 0))

    def loss(w):
        ((h_RD, _),) = transformer.forward(w, batch, config).hidden
        logits_TV = (h_RD @ transformer.head(w, config))[:, : published.IDS]
        rows = np.searchsorted(np.flatnonzero(stream == 0), learns)
        return -jax.nn.log_softmax(logits_TV[rows])[np.arange(len(learns)), ids[learns + 1]].mean(), logits_TV

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    embeds = model.get_input_embeddings()(torch.tensor(ids)[None])
    embeds = torch.where(torch.tensor(stream)[None, :, None] == 1, 0.0, embeds)
    whole = np.zeros((15, 16), "f")
    whole[stream == 1] = image
    states = model.model.language_model(
        inputs_embeds=embeds + torch.tensor(whole)[None],
        position_ids=torch.tensor(at.T)[:, None],
        moe_mm_token_type_ids=torch.tensor(stream)[None],
    ).last_hidden_state
    their_logits = model.lm_head(states)[0]
    their_loss = torch.nn.functional.cross_entropy(their_logits[learns], torch.tensor(ids[learns + 1]))
    their_loss.backward()
    assert np.abs(their_logits.detach().numpy()).max() > 1
    np.testing.assert_allclose(logits, their_logits.detach().numpy()[stream == 0], atol=1e-4)
    np.testing.assert_allclose(value, their_loss.item(), atol=1e-5)
    assert compare_ernie_gradients(config, gradient, dict(model.named_parameters())) > 60

    succeeds("export", run, f"--out={back}", "--format=hf", "--shard-mb=1")
    again = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(back)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key][: len(tensor)], tensor), key
    stored = np.load(back / "prompt.npz")
    with torch.no_grad():
        now = again.eval()(input_ids=torch.tensor(stored["ids"])[None].long()).logits[0].numpy()
    np.testing.assert_allclose(stored["logits"], now, atol=1e-4)

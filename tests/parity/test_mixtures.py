"""Mixtures of transformers: a tiny one of the publisher's class, imported, compared on noised latents, and exported."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import Cosmos3OmniTransformer

from mot.data import packing, positions, roles
from mot.interop import families
from mot.interop.transforms import TRANSFORMS
from mot.model import params, transformer
from mot.train import restore
from tests.oracles import bagel
from tests.support import published
from tests.support.commands import succeeds
from tests.support.networks import shaken

TEXT, ROWS, COLUMNS, FEATURES = 7, 2, 3, 12  # ids before a picture, and its latents
LEVEL = 0.6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures")
    texts = published.write(folder / "texts")
    published.latents(folder / "pictures", texts, FEATURES)
    return folder


def noised(config, after=0):
    """A batch of one text, a noised picture, its clean copy if it has one, and a text of `after` ids."""
    rng = np.random.default_rng(3)
    ids = rng.integers(0, published.IDS, TEXT + after)
    n = ROWS * COLUMNS
    drawn = list(config.streams).index("latents")
    stream = np.repeat([0, drawn, 0], [TEXT, n, after])
    token, place = np.zeros(len(stream), int), np.zeros((len(stream), 3), int)
    token[stream == 0] = ids
    place[stream > 0] = positions.places((ROWS, COLUMNS), n)
    values = {drawn: rng.standard_normal((n, FEATURES))}
    document = packing.document(0, 0, token, stream, values, unit=stream > 0, place=place)
    document = roles.assign(document, list(config.streams.values()), config.data.blocks, 0)
    budgets = [len(ids), n * config.streams["latents"].copies]
    latents = [s.features for s in config.streams.values()]
    batch = packing.pack([[document]], list(config.streams), budgets, latents, positions.rule(config))
    return batch, at_level(batch["latents"], rng)


def at_level(tokens, rng):
    """The latents with those that learn at one level, and what is to be predicted for them."""
    learn = tokens.noise[..., None] > 0
    e = rng.standard_normal(tokens.value.shape).astype(np.float32)
    value = np.where(learn, (1 - LEVEL) * tokens.value + LEVEL * e, tokens.value)
    return tokens.replace(value=value, noise=np.where(learn[..., 0], np.float32(LEVEL), 0)), e - tokens.value


def loss(weights, config, batch, target):
    """Of both: mean cross entropy of the next ids, and squared error of the velocity; with what they are of."""
    output = transformer.forward(weights, batch, config, asked=("latents",))
    ((h_TD, _),) = output.hidden
    logits = (h_TD @ transformer.head(weights, config))[:, : published.IDS]
    velocity = output.latents["latents"][0]
    log_p = jax.nn.log_softmax(logits[:-1])
    ids, learn = batch["text"].token[0], batch["latents"].noise[0] > 0
    of_text = -log_p[np.arange(len(ids) - 1), ids[1:]].mean()
    found = (h_TD, logits, output.states["latents"][0], velocity)
    return of_text + ((velocity[learn] - target[learn]) ** 2).mean(), found


def same(config, weights, batch, target, tensors, theirs):
    """Hidden states, logits, velocities and gradients of an imported run are those of the tensors by their names.

    `theirs` are the first four: of text [T, D] and [T, V], of latents [C, D] and [C, P].
    """
    learn = batch["latents"].noise[0] > 0
    ids = torch.tensor(batch["text"].token[0]).long()
    of_text = torch.nn.functional.cross_entropy(theirs[1][:-1], ids[1:])
    value = of_text + ((theirs[3][learn] - torch.tensor(target[learn])) ** 2).mean()
    value.backward()
    step = jax.jit(jax.value_and_grad(lambda w: loss(w, config, batch, target), has_aux=True))
    (ours, found), gradient = step(weights)
    for a, b in zip(found, theirs, strict=True):
        b = b.detach().numpy()
        assert np.abs(b).max() > 0.5
        np.testing.assert_allclose(a, b, atol=1e-4)
    np.testing.assert_allclose(ours, value.item(), rtol=1e-5)
    flat = params.paths(gradient)
    name = families.of_ours(config, "run")
    pieces = families.pieces(families.rows_of(name, config), config, config.vocab)
    assert pieces.keys() <= tensors.keys()
    for name, own in pieces.items():
        parts = [TRANSFORMS[x.transform].to_theirs(np.asarray(flat[x.ours][x.index])) for x in own]
        wanted = tensors[name].grad
        if wanted is not None:  # the table of places has none
            np.testing.assert_allclose(parts[0][: len(wanted)], wanted.numpy(), atol=1e-4, err_msg=name)


def is_back(found, wanted):
    """Are tensors those that were imported? After rows of theirs come those of mot's special tokens."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name][: len(tensor)], tensor), name
        assert found[name].shape[1:] == tensor.shape[1:]


COSMOS3 = dict(
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    latent_channel=FEATURES // 4,
    patch_latent_dim=FEATURES,
    rope_axes_dim=[2, 1, 1],
    rope_theta=5000.0,
    vocab_size=published.IDS,
    unified_3d_mrope_temporal_modality_margin=30,
)


def cosmos3(network, batch):
    """Pictures are given to it as [channels, 1, height, width], from which it makes tokens of 2 by 2."""
    kept = []
    hooks = [
        norm.register_forward_hook(lambda _, __, y: kept.append(y)) for norm in (network.norm, network.norm_moe_gen)
    ]
    n = ROWS * COLUMNS
    latent = torch.tensor(batch["latents"].value[0]).reshape(1, ROWS, COLUMNS, 2, 2, -1).permute(5, 0, 1, 3, 2, 4)
    latent = latent.reshape(1, -1, 1, 2 * ROWS, 2 * COLUMNS)
    of_picture = torch.arange(TEXT, TEXT + n)
    begins = TEXT + COSMOS3["unified_3d_mrope_temporal_modality_margin"]
    place = [[begins, row, column] for row in range(ROWS) for column in range(COLUMNS)]
    (sample,) = network(
        input_ids=torch.tensor(batch["text"].token[0]),
        text_indexes=torch.arange(TEXT),
        position_ids=torch.tensor([[i] * 3 for i in range(TEXT)] + place).T,
        und_len=TEXT,
        sequence_length=TEXT + n,
        vision_tokens=[latent],
        vision_token_shapes=[(1, ROWS, COLUMNS)],
        vision_sequence_indexes=of_picture,
        vision_mse_loss_indexes=of_picture,
        vision_timesteps=torch.full((n,), 1000 * LEVEL),
        vision_noisy_frame_indexes=[torch.arange(1)],
    ).sample
    for hook in hooks:
        hook.remove()
    velocity = sample.reshape(-1, ROWS, 2, COLUMNS, 2).permute(1, 3, 2, 4, 0).reshape(n, -1)
    return kept[0], network.lm_head(kept[0]), kept[1], velocity


@pytest.mark.parametrize("more", [{}, dict(sound_gen=True, sound_dim=5, action_gen=True, action_dim=3)])
def test_cosmos3(more, data, tmp_path):
    network = shaken(Cosmos3OmniTransformer(**COSMOS3 | more))
    network.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    shutil.copy(data / "texts" / "tokenizer.json", tmp_path / "hf")
    run = tmp_path / "run"
    out, _ = succeeds("import", tmp_path / "hf", f"--data={data / 'pictures' / 'data'}", f"--out={run}")
    assert ("tensors of" in out) == bool(more), "what is outside of the model is told"
    config, _, weights = restore.load(run)
    batch, (batch["latents"], target) = noised(config)
    same(config, weights, batch, target[0], dict(network.named_parameters()), cosmos3(network, batch))
    succeeds("export", run, f"--out={tmp_path / 'back'}", "--format=hf", "--shard-mb=1")
    # Its from_pretrained needs the package accelerate.
    again = Cosmos3OmniTransformer.from_config(Cosmos3OmniTransformer.load_config(tmp_path / "back"))
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "back" / "diffusion_pytorch_model.safetensors"))
    assert again.config.latent_channel == FEATURES // 4
    is_back(again.state_dict(), network.state_dict())


BAGEL = dict(layers=2, head_size=8, theta=5000.0, eps=1e-6, side=4)
BAGEL |= dict(width=32, ffn=24, heads=4, kv_heads=2, features=FEATURES, ids=published.IDS)
AFTER = 3  # ids of text after a picture
CHANGED = {"llm_config", "vocab_size"}  # of a config.json: mot has ids of its own
# What reads pictures, which no model of ours has.
READS = {"vit_model.vision_model.embeddings.patch_embedding.weight": (5, 3), "connector.fc1.bias": (32,)}


def bagel_folder(folder, data):
    """A folder as the publisher has it: the config.json of all, shards and their index."""
    tensors = bagel.weights(BAGEL) | {name: torch.ones(shape) for name, shape in READS.items()}
    llm = dict(hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    llm |= dict(model_type="qwen2", rms_norm_eps=1e-6, rope_theta=5000.0, vocab_size=published.IDS, qk_norm=True)
    about = dict(model_type="bagel", visual_und=True, max_latent_size=BAGEL["side"], llm_config=llm)
    about |= dict(vae_config=dict(z_channels=FEATURES // 4, downsample=8), vit_config=dict(hidden_size=5))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    safetensors.torch.save_file(tensors, folder / "ema.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "ema.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    shutil.copy(data / "texts" / "tokenizer.json", folder)
    return about, tensors


def oracle(w, batch, splits, position):
    """The oracle's states and what they give; splits and positions are of the document's tokens in order."""
    order = np.argsort(np.concatenate([t.position[0] for t in batch.values()]))

    def joined(field):
        return torch.tensor(np.concatenate([getattr(t, field)[0] for t in batch.values()])[order])

    text, latents = batch["text"], batch["latents"]
    is_latent = np.repeat([False, True], [text.token.shape[1], latents.token.shape[1]])[order]
    latent = torch.zeros(len(order), FEATURES)
    latent[is_latent] = torch.tensor(latents.value[0])
    row = dict(token=joined("token").long(), is_latent=torch.tensor(is_latent), latent=latent, level=joined("noise"))
    row |= dict(place=joined("place").long(), position=torch.tensor(position), see=bagel.visible(splits))
    h = bagel.states(w, row, BAGEL)
    logits = h[~is_latent] @ w["language_model.lm_head.weight"].T
    return h[~is_latent], logits, h[is_latent], bagel.linear(h[is_latent], w, "llm2vae")


def as_published(config):
    """The document as BAGEL's own code has it: each copy has markers of its own, which see all of it from its place."""
    rng = np.random.default_rng(4)
    n, lengths = ROWS * COLUMNS, (TEXT, *[ROWS * COLUMNS + 2] * 2, AFTER)
    drawn = list(config.streams).index("latents")
    stream = np.concatenate([[0] * TEXT, *[[0, *[drawn] * n, 0]] * 2, [0] * AFTER])
    place = np.zeros((len(stream), 3), int)
    place[stream > 0] = np.tile(positions.places((ROWS, COLUMNS), n), (2, 1))
    copy = np.repeat([0, 1, 2, 0], lengths)
    document = packing.document(
        0,
        0,
        np.where(stream == 0, rng.integers(0, published.IDS, len(stream)), 0),
        stream,
        {drawn: np.tile(rng.standard_normal((n, FEATURES)), (2, 1))},
        unit=stream > 0,
        span=copy,
        private=copy == 1,
        noise=(copy == 1) & (stream > 0),
        place=place,
    )
    latents = [s.features for s in config.streams.values()]
    batch = packing.pack([[document]], list(config.streams), (TEXT + 4 + AFTER, 2 * n), latents, positions.rule(config))
    position = np.array([*range(TEXT), *[TEXT] * (lengths[1] + lengths[2]), *range(TEXT + 1, TEXT + 1 + AFTER)])
    for name, tokens in batch.items():
        batch[name] = tokens.replace(rope_position=position[tokens.position][..., None].repeat(3, axis=-1))
    splits = list(zip(("causal", "noise", "full", "causal"), lengths, strict=True))
    return batch, at_level(batch["latents"], rng), splits, position


def test_bagel(data, tmp_path):
    about, tensors = bagel_folder(tmp_path / "hf", data)
    run = tmp_path / "run"
    out, _ = succeeds("import", tmp_path / "hf", f"--data={data / 'pictures' / 'data'}", f"--out={run}")
    assert "2 tensors of 47 numbers are outside of this model (" in out
    config, _, weights = restore.load(run)
    batch, (batch["latents"], target) = noised(config, AFTER)
    n = ROWS * COLUMNS
    splits = [("causal", TEXT), ("noise", n), ("full", n), ("causal", AFTER)]
    position = [*range(TEXT), *[TEXT] * 2 * n, *range(TEXT + 1, TEXT + 1 + AFTER)]
    w = {name: x.requires_grad_("pos_embed" not in name) for name, x in tensors.items()}
    same(config, weights, batch, target[0], w, oracle(w, batch, splits, position))
    batch, (batch["latents"], target), splits, position = as_published(config)
    for x in w.values():
        x.grad = None
    same(config, weights, batch, target[0], w, oracle(w, batch, splits, position))
    succeeds("export", run, f"--out={tmp_path / 'back'}", "--format=hf", "--shard-mb=1")
    is_back(safetensors.torch.load_file(tmp_path / "back" / "ema.safetensors"), tensors)
    found = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    for part, own in ((found, about), (found["llm_config"], about["llm_config"])):
        assert {key: part[key] for key in own.keys() - CHANGED} == {key: own[key] for key in own.keys() - CHANGED}

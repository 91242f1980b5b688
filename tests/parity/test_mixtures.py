"""Mixtures of transformers: a tiny one of the publisher's class, imported, compared on noised latents, and exported."""

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


def noised(config):
    """A batch of one text and then one noised picture, its ids, and what was noised and is to be predicted."""
    rng = np.random.default_rng(3)
    ids = rng.integers(0, published.IDS, TEXT)
    n = ROWS * COLUMNS
    drawn = list(config.streams).index("latents")
    stream = np.repeat([0, drawn], [TEXT, n])
    place = np.concatenate([np.zeros((TEXT, 3), int), positions.places((ROWS, COLUMNS), n)])
    values = {drawn: rng.standard_normal((n, FEATURES))}
    document = packing.document(
        0, 0, np.where(stream == 0, np.pad(ids, (0, n)), 0), stream, values, unit=stream > 0, place=place
    )
    document = roles.assign(document, list(config.streams.values()), config.data.blocks, 0)
    latents = [s.features for s in config.streams.values()]
    batch = packing.pack([[document]], list(config.streams), (TEXT, n), latents, positions.rule(config))
    batch["latents"] = batch["latents"].replace(noise=np.full((1, n), LEVEL, np.float32))
    return ids, batch, rng.standard_normal((n, FEATURES)).astype(np.float32)


def loss(weights, config, ids, batch, target):
    """Of both: mean cross entropy of the next ids, and squared error of the velocity; with what they are of."""
    output = transformer.forward(weights, batch, config, asked=("latents",))
    ((h_TD, _),) = output.hidden
    logits = (h_TD @ transformer.head(weights, config))[:, : published.IDS]
    velocity = output.latents["latents"][0]
    log_p = jax.nn.log_softmax(logits[:-1])
    of_text = -log_p[np.arange(len(ids) - 1), ids[1:]].mean()
    return of_text + ((velocity - target) ** 2).mean(), (h_TD, logits, output.states["latents"][0], velocity)


def same(run, network, theirs):
    """Hidden states, logits, velocities and gradients of an imported run are the network's.

    `theirs(ids, picture, positions)` gives the four: positions are [3, T].
    """
    config, _, weights = restore.load(run)
    ids, batch, target = noised(config)
    picture = torch.tensor(batch["latents"].value[0])
    rope = np.concatenate([t.rope_position[0] for t in batch.values()]).T
    wanted = theirs(torch.tensor(ids), picture, torch.tensor(rope))
    of_text = torch.nn.functional.cross_entropy(wanted[1][:-1, : published.IDS], torch.tensor(ids[1:]))
    value = of_text + ((wanted[3] - torch.tensor(target)) ** 2).mean()
    value.backward()
    step = jax.jit(jax.value_and_grad(lambda w: loss(w, config, ids, batch, target), has_aux=True))
    (ours, found), gradient = step(weights)
    for a, b in zip(found, wanted, strict=True):
        b = b.detach().numpy()[..., : a.shape[-1]]
        assert np.abs(b).max() > 0.5
        np.testing.assert_allclose(a, b, atol=1e-4)
    np.testing.assert_allclose(ours, value.item(), rtol=1e-5)
    flat, gradients = params.paths(gradient), dict(network.named_parameters())
    pieces = families.pieces(families.rows_of(type(network).__name__, config), config, config.vocab)
    for name, own in pieces.items():
        parts = [TRANSFORMS[x.transform].to_theirs(np.asarray(flat[x.ours][x.index])) for x in own]
        n = len(gradients[name])  # ids that both have
        np.testing.assert_allclose(parts[0][:n], gradients[name].grad.numpy(), atol=1e-4, err_msg=name)


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


def cosmos3(network):
    def theirs(ids, picture, rope):
        """Pictures are given to it as [channels, 1, height, width], from which it makes tokens of 2 by 2."""
        kept = []
        hooks = [
            norm.register_forward_hook(lambda _, __, y: kept.append(y)) for norm in (network.norm, network.norm_moe_gen)
        ]
        n = ROWS * COLUMNS
        latent = picture.reshape(1, ROWS, COLUMNS, 2, 2, -1).permute(5, 0, 1, 3, 2, 4)
        latent = latent.reshape(1, -1, 1, 2 * ROWS, 2 * COLUMNS)
        of_picture = torch.arange(TEXT, TEXT + n)
        (sample,) = network(
            input_ids=ids,
            text_indexes=torch.arange(TEXT),
            position_ids=rope,
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

    return theirs


def test_cosmos3(data, tmp_path):
    network = shaken(Cosmos3OmniTransformer(**COSMOS3))
    network.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    shutil.copy(data / "texts" / "tokenizer.json", tmp_path / "hf")
    run = tmp_path / "run"
    succeeds("import", tmp_path / "hf", f"--data={data / 'pictures' / 'data'}", f"--out={run}")
    same(run, network, cosmos3(network))
    succeeds("export", run, f"--out={tmp_path / 'back'}", "--format=hf", "--shard-mb=1")
    # Its from_pretrained needs the package accelerate.
    again = Cosmos3OmniTransformer.from_config(Cosmos3OmniTransformer.load_config(tmp_path / "back"))
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "back" / "diffusion_pytorch_model.safetensors"))
    assert again.config.latent_channel == FEATURES // 4
    is_back(again.state_dict(), network.state_dict())

"""The contrastive losses against those of transformers' CLIP and SigLIP, whose logits are given."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import SiglipConfig, SiglipModel
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from configs import base
from mot.config import resolve
from mot.objectives import contrastive
from tests.support import examples

PAIRS, FEATURES = 7, 5


def ours(kind):
    c = examples.tree()
    c.objective.contrastive = base.contrastive(kind, width=FEATURES)
    return resolve(c)


def embeddings():
    return np.random.default_rng(0).standard_normal((2, PAIRS, FEATURES)).astype("f")


def judged(kind, text, image, scale, bias):
    """The loss, and its gradients by both sides' embeddings, by the log of the scale and by the bias."""
    zeros = jnp.zeros(PAIRS, jnp.uint32)

    def of(text, image, scale, bias):
        text, image = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (text, image))
        heads = {"scale": scale[None], "bias": bias[None]}
        sides = contrastive.Sides(text, image, jnp.ones(PAIRS, bool), (zeros, zeros), jnp.zeros(()))
        return contrastive.judge(heads, sides, ours(kind))[0]

    return jax.value_and_grad(of, (0, 1, 2, 3))(text, image, jnp.float32(scale), jnp.float32(bias))


def theirs(loss, *given):
    given = [torch.tensor(x, requires_grad=True) for x in given]
    value = loss(*given)
    value.backward()
    return value.item(), [x.grad.numpy() for x in given if x.grad is not None]


def assert_alike(got, want, count):
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    for a, b in zip(got[1][:count], want[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_infonce_is_clips():
    text, image = embeddings()

    def loss(text, image, scale):
        text, image = (x / x.norm(dim=-1, keepdim=True) for x in (text, image))
        return image_text_contrastive_loss(text @ image.T * scale.exp())

    assert_alike(judged("infonce", text, image, 2.66, 0.0), theirs(loss, text, image, np.float32(2.66)), 3)


def test_sigmoid_is_siglips():
    """Its loss stands in the forward pass of the model, which is given its towers' results here."""
    text, image = embeddings()
    config = SiglipConfig()
    small = dict(hidden_size=FEATURES, num_hidden_layers=0, num_attention_heads=1, intermediate_size=4)
    config.text_config.update(small)
    config.vision_config.update(small)
    model = SiglipModel(config).eval()

    def loss(text, image, scale, bias):
        model.logit_scale, model.logit_bias = (torch.nn.Parameter(x.detach()[None]) for x in (scale, bias))
        for name, given in (("text_model", text), ("vision_model", image)):
            setattr(model, name, Given(given))
        return model(input_ids=torch.zeros(1), pixel_values=torch.zeros(1), return_loss=True).loss

    got = judged("sigmoid", text, image, np.log(10), -10.0)
    want = theirs(loss, text, image, np.float32(np.log(10)), np.float32(-10))
    assert_alike(got, want, 2)
    np.testing.assert_allclose(model.logit_scale.grad.item(), got[1][2], rtol=1e-5)
    np.testing.assert_allclose(model.logit_bias.grad.item(), got[1][3], rtol=1e-5)


class Given(torch.nn.Module):
    """In a tower's place: what it would have given."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def forward(self, *_, **__):
        return type("Output", (), {"pooler_output": self.x})

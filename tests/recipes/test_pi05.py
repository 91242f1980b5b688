"""pi0.5 in small: what a dataset of two forms trains, and that the wall keeps the flow of actions from the backbone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot.data import pipeline
from mot.model import params, transformer
from mot.objectives import losses
from mot.train import restore
from tests.support import recipes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures and paths of a pen, joined by row, in both forms: chunks as FAST's ids, and as points."""
    given = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    n, points = 40, 12
    line = np.linspace(0, 1, points)[None, :, None] * rng.uniform(-50, 50, (n, 1, 2)) + 50
    pen = np.tile(np.arange(points) == points - 1, n).astype("u1")
    np.savez(given / "drawn.npz", images=rng.integers(0, 256, (n, 8, 8), np.uint8), split=np.arange(n) % 5 == 0)
    strokes = dict(xy=line.reshape(-1, 2).astype("f"), pen_up=pen, offsets=points * np.arange(n + 1))
    np.savez(given / "strokes.npz", **strokes, split=np.arange(n) % 5 == 0)
    lines = [json.dumps({"caption": f"a line {i % 3}"}) for i in range(n)]
    (given / "drawn.jsonl").write_text("\n".join(lines), encoding="utf-8")
    forms = ("fast:2.xy+2.pen_up", "action:2.xy+2.pen_up")
    return recipes.prepared(
        tmp_path_factory.mktemp("pi05") / "strokes",
        given / "drawn.npz",
        given / "strokes.npz",
        join=("row_number",),
        content=tuple(f"text:caption|image:images|{form}" for form in forms),
        vectors=("image",),
        action_points=8,
        fast_points=8,
    )


def test_two_steps_by_the_command(data, tmp_path):
    recipes.as_command("pi05", tmp_path, f"data={data}")


@pytest.fixture(scope="module")
def judged(data, tmp_path_factory):
    """By wall: the gradients of one batch's loss of actions alone, by path."""
    found = {}
    for wall in ("on", "off"):
        c = recipes.config("pi05", tmp_path_factory.mktemp(wall), f"data={data}", f"wall={wall}")
        c, training, _ = restore.open_data(c)
        batch = pipeline.Batches(training, c, 0, 1)[0].batch
        weights = jax.jit(lambda c=c: params.init(params.table(c), 0))()
        # At the start a modulation of 0 passes no gradient on.
        weights = jax.tree.map(lambda x: x + 0.02, weights)
        alone = {name: t.replace(weight=t.weight * (name == "action")) for name, t in batch.items()}

        def loss(weights, c=c, alone=alone):
            given = losses.noised(alone, c, 0)
            output = transformer.forward(weights, given.batch, c)
            return losses.loss(weights, output, given, losses.totals(alone, c), c, 1)[0]

        grads = params.paths(jax.jit(jax.grad(loss))(weights))
        found[wall] = c, batch, {path: float(jnp.abs(g).max()) for path, g in grads.items()}
    return found


def test_the_wall_keeps_the_flow_of_actions_from_the_backbone(judged):
    """To the bit: the greatest gradient of what text and pictures use, and of what is the expert's own."""

    def greatest(wall, *parts):
        return max(g for path, g in judged[wall][2].items() if any(part in path for part in parts))

    assert greatest("on", "/text/", "latent/image", "embed") == 0
    assert greatest("off", "/text/", "latent/image", "embed") > 0
    assert greatest("on", "/action/") > 0


def test_a_document_has_one_form_and_the_expert_its_own_width(judged):
    c, batch, _ = judged["on"]
    assert c.streams["action"].width == c.streams["text"].width // 2
    assert set(c.towers.attn.values()) == {"text", "action"}
    assert c.streams["fast"].objective == "next_token"
    assert c.streams["image"].objective == "none"
    segments = []
    for name in ("fast", "action"):
        places = np.argwhere(batch[name].segment > 0)
        segments.append({(int(row), int(batch[name].segment[row, i])) for row, i in places})
    assert segments[0]
    assert segments[1]
    assert not segments[0] & segments[1], "no chunk of the one form is seen by the other"

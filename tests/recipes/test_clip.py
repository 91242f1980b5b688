"""CLIP on numbers of two embedded digits: two towers that meet in the loss alone, and what they retrieve."""

import json

import jax
import numpy as np

from launch import train
from mot import batches, optim
from mot.data import embedded
from mot.data.pipeline import Batches
from mot.model import params
from mot.objectives import losses
from mot.train.state import init_state
from mot.train.step import make_gradients
from tests.support import recipes
from tests.support.commands import succeeds
from tests.support.training import rows


def two_towers(name, root):
    """Two steps, in which both towers learn though neither sees the other's tokens: all they share is the term."""
    path = recipes.two_steps(name, root)
    last = rows(path)[-1]
    assert last["contrastive/pairs"] > 8
    assert last["contrastive/left_out"] == 0
    assert last["grad_norm/image"] > 0
    assert last["grad_norm/text"] > 0
    return path


def test_two_towers_learn_from_each_other_alone(tmp_path):
    path = two_towers("clip", tmp_path)
    succeeds("evaluate", path, "--what=retrieval", "--pool=10", "--pools=1", f"--out={tmp_path / 'o.json'}")
    found = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))["retrieval"]["figures"]
    assert found["text/image/numbers/recall_1"]["chance"] == 0.1
    assert found["gap/numbers"]["value"] > 0.5  # 2203.02053: there is one before training


def test_a_gradient_goes_through_the_pairs_of_parts_alone(tmp_path):
    """Without the term nothing is learnt; with it, what one tower learns does not pass through the other."""
    c = recipes.config("clip", tmp_path)
    batch = Batches(embedded.load(c)[0], c, 0, 1)[0].batch
    batches.check(batch)
    assert not batches.visible(batch["text"].info, batch["image"].info).any()
    assert not batches.visible(batch["image"].info, batch["text"].info).any()

    def norms(c):
        state = jax.jit(lambda: init_state(c))()
        trained, frozen = params.split(state.params, optim.trainable(c))
        of = jax.jit(lambda w: make_gradients(c, 4)(state, w, frozen, batch, losses.totals(batch, c))[1])
        return {path: float(np.abs(x).max()) for path, x in params.paths(of(trained)).items()}

    learnt = norms(c)
    assert not [path for path, x in learnt.items() if not x and path != "head/out"]
    off = recipes.config("clip", tmp_path, objective__contrastive__kind="")
    assert not any(norms(off).values())


def test_numbers_are_two_digits_and_their_names():
    c = recipes.config("clip", "runs")
    for split, size in zip(embedded.load(c), embedded.NUMBERS, strict=True):
        numbers = split.all[-1]
        assert numbers.name == "numbers"
        assert numbers.count == size
        d = numbers.documents[0]
        assert d.values[1].shape == (32, 4)
        assert sorted(set(d.unit.tolist())) == [0, 1, 2]
    words = embedded.load_tokenizer().decode([i for i in d.token[: int(d.unit.argmax())] if i > 4])
    assert len([name for name in embedded.NAMES if name in words]) in (1, 2)
    shown = [x.tobytes() for number in numbers.documents for x in np.split(number.values[1], 2)]
    drawn = {d.values[1].tobytes() for d in split.all[1].documents}
    assert set(shown) <= drawn  # of the held-out digits alone


def test_what_can_be_done_next_is_what_the_run_can_do(tmp_path, capsys):
    """It draws nothing."""
    config = recipes.config("clip", tmp_path)
    train.tell_next([tmp_path / "clip-smoke"], config)
    said = capsys.readouterr().err
    assert "mot evaluate" in said
    assert "mot sample" not in said

"""The rows of one run and of several, without a model: what was measured is given."""

import re
import time

import numpy as np
import pytest

from mot import optim
from mot.checkpoint import Position
from mot.data.pipeline import LeftOut
from mot.errors import UserError
from mot.model import router
from mot.runs import written
from mot.runs.goodput import Clock
from mot.runs.log import Dispatched, Diverged, Log, Pending
from mot.runs.peak import Peak
from mot.train import ensemble
from tests.support import examples


class Kept:
    """In place of a writer and a live line: keeps what is written and said."""

    def __init__(self):
        self.rows, self.said, self.evaluations = [], [], []

    def write(self, kind, step, values):
        self.rows.append((kind, step, dict(values)))

    def say(self, text):
        self.said.append(text)


class Ready:
    """A measurement on a device that is done."""

    def is_ready(self):
        return True


def log(patience=2):
    tree = examples.tree()
    tree.optim.patience = patience
    kept = Kept()
    c = examples.resolve(tree)
    clock = Clock({}, time.monotonic())
    return Log(c, ("a", "b"), Position(), kept, kept.say, Peak(1e9, 512, 1.0, ""), clock, name_of), kept


def name_of(source, doc_id):
    return f"page {doc_id}"


def measured(ok=True, loss=2.0, runs=()):
    """Of one run, or of several with runs first."""
    M, O = 2, 2
    x = np.full(runs, loss)
    return {
        "loss": x,
        "lr": np.full(runs, 0.5),
        "grad_norm": x,
        "grad_norms": {"text": np.where(ok, x, np.nan)},
        "ok": np.broadcast_to(ok, runs),
        "broken": {"text.weight": np.zeros(runs, int)},
        "leaves": {"not_finite": np.zeros((*runs, P), int), "norm": np.zeros((*runs, P))},
        "sums": {"loss_sum": np.full((*runs, M, O), loss), "weight": np.ones((*runs, M, O)), "routing": {}},
    }


COUNTS = np.array([30, 20, 400, 0])
P = len(optim.trained(examples.make()))
BATCH = examples.batch()


def take(logs, number, figures):
    """A step of a run, or of several."""
    row = logs.advance({"row": number}, 0.25, 0.5)
    return logs.write(Dispatched(number, figures, COUNTS, row, BATCH), 2.0)


def test_a_row_has_the_steps_figures_and_the_runs_totals():
    one, kept = log()
    take(one, 1, measured())
    row = take(one, 2, measured(loss=1.0))
    assert kept.rows[-1] == ("train", 2, row)
    assert (row["loss"], row["objective"], row["lr"], row["step_seconds"], row["seconds"]) == (1.0, 1.0, 0.5, 2.0, 4.0)
    assert (row["tokens/text"], row["tokens/image"], row["tokens_per_s"]) == (60, 40, 25.0)
    assert (row["idle_seconds"], row["data_wait"]) == (0.25, 0.25)
    assert one.position == Position(
        step=2, tokens={"text": 60, "image": 40}, flops=row["flops"], seconds=4.0, plan={"row": 2}
    )


def test_steps_that_are_not_finite_are_counted_until_patience_ends():
    one, kept = log(patience=2)
    take(one, 1, measured(ok=False))
    take(one, 2, measured())
    take(one, 3, measured(ok=False))
    assert one.diverged is None
    take(one, 4, measured(ok=False))
    says = r"step 4 skipped: loss 2.0, .*towers: text, .*in the batch: none, documents: page 0 of a, .*; 2 in a row"
    assert re.match(says, str(one.diverged))
    assert f"mot replay {written.folder(one.config)} 4" in str(one.diverged)
    events = [(step, values["event"]) for kind, step, values in kept.rows if kind == "event"]
    assert events == [(1, "skipped"), (3, "skipped"), (4, "skipped"), (4, "diverged")]


def test_a_skipped_step_names_leaf_tower_modality_and_documents():
    """FAULTS 8: in the event and in what is said, by the documents' own names; those of a broken batch first."""
    one, kept = log(patience=9)
    figures = measured(ok=False)
    path = "blocks/main/ffn/image/w1"
    figures["leaves"]["not_finite"][optim.trained(one.config).index(path)] = 3
    take(one, 1, figures)
    event = kept.rows[-1][2]
    assert (event["leaves"], event["towers"], event["modalities"]) == ({path: 3}, "text", "image")
    assert (event["batch"], event["broken_documents"]) == ("none", {})
    held = {(s, d) for t in BATCH.values() for s, d in zip(t.source.flat, t.doc_id.flat, strict=True)}
    real = {(s, f"page {d}") for s, d in held if (s, d) != (0, 0)} | {(0, "page 0")}
    assert {(("a", "b").index(s), name) for s, names in event["documents"].items() for name in names} <= real
    broken = BATCH["text"].replace(weight=np.where(BATCH["text"].doc_id == 1, np.inf, BATCH["text"].weight))
    figures = measured(ok=False)
    figures["broken"]["text.weight"] = np.array(7)
    row = one.advance({}, 0.25, 0.5)
    one.write(Dispatched(2, figures, COUNTS, row, BATCH | {"text": broken}), 2.0)
    event = kept.rows[-1][2]
    assert (event["modalities"], event["batch"]) == ("text", "text.weight (7)")
    assert event["broken_documents"] == {"b": ["page 1"]}
    assert kept.said[-1].endswith("in the batch: text.weight (7), of the documents: page 1 of b")


def test_a_gradient_that_is_too_long_names_its_longest_leaves():
    one, kept = log(patience=9)
    figures = measured(ok=False)
    figures |= {"grad_norm_limit": np.float32(1.5), "grad_norms": {"text": 2.0}}
    figures["leaves"]["norm"][:] = np.arange(P) / P
    figures["leaves"]["norm"][0] = np.inf  # of a router that only imitates
    row = take(one, 1, figures)
    assert row["grad_norm_limit"] == 1.5
    event = kept.rows[-1][2]
    assert list(event["longest"]) == optim.trained(one.config)[:-4:-1]
    assert event["why"] == "loss 2.0, gradient norm 2.0, above 1.5 (optim.skip_above = 0 medians)"
    assert "the longest leaves: " in kept.said[-1]


def test_a_step_is_written_once_the_next_one_is_on_its_way():
    written = []
    pending = Pending(lambda step, seconds: written.append((step.number, seconds)))
    for number in (1, 2):
        pending.add(Dispatched(number, {"ok": Ready()}, COUNTS, {}, {}))
    assert [number for number, _ in written] == [1]
    assert pending.idle() > 0  # the device is done
    pending.finish()
    pending.finish()
    assert [number for number, _ in written] == [1, 2]
    assert pending.step is None


def test_several_runs_have_each_their_own_rows_and_one_that_diverged_no_more():
    (a, of_a), (b, of_b) = log(patience=1), log(patience=9)
    logs = ensemble.Logs([a, b], Kept())
    first = take(logs, 1, measured(runs=(2,)) | {"loss": np.array([2.0, 4.0])})
    assert first["objective"] == 3.0
    assert [kept.rows[-1][2]["objective"] for kept in (of_a, of_b)] == [2.0, 4.0]
    assert of_a.rows[-1][2]["step_seconds"] == 1.0  # its share of the two seconds
    take(logs, 2, measured(ok=np.array([False, True]), runs=(2,)))
    assert logs.ended == {0: 2}
    assert logs.diverged is None
    logs.left_out([LeftOut("embedded", "7", "damaged")])
    take(logs, 3, measured(runs=(2,)))
    assert [step for kind, step, _ in of_a.rows if kind == "train"] == [1, 2]
    assert of_b.rows[-1][2]["left_out/embedded"] == 1  # also where the first run counts no more
    logs.evaluation([{"loss": 1.0}, {"loss": 3.0, "loss/text": 3.0}])
    assert logs.live.said[-1] == "1 runs, step 3: held-out text 3.000 in the mean"
    assert [kind for kind, *_ in of_a.rows].count("eval") == 0
    for step in range(4, 12):
        take(logs, step, measured(ok=False, runs=(2,)))
    assert logs.diverged is None
    take(logs, 12, measured(ok=False, runs=(2,)))  # its ninth: now all have
    assert isinstance(logs.diverged, Diverged)
    assert take(logs, 13, measured(ok=False, runs=(2,))) == {}  # the step that was on its way is nobody's


def test_too_many_documents_left_out_end_a_run():
    one, kept = log()
    most = one.config.data.max_skipped
    with pytest.raises(UserError, match="max_skipped"):
        one.left_out([LeftOut("embedded", str(i), "damaged") for i in range(most + 1)])
    assert len(kept.said) == most + 1
    assert kept.rows[-1][2]["event"] == "left out"


def test_reports_of_routers_are_in_the_row():
    one, _ = log()
    some = dict.fromkeys(router.Report._fields, np.ones((1, 2)))
    some |= {"load_BME": np.ones((1, 2, 4)), "tokens_BM": np.ones((1, 2)), "wanted_BM": np.ones((1, 2))}
    figures = measured()
    figures["sums"]["routing"] = {"ffn/text": router.Report(**some)}
    assert take(one, 1, figures)["router/ffn/text/load_max"] == 1.0


def test_a_collapse_is_told_once():
    kept = Kept()
    collapsing = Log(examples.make(), (), Position(), kept, kept.said.append, None, None)
    for step, rank in ((1, 3.0), (2, 1.2), (3, 1.1)):
        collapsing._collapsed(step, {"states/image/std": 0.9, "states/image/rank": rank, "loss": 1.0})
    assert kept.rows == [("event", 2, {"event": "collapsed", "stream": "image", "std": 0.9, "rank": 1.2})]
    (line,) = kept.said
    assert line.startswith("warning: step 2: the states that image predicts are all but alike")

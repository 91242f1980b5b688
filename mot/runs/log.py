"""The rows that a run writes of its steps and evaluations, and the totals that they carry on."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mot.batches import Batch
from mot.checkpoint import Outcome, Position
from mot.config import Config
from mot.data import pipeline
from mot.errors import UserError
from mot.model import flops
from mot.runs import metrics, provenance, skipped, written
from mot.runs.goodput import Clock
from mot.runs.peak import Peak
from mot.runs.writer import Writer


class Diverged(UserError):
    """Too many steps in a row were not finite."""


def counted(batch: Batch, config: Config) -> np.ndarray:
    """What `Log` counts of a host batch: the tokens of each stream, and what else its FLOPs follow from."""
    tokens = ((tokens.segment != 0).sum() for tokens in batch.values())
    further = (flops.pairs(batch, config), flops.contrasted(batch, config), *flops.within_units(batch, config).values())
    return np.array([*tokens, *further])


class Dispatched(NamedTuple):
    """A step that was given to the device."""

    number: int
    measured: Any  # on the device until the step is done
    counts: Any  # `counted` of all processes
    row: Any  # from `Log.advance`
    batch: Any  # on the device: its documents are named where the step is skipped


class Pending:
    """The step that is on its way. It is read once the next one is, too, so that the device never waits for the host.

    `write` takes a step that is done, read, and its seconds.
    """

    def __init__(self, write: Callable[[Dispatched, float], None]):
        self.write = write
        self.step: Dispatched | None = None
        self.clock = time.perf_counter()  # when the device was last known to be done

    def idle(self) -> float:
        """Seconds that the device may have waited for the host before this dispatch; 0 if it is still busy."""
        busy = self.step is not None and not self.step.measured["ok"].is_ready()
        return 0.0 if busy else time.perf_counter() - self.clock

    def add(self, step: Dispatched) -> None:
        """Takes a step that was just dispatched, and finishes the one before."""
        earlier = self.step
        self.step = step
        self._finish(earlier)

    def finish(self) -> None:
        """Waits for the last step and writes its row."""
        earlier = self.step
        self.step = None
        self._finish(earlier)

    def resume(self) -> None:
        """What passed since the last step (an evaluation, a checkpoint) is no step's time."""
        self.clock = time.perf_counter()

    def _finish(self, step: Dispatched | None) -> None:
        if step is None:
            return
        measured, counts = jax.device_get((step.measured, step.counts))  # waits for the device
        now = time.perf_counter()
        seconds = now - self.clock
        self.clock = now
        self.write(step._replace(measured=measured, counts=counts), seconds)


def _by_number(source: int, doc_id: int) -> str:
    return str(doc_id)


class Log:
    """One run's rows. `position` is where the run is, and is what its checkpoints hold."""

    def __init__(
        self,
        config: Config,
        sources: Sequence[str],
        position: Position,
        writer: Writer,
        say: Callable[[str], None],
        peak: Peak,
        clock: Clock,
        name_of: Callable[[int, int], str] = _by_number,
    ):
        """`name_of(source, doc_id)` is a document's own name."""
        self.config = config
        self.sources = sources
        self.name_of = name_of
        self.alike: set[str] = set()  # streams of which it was said that their states have collapsed
        self.diverged: Diverged | None = None  # once the run's patience is at an end
        self.position = position
        self.writer = writer
        self.say = say
        self.peak = peak
        self.clock = clock
        # The held-out loss by which the best step stays, by step: also of evaluations before the run was resumed.
        self.best: dict[int, float] = {}
        for row in writer.evaluations:
            self._rank(row["step"], row)

    def start(self, about: Mapping) -> None:
        time_so_far = {"wall_seconds": self.clock.total()}
        event = {"event": "start"} | self.peak.told() | provenance.made_by() | about | time_so_far
        self.writer.write("event", self.position.step, event)

    def left_out(self, documents: Sequence[pipeline.LeftOut]) -> None:
        """Counts documents that the next batch lacks; raises `UserError` when they are too many."""
        if not documents:
            return
        position = self.position
        for source, document, why in documents:
            position.left_out[source] = 1 + position.left_out.get(source, 0)
            self.say(f"step {position.step + 1}: left out document {document} of {source}: {why}")
        listed = [document._asdict() for document in documents]
        self.writer.write("event", position.step + 1, {"event": "left out", "documents": listed})
        pipeline.refuse_too_many(position.left_out, documents[-1], self.config.data.max_skipped)

    def advance(self, plan: dict, idle: float, waited: float) -> dict:
        """Counts a step just dispatched; returns what its row says already. `plan` is what the next batch is made of.

        `idle`: seconds that the device may have waited for this step; `waited`: those that the batch took to come.
        """
        self.position.step += 1
        self.position.plan = plan
        row = {"idle_seconds": idle, "data_seconds": waited}
        return row | {f"left_out/{source}": n for source, n in self.position.left_out.items()}

    def write(self, step: Dispatched, seconds: float) -> dict:
        """Writes a step's row, and returns it. Where the run's patience is at an end, `diverged` says so."""
        measured = step.measured
        row = step.row | self._totals(step.counts)
        self.position.seconds += seconds
        waited = min(row.pop("data_seconds"), seconds)
        self.clock.book("data", waited)
        self.clock.book("step", seconds - waited)
        row["data_wait"] = waited / seconds
        row["seconds"] = self.position.seconds
        row["step_seconds"] = seconds
        row["tokens_per_s"] = row.pop("step_tokens") / seconds
        row["mfu"] = row.pop("step_flops") / seconds / self.peak.flops
        row |= metrics.of_step(measured, self.config.modalities, self.sources)
        row |= self.clock.row()
        self.writer.write("train", step.number, row)
        self._collapsed(step.number, row)
        self.position.skipped = 0 if measured["ok"] else self.position.skipped + 1
        if not measured["ok"]:
            self._skipped(step)
        return row

    def _totals(self, counts: np.ndarray) -> dict:
        """A row's cumulative figures, and the step's own."""
        position = self.position
        streams = self.config.streams
        tokens = {name: int(n) for name, n in zip(streams, counts, strict=False)}
        for name, n in tokens.items():
            modality = streams[name].modality
            position.tokens[modality] = position.tokens.get(modality, 0) + n
        pairs, contrasted, *within = counts[len(streams) :].tolist()
        predicting = (name for name, s in streams.items() if s.predicts)
        work = flops.train_step(self.config, tokens, pairs, dict(zip(predicting, within, strict=True)), contrasted)
        position.flops += work
        row = {"flops": position.flops, "step_flops": work, "step_tokens": sum(tokens.values())}
        row |= {f"tokens/{m}": n for m, n in position.tokens.items()}
        return row | {f"fill/{name}": n / (streams[name].budget * self.config.data.batch) for name, n in tokens.items()}

    def _collapsed(self, number: int, row: Mapping) -> None:
        """Tells once of a stream whose predicted states have become all alike."""
        for name in [name for name in metrics.collapsed(row) if name not in self.alike]:
            self.alike.add(name)
            found = {key: row[f"states/{name}/{key}"] for key in metrics.ALIKE}
            self.writer.write("event", number, {"event": "collapsed", "stream": name} | found)
            self.say(
                f"warning: step {number}: the states that {name} predicts are all but alike (standard deviation "
                f"{found['std']:.2g}, {found['rank']:.1f} directions), which is easy to predict and says nothing; "
                f"raise streams.{name}.prediction.sigreg, or optim.ema towards 1"
            )

    def _skipped(self, step: Dispatched) -> None:
        about = skipped.about(self.config, step.measured, step.batch, self.name_of, self.sources)
        why = f"step {step.number} skipped: {skipped.told(about)}"
        self.writer.write("event", step.number, {"event": "skipped"} | about)
        self.say(why)
        if self.position.skipped >= self.config.optim.patience and not self.diverged:
            self.writer.write("event", step.number, {"event": "diverged"})
            replayed = f"`mot replay {written.folder(self.config)} {step.number}`"
            self.diverged = Diverged(
                f"{why}; {self.position.skipped} in a row, optim.patience is {self.config.optim.patience}. No skipped "
                f"step changed anything. Look at these steps' data: {replayed} shows every leaf and document; or start "
                "a run of another run.name with a lower optim.lr"
            )

    def lacks_evaluation(self) -> bool:
        """Is the evaluation after the position's step still to be written?"""
        return self.writer.lacks("eval", self.position.step)

    def evaluation(self, row: Mapping) -> None:
        """Writes an evaluation's row, and tells its losses."""
        self.write_evaluation(row)
        line = metrics.line(row, self.config.modalities)
        self.say(f"{self.config.run.name} step {self.position.step}: held-out {line}")

    def flush(self) -> None:
        """Writes the rows that wait."""
        self.writer.flush()

    def saved(self, outcome: Outcome, pause: float) -> None:
        """Tells what became of a save; after one that failed the next try comes in `pause` seconds."""
        about = {"seconds": outcome.seconds, "stall": outcome.stall} | self.clock.split()
        if not outcome.error:
            self.writer.write("event", outcome.step, {"event": "saved"} | about)
            return
        again = f"training goes on, and saves again in {pause:g} s" if pause else "no further try"
        self.say(f"ALARM: step {outcome.step} was not saved: {outcome.error}; {again}")
        self.writer.write("event", outcome.step, {"event": "save failed", "why": outcome.error, "again": pause} | about)

    def write_evaluation(self, row: Mapping) -> None:
        position = self.position
        self.writer.write("eval", position.step, row | {"flops": position.flops, "seconds": position.seconds})
        self._rank(position.step, row)

    def _rank(self, step: int, row: Mapping) -> None:
        """Takes an evaluation's loss of `run.keep_best`, unless it lacks it, or it is not finite."""
        loss = float(row.get(self.config.run.keep_best, "nan"))
        if np.isfinite(loss):
            self.best[step] = loss

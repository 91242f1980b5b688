"""What a run remembers of its steps: where it is, and the row that each of them writes."""

import time
from dataclasses import dataclass, field

import jax
import numpy as np

from mot.batches import Batch
from mot.config import Config
from mot.data import pipeline
from mot.errors import UserError
from mot.model import flops
from mot.runs import metrics, provenance


class Diverged(UserError):
    """Too many steps in a row were not finite."""


@dataclass
class Position:
    """Where a run is: kept with each checkpoint, so that what is cumulative goes on."""

    step: int = 0  # batches consumed, the next batch's number
    tokens: dict[str, int] = field(default_factory=dict)  # trained on, by modality
    flops: int = 0  # model FLOPs
    seconds: float = 0.0  # in steps; compiling, evaluating and saving are not counted
    skipped: int = 0  # steps in a row
    data: str = ""  # digest of the documents
    plan: dict = field(default_factory=dict)  # from which the next batch is made: pipeline.Packed.state
    left_out: dict[str, int] = field(default_factory=dict)  # documents, by source

    def count(self, real: dict[str, int], work: int, config: Config) -> None:
        """Counts a step over so many tokens of each stream, of so many model FLOPs."""
        for name, n in real.items():
            modality = config.streams[name].modality
            self.tokens[modality] = self.tokens.get(modality, 0) + n
        self.flops += work


def counted(batch: Batch) -> np.ndarray:
    """What `Log` counts of a host batch: the tokens of each stream, and the pairs that see each other."""
    return np.array([*((tokens.segment != 0).sum() for tokens in batch.values()), flops.visible_pairs(batch)])


class Log:
    """Writes each step's row once the next step is on its way, so that the device never waits for the host to read."""

    def __init__(self, config, sources, position, writer, live, peak):
        self.config, self.sources, self.position = config, sources, position
        self.writer, self.live, self.peak = writer, live, peak
        self.pending = None  # a dispatched step whose measurements are not read yet
        self.clock = time.perf_counter()  # when the device was last known to be done

    def start(self, about: dict) -> None:
        self.writer.write(
            "event", self.position.step, {"event": "start"} | self.peak.told() | provenance.made_by() | about
        )

    def idle(self) -> float:
        """Seconds that the device may have waited for the host before this dispatch; 0 if it is still busy."""
        busy = self.pending is not None and not self.pending[0]["ok"].is_ready()
        return 0.0 if busy else time.perf_counter() - self.clock

    def left_out(self, documents) -> None:
        """Counts documents that the next batch lacks; raises `UserError` when they are too many."""
        position = self.position
        for source, document, why in documents:
            position.left_out[source] = 1 + position.left_out.get(source, 0)
            self.live.say(f"step {position.step + 1}: left out document {document} of {source}: {why}")
        if documents:
            listed = [d._asdict() for d in documents]
            self.writer.write("event", position.step + 1, {"event": "left out", "documents": listed})
            pipeline.refuse_too_many(position.left_out, documents[-1], self.config.data.max_skipped)

    def dispatched(self, measured, counts, packed, idle, waited) -> None:
        """Takes a step just dispatched on a packed batch, of all processes' `counts`; finishes the one before."""
        self.position.step += 1
        self.position.plan = packed.state
        row = {"step": self.position.step, "idle_seconds": idle, "data_seconds": waited}
        row |= {f"left_out/{source}": n for source, n in self.position.left_out.items()}
        earlier, self.pending = self.pending, (measured | {"counts": counts}, row)
        self._finish(earlier)

    def finish(self) -> None:
        """Waits for the last step and writes its row."""
        earlier, self.pending = self.pending, None
        self._finish(earlier)

    def resume(self) -> None:
        """What passed since the last step (an evaluation, a checkpoint) is no step's time."""
        self.clock = time.perf_counter()

    def _finish(self, pending) -> None:
        if pending is None:
            return
        measured, row = pending
        measured = jax.device_get(measured)  # waits for the device
        seconds, self.clock = time.perf_counter() - self.clock, time.perf_counter()
        self.write(measured, row, seconds)

    def write(self, measured, row, seconds) -> dict:
        """Writes a step's row, of what it measured and how long it took; `Diverged` where its patience is at an end."""
        row |= self._counted(measured["counts"])
        self.position.seconds += seconds
        row["data_wait"] = min(row.pop("data_seconds") / seconds, 1.0)
        row |= {"seconds": self.position.seconds, "step_seconds": seconds}
        row |= {"tokens_per_s": row.pop("step_tokens") / seconds}
        row |= {"mfu": row.pop("step_flops") / seconds / self.peak.flops}
        row |= {"objective": float(measured["loss"]), "lr": float(measured["lr"])}
        row |= {"grad_norm": float(measured["grad_norm"])}
        row |= {f"grad_norm/{tower}": float(x) for tower, x in measured["grad_norms"].items()}
        sums = measured["sums"]
        row |= metrics.losses(sums["loss_sum"], sums["weight"], self.config.modalities, self.sources)
        row |= metrics.routing(sums["routing"], self.config.modalities)
        step = row.pop("step")
        self.writer.write("train", step, row)
        self.live.update(step, metrics.line(row, self.config.modalities))
        self.position.skipped = 0 if measured["ok"] else self.position.skipped + 1
        if not measured["ok"]:
            self._skipped(step, measured)
        return row

    def _counted(self, counts) -> dict:
        """A row's cumulative figures, and the step's own."""
        position = self.position
        streams = self.config.streams
        real = {name: int(n) for name, n in zip(streams, counts, strict=False)}
        work = flops.train_step(self.config, real, int(counts[-1]))
        position.count(real, work, self.config)
        row = {"flops": position.flops, "step_flops": work, "step_tokens": sum(real.values())}
        row |= {f"tokens/{m}": n for m, n in position.tokens.items()}
        return row | {f"fill/{name}": n / (streams[name].budget * self.config.data.batch) for name, n in real.items()}

    def _skipped(self, step, measured) -> None:
        bad = ", ".join(tower for tower, x in measured["grad_norms"].items() if not np.isfinite(x)) or "none"
        what = f"step {step} skipped: loss {measured['loss']}, gradient norm {measured['grad_norm']}"
        in_batch = ", ".join(f"{field} ({n})" for field, n in measured["broken"].items() if n) or "none"
        what += f", not finite in towers: {bad}, in the batch: {in_batch}"
        self.writer.write("event", step, {"event": "skipped", "towers": bad, "batch": in_batch})
        self.live.say(what)
        if self.position.skipped >= self.config.optim.patience:
            self.writer.write("event", step, {"event": "diverged"})
            raise Diverged(
                f"{what}; {self.position.skipped} in a row, optim.patience is {self.config.optim.patience}; look at "
                "these steps' data, or start a run of another run.name with a lower optim.lr; checkpoints are untouched"
            )

    def evaluation(self, row) -> None:
        self.write_evaluation(row)
        line = metrics.line(row, self.config.modalities)
        self.live.say(f"{self.config.run.name} step {self.position.step}: held-out {line}")

    def write_evaluation(self, row) -> None:
        position = self.position
        self.writer.write("eval", position.step, row | {"flops": position.flops, "seconds": position.seconds})

"""What a run reports: one writer (metrics.jsonl, TensorBoard), and the live line."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from mot.files import write_atomically
from mot.runs import provenance, rundir, tensorboard


class Writer:
    """Rows of metrics.jsonl, and their curves in TensorBoard. One for each (kind, step): a resumed run's later rows go.

    The run's folder has its configuration. Only the first process writes.
    """

    def __init__(self, path: Path, resumed_at: int, is_first: bool = True):
        self.is_first = is_first
        if not is_first:
            return
        file = path / "metrics.jsonl"
        kept = [row for row in rundir.read_metrics(path) if row["step"] <= resumed_at]
        write_atomically(file, "".join(json.dumps(row) + "\n" for row in kept))
        self.written = {(row["kind"], row["step"]) for row in kept if row["kind"] != "event"}
        self.file = file.open("a", encoding="utf-8")
        self.board = tensorboard.opened(path, resumed_at)
        self.sources = len(rundir.read_config(path)["data"]["sources"])

    def write(self, kind: str, step: int, values: Mapping) -> None:
        if not self.is_first or (kind, step) in self.written:
            return
        if kind != "event":
            self.written.add((kind, step))

        def finite(x):
            return x if not isinstance(x, float) or math.isfinite(x) else str(x)  # JSON has no NaN

        row = {"schema": rundir.SCHEMA, "kind": kind, "step": step, "time": provenance.now()}
        row |= {k: finite(v) for k, v in values.items()}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for tag, value in tensorboard.curves(kind, values, self.sources):
            self.board.add_scalar(tag, value, step)
        self.board.flush()

    def close(self) -> None:
        if self.is_first:
            self.file.close()
            self.board.close()


class Live:
    """The line a person watches: losses by modality, speed, time left. Without a terminal, `say` alone prints."""

    def __init__(self, title: str, done: int, steps: int, is_first: bool = True):
        self.console = Console(file=sys.stderr, soft_wrap=True, highlight=False, quiet=not is_first)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            _Line(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, completed=done, total=steps, line="", since=None)

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def update(self, step: int, line: str) -> None:
        self.bar.update(self.task, completed=step, line=line, since=None)

    def phase(self, what: str) -> None:
        """What takes long before the next step: on the line, with the seconds so far, or else as a line of its own."""
        self.bar.update(self.task, line=f"{what} ...", since=time.monotonic())
        if not self.console.is_terminal:
            self.say(f"{what} ...")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)


class _Line(ProgressColumn):
    """A task's `line`, and the seconds `since` it is shown, where it has such."""

    def render(self, task) -> Text:
        since = task.fields["since"]
        return Text(task.fields["line"] + (f" {time.monotonic() - since:.0f} s" if since else ""))


def line(row: Mapping, modalities) -> str:
    """`text 3.21  image 1.05  4.2k tok/s  mfu 55 %` of one metrics row."""
    parts = [f"{m} {row[f'loss/{m}']:.3f}" for m in modalities if f"loss/{m}" in row]
    if "tokens_per_s" in row:
        parts += [f"{row['tokens_per_s'] / 1e3:.1f}k tok/s", f"mfu {100 * row['mfu']:.0f} %"]
    return "  ".join(parts)


def losses(loss_sum_MO, weight_MO, modalities, sources) -> dict[str, float]:
    """The mean loss of all targets, by modality, and by modality and source; what is absent is left out.

    Nats of ids, squared errors of vectors; `loss` is the mean of both, where a run has both. Weights that are NaN are
    not absent: their losses are NaN.
    """
    result = {"loss": float(loss_sum_MO.sum() / weight_MO.sum())} if weight_MO.sum() != 0 else {}
    for m, modality in enumerate(modalities):
        if (total := weight_MO[m].sum()) != 0:
            result[f"loss/{modality}"] = float(loss_sum_MO[m].sum() / total)
        for s, source in enumerate(sources):
            if weight_MO[m, s] != 0:
                result[f"loss/{modality}/{source}"] = float(loss_sum_MO[m, s] / weight_MO[m, s])
    return result


def routing(reports: Mapping, modalities) -> dict[str, float]:
    """Summaries of what routers did, by `router/<component>/<tower>/`, from sums over tokens `[L, ...]`.

    `load_max`, `load_min`: the busiest and the idlest expert of any layer, 1 = an even share. `entropy`: of a token's
    scores, nats. `balance`, `z`: the losses before their weights. `dropped/<modality>`: the fraction of its choices
    without a place. `experts_per_token/<modality>`: how many took one of its tokens, which where experts choose tells
    whom they pass over. `imitation`: the causal router's cross-entropy, nats. For a tower that modalities share:
    `specialisation`, the mean over experts of |R_a - R_b| / (R_a + R_b), R the fraction of a modality's choices that go
    to an expert, a the first modality and b the others; and `mutual_information` of expert and modality, nats. Each a
    mean over layers.
    """
    result = {}
    for name, r in reports.items():
        load_LME, tokens_LM = np.asarray(r.load_BME, np.float64), np.asarray(r.tokens_BM, np.float64)
        share_LE = load_LME.sum(1) / np.maximum(load_LME.sum((1, 2)), 1)[:, None] * load_LME.shape[-1]
        tokens_M = tokens_LM.sum(0)
        tokens = max(tokens_LM.sum(), 1)
        row = {"load_max": share_LE.max(), "load_min": share_LE.min(), "entropy": r.entropy_B.sum() / tokens}
        row |= {"balance": r.balance_B.sum() / tokens, "z": r.z_B.sum() / tokens}
        if imitation := np.asarray(r.imitation_B).sum():
            row["imitation"] = imitation / tokens
        wanted_M = np.asarray(r.wanted_BM).sum(0)
        load_M = load_LME.sum((0, 2))
        for m, modality in enumerate(modalities):
            if wanted_M[m]:
                row[f"dropped/{modality}"] = 1 - load_M[m] / wanted_M[m]
            if tokens_M[m]:
                row[f"experts_per_token/{modality}"] = load_M[m] / tokens_M[m]
        if lost := np.asarray(r.lost_B).sum():
            row["overflowed"] = lost / load_M.sum()
        present = tokens_LM.sum(0) > 0
        if present.sum() > 1:
            row["specialisation"] = float(np.abs(specialisation(load_LME[:, present])).mean())
            row["mutual_information"] = float(np.mean([_information(load_ME) for load_ME in load_LME]))
        result |= {f"router/{name}/{key}": float(value) for key, value in row.items()}
    return result


def specialisation(load_LME) -> np.ndarray:
    """`[L, E]`: (R_a - R_b) / (R_a + R_b), from -1 to 1; 0 for an expert that nobody chose."""
    r_LME = np.stack([load_LME[:, 0], load_LME[:, 1:].sum(1)], axis=1)
    r_LME = r_LME / np.maximum(r_LME.sum(-1, keepdims=True), 1)
    both_LE = r_LME.sum(1)
    return np.where(both_LE > 0, (r_LME[:, 0] - r_LME[:, 1]) / np.where(both_LE > 0, both_LE, 1), 0)


def _information(load_ME) -> float:
    p_ME = load_ME / max(load_ME.sum(), 1)
    apart_ME = p_ME.sum(1, keepdims=True) * p_ME.sum(0, keepdims=True)
    return (p_ME * np.log(np.where(p_ME > 0, p_ME, 1) / np.where(p_ME > 0, apart_ME, 1))).sum()


def loads(reports: Mapping, modalities) -> dict:
    """`{component/tower: {modality: [L][E]}}`: the fraction of the modality's choices that an expert took."""

    def fractions(load_LE):
        return (load_LE / np.maximum(load_LE.sum(-1, keepdims=True), 1)).round(5).tolist()

    return {
        name: {m: fractions(r.load_BME[:, i]) for i, m in enumerate(modalities) if r.tokens_BM[:, i].any()}
        for name, r in reports.items()
    }

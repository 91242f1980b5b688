"""Makes one step of a run again: every leaf's gradient, every document's loss, and whether the row has these bits."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch import arguments, cores
from launch.process import guarded
from mot.console import say_once
from mot.runs import rundir
from mot.train import replay


def main(argv: list[str] | None = None) -> int:
    p = arguments.replay()
    options = p.parse_args(argv)
    # As many as the run had, as XLA takes sums in an order that depends on it.
    cores.make(replay.devices(replay.started(rundir.read_metrics(options.run), options.step)))
    found = replay.run(options.run, options.step, say_once, options.fetch)
    for line in told(options.run, options.step, found):
        print(line)
    leaves = [(leaf.path, f"{leaf.norm:.6g}", str(leaf.not_finite)) for leaf in found.leaves]
    _print("gradients", ("leaf", "norm", "not finite"), leaves, options.rows)
    documents = [(*d[:3], str(d.tokens), f"{d.loss:.4f}") for d in found.documents]
    _print("documents", ("source", "document", "modality", "tokens", "loss"), documents, options.rows)
    return 0


def told(path: Path, step: int, found: replay.Replayed) -> list[str]:
    """What there is to say before the tables."""
    figures = found.figures
    became = "applied" if found.applied else "skipped"
    lines = [
        f"{path.name} step {step}: loss {figures['objective']!r}, gradient norm {figures['grad_norm']!r}; {became}"
    ]
    if not found.differences:
        made = f"step {step} is" if found.begun + 1 == step else f"steps {found.begun + 1} to {step} are"
        return [*lines, f"{made} the same as in metrics.jsonl, to the bit"]
    lines += ["not the bits of metrics.jsonl:", *(f"  {line}" for line in found.differences)]
    if found.elsewhere:
        lines.append(f"  made elsewhere (then -> now): {', '.join(found.elsewhere)}")
    return lines


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], most: int) -> None:
    """A table's first `most` rows, or all where it is 0."""
    shown = rows[:most] if most else rows
    of = f"{len(shown)} of {len(rows)}; --rows 0 shows all" if len(shown) < len(rows) else f"{len(rows)}"
    table = Table(title=f"{title}: {of}", title_justify="left")
    for i, column in enumerate(columns):
        is_number = column in ("norm", "not finite", "tokens", "loss")
        table.add_column(column, justify="right" if is_number else "left", overflow="fold", no_wrap=i > 0)
    for row in shown:
        table.add_row(*row)
    Console().print(table, markup=False)


if __name__ == "__main__":
    sys.exit(guarded(main))

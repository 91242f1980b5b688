"""What an accelerator reaches, beside what the plan bounds it by: `make bench-device`.

Matmul peak and bandwidth; training steps of dense, MoT and experts at three rungs of the ladder that fit, with
compiling and memory; attention by backend and mask; grouped matmuls by the number of experts. On a CPU: tiny rungs.

Parts come in the order of what they are worth. Each begins only where time is left for it, and what was left out is
told. OUT/device.json, OUT/device.md and OUT/device.png are written after each part.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from bench.device import page
from bench.device.asked import LATE, Worker
from bench.device.kernels import attention_backends, dispatch_kinds
from bench.device.machine import ARCHS
from launch.process import guarded
from mot.errors import UserError
from mot.files import write_atomically
from mot.plan import process
from mot.plan.search import ROOM
from mot.runs import provenance

MOST = 1440  # minutes
CLOSING = 5.0  # seconds that are kept for the page and its picture
FIRST = 5.0  # seconds that are left at least where a first part of its kind begins


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    if not 0 < options.minutes <= MOST:
        allowed = f"must be above 0 and at most {MOST}"
        raise UserError(f"--minutes {options.minutes:g}: {allowed}; write as in --minutes 10")
    options.out.mkdir(parents=True, exist_ok=True)
    out = Console(stderr=True)
    results = {"started": provenance.now(), "minutes": options.minutes, "rows": [], "left_out": []}
    measure(results, options.smoke, time.monotonic() + 60 * options.minutes - CLOSING, options.out, out)
    page.show(results)
    out.print(f"{options.out}: device.json, device.md, device.png")
    return int(not any("failed" not in row for row in results["rows"]))


def arguments() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench.device", description=__doc__.partition("\n")[0])
    p.add_argument("--minutes", type=float, default=10.0, help="that all of it may take (default: 10)")
    p.add_argument("--out", type=Path, default=Path("runs/bench-device"), help="a folder (default: runs/bench-device)")
    p.add_argument("--smoke", action="store_true", help="tiny sizes, which say nothing of speed: does all of it run?")
    return p


def measure(results: dict, smoke: bool, deadline: float, folder: Path, out: Console) -> None:
    """Asks for part after part, and writes what is known after each."""
    began = time.monotonic()
    worker = Worker()
    took: dict[str, float] = {}  # seconds of the longest part of a kind
    try:
        out.print("looking at the devices")
        (machine,) = worker.rows({"part": "machine", "smoke": smoke}, deadline)
        if machine.get("failed") == LATE:
            raise UserError("the devices had not answered when the time was over; allow more --minutes, 10 by default")
        if "failed" in machine:
            raise UserError(f"the devices cannot be used: {machine['failed']}")
        results["machine"] = machine
        results["rows"] += too_large(machine)
        todo = list(parts(machine, smoke))
        with process.progress(out) as progress:
            task = progress.add_task("", total=len(todo))
            for part in todo:
                name = page.told(part)
                left = f"{name}, {max(deadline - time.monotonic(), 0):.0f} s left"
                progress.update(task, description=left)
                if not out.is_terminal:  # which shows no bar until the end
                    out.print(left, markup=False, highlight=False)
                start = time.monotonic()
                if deadline - start < took.get(part["part"], FIRST):
                    results["left_out"].append(name)
                else:
                    for row in rows(part, worker, results, deadline):
                        results["rows"].append(row)
                        progress.console.print(page.line(row), markup=False, highlight=False)
                    took[part["part"]] = max(took.get(part["part"], 0), time.monotonic() - start)
                results["seconds"] = time.monotonic() - began
                write_atomically(folder / "device.json", json.dumps(results, indent=1) + "\n")
                page.write(results, folder)
                progress.advance(task)
    finally:
        worker.end(kill=True)


def parts(machine: dict, smoke: bool) -> Iterator[dict]:
    """All parts, by what they are worth: the middle rung, which compiles and fits most surely, before the largest."""
    rungs = machine["rungs"]
    order = [*rungs[1:2], *rungs[2:], *rungs[:1]]
    own, *others = attention_backends(machine["platform"])

    def steps(rungs: list[dict], archs: tuple[str, ...]) -> Iterator[dict]:
        for of in rungs:
            step = {"part": "step", "rung": of["rung"], "rows": of["rows"], "smoke": smoke}
            yield from (step | {"arch": arch} for arch in archs if arch not in of["too_large"])

    yield {"part": "peak", "smoke": smoke}
    yield from steps(order[:1], ARCHS[:2])
    yield {"part": "attention", "backend": own, "smoke": smoke}
    yield from steps(order[1:2], ARCHS[:2])
    for kind in dispatch_kinds(machine["platform"]):
        yield {"part": "grouped", "kind": kind, "smoke": smoke}
    yield from steps(order[:1], ARCHS[2:])
    for backend in others:
        yield {"part": "attention", "backend": backend, "smoke": smoke}
    yield from steps(order[1:2], ARCHS[2:])
    yield from steps(order[2:], ARCHS)


def too_large(machine: dict) -> Iterator[dict]:
    """A row for each architecture that does not fit at a rung where others do."""
    for of in machine["rungs"]:
        for arch, held in of["too_large"].items():
            room = ROOM * machine["memory"]
            told = f"does not fit: one row takes about {held / 1e9:.0f} GB, and {room / 1e9:.0f} GB may be filled"
            yield {"part": "step", "rung": of["rung"], "arch": arch, "failed": told}


def rows(part: dict, worker: Worker, results: dict, deadline: float) -> Iterator[dict]:
    """A part's rows, each with what it is of."""
    of = {key: value for key, value in part.items() if key not in ("smoke", "rows")}
    if part["part"] == "step":
        part = part | {"peak": page.figure(results, "peak", "matmul", "flops")}
        if results["machine"]["counts_memory"]:
            worker.end()  # the most memory that was used is counted for a whole process
    yield from (of | row for row in worker.rows(part, deadline))


if __name__ == "__main__":
    sys.exit(guarded(main))

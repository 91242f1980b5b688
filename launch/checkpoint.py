"""Lists, verifies and compares a run's checkpoints, and shows single parameters; nothing else of them is read."""

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from launch import arguments, flags
from launch.process import guarded
from mot import files
from mot.checkpoint import arrays, folder, manifest
from mot.errors import Damaged, UserError
from mot.runs import written


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if (code := arguments.of_checkpoint(argv)) is not None:
        return code
    options = arguments.PARSERS[argv[0]]().parse_args(argv[1:])
    return COMMANDS[argv[0]](options)


def list_(options) -> int:
    """Each step's size, age and verdict, and what is passed over."""
    checkpoints = options.run / "checkpoints"
    steps = written.saved(options.run)
    print(checkpoints)
    table = Table("step", "size", "age", "verdict")
    now = time.time()
    for step in steps:
        target = checkpoints / str(step)
        size = sum(files.size(target / name) for name in manifest.files(target))
        age = now - files.modified(target / folder.MANIFEST)
        table.add_row(str(step), _size(size), _age(age), _verdict(target))
    Console().print(table)
    for name in folder.ignored(checkpoints):
        print(f"passed over: {name}")
    return 0


def _verdict(target: Path) -> str:
    try:
        manifest.verify(target)
    except Damaged as error:
        return str(error).partition("; ")[0]
    return "verified"


def _size(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def _age(seconds: float) -> str:
    for name, unit in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def verify(options) -> int:
    """Every file's digest, and every array's; 2 where something is damaged."""
    damaged = 0
    for step in [options.step] if options.step is not None else written.saved(options.run):
        written.saved(options.run, step)
        target = options.run / "checkpoints" / str(step)
        try:
            described = manifest.verify(target)["arrays"]
            faults = [f"{path}: {why}" for path, said in described.items() if (why := arrays.fault(target, path, said))]
        except Damaged as error:
            faults = [str(error)]
        damaged += bool(faults)
        print(
            f"step {step}: " + ("\n  ".join(["damaged:", *faults]) if faults else f"verified, {len(described)} arrays")
        )
    return 2 if damaged else 0


def show(options) -> int:
    """Paths with shape and dtype; of one parameter its statistics."""
    target, described = _described(options.run, options.step)
    chosen = [options.path] if options.path in described else _matching(described, options.path)
    if len(chosen) > 1 or not options.path:
        print(target)
        table = Table("path", "shape", "dtype")
        for path in chosen:
            table.add_row(path, str(described[path]["shape"]), described[path]["dtype"])
    else:
        (path,) = chosen
        print(target)
        table = Table(path, f"{described[path]['dtype']}{described[path]['shape']}")
        for name, value in statistics(_read(target, path)).items():
            table.add_row(name, f"{value:.6g}")
    Console().print(table)
    return 0


def statistics(x: np.ndarray) -> dict[str, float]:
    """Of the finite values: mean, std, min, max, norm; of all, which fraction is zero and which is not finite."""
    values = np.asarray(x, np.float64).ravel()
    finite = values[np.isfinite(values)]
    if not finite.size:
        return {"not finite": 1.0 if values.size else 0.0}
    result = {"mean": finite.mean(), "std": finite.std(), "min": finite.min(), "max": finite.max()}
    result |= {"norm": np.linalg.norm(finite), "zeros": (values == 0).mean()}
    return result | {"not finite": 1 - finite.size / values.size}


def diff(options) -> int:
    """Path by path: absent, of another shape, or how far apart; equal ones are counted."""
    (a, here), (b, there) = (_described(*_run_and_step(given)) for given in (options.a, options.b))
    print(f"{a} -> {b}")
    table = Table("path", "difference")
    equal = 0
    for path in sorted({*here, *there}):
        if here.get(path) == there.get(path):
            equal += 1
        else:
            table.add_row(path, _difference(a, b, path, here.get(path), there.get(path)))
    Console().print(table)
    print(f"{equal} of {len({*here, *there})} arrays are equal, bit for bit")
    return 0


def _difference(a: Path, b: Path, path: str, here: Mapping | None, there: Mapping | None) -> str:
    if here is None or there is None:
        return f"absent in {a if here is None else b}"
    if (here["shape"], here["dtype"]) != (there["shape"], there["dtype"]):
        return f"{here['dtype']}{here['shape']} -> {there['dtype']}{there['shape']}"
    x, y = (np.asarray(_read(target, path), np.float64) for target in (a, b))
    norm = np.linalg.norm(x)
    apart = np.linalg.norm(y - x)
    return f"relative norm {apart / norm:.3g}" if norm else f"norm {apart:.3g}, of zeros"


def _run_and_step(given: str) -> tuple[Path, int | None]:
    """`RUN:STEP`, or `RUN`."""
    found = re.fullmatch(r"(.+):(\d+)", given, re.ASCII | re.DOTALL)
    is_whole = not found or files.as_path(given).exists()
    path, step = (given, None) if is_whole else (found[1], int(found[2]))
    flags.refuse_absent(files.as_path(path), "run directory")
    return files.as_path(path), step


def _described(run: Path, step: int | None) -> tuple[Path, dict]:
    """A step's folder (by default the newest's) and what its manifest says of its arrays."""
    step = written.saved(run, step)[-1] if step is None else written.saved(run, step) and step
    target = run / "checkpoints" / str(step)
    described = manifest.read(target)["arrays"]
    if not described:
        raise UserError(f"{target} is of a version that described no arrays; resume the run, and name its next step")
    return target, described


def _matching(described: Mapping, pattern: str) -> list[str]:
    try:
        found = [path for path in described if re.search(pattern, path)]
    except re.error as error:
        raise UserError(f"{pattern!r} is no regular expression ({error}); mend it") from None
    if not found:
        near = flags.asked(pattern, described) or f"; they are called as {next(iter(described))}"
        raise UserError(f"{pattern!r} matches no path of this checkpoint{near}")
    return found


def _read(target: Path, path: str) -> np.ndarray:
    try:
        return arrays.read(target, path)
    except (ValueError, OSError) as error:
        raise Damaged(f"{target}: {path} cannot be read ({str(error).splitlines()[0]:.200})") from None


COMMANDS = {"list": list_, "verify": verify, "show": show, "diff": diff}

if __name__ == "__main__":
    sys.exit(guarded(main))

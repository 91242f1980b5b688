"""Trains one configuration, or resumes it: the same command does both. --runs: several that differ in numbers."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from launch import arguments, cores, flags
from launch.process import guarded
from mot import sharding
from mot.config import Config, load
from mot.errors import UserError
from mot.train import ensemble, loop

PATIENCE = 300  # seconds that a process waits for the others of its run


def main(argv: list[str] | None = None) -> int:
    p = arguments.train()
    options, overrides = flags.parse(p, argv)
    if options.distributed is not None:
        join(options.distributed)
    tree = load.read(options.config, overrides)
    config = flags.build(tree)
    accept = arguments.accepted(options.accept)
    if options.runs is not None:
        configs = arguments.several(options.runs, options.config, overrides, config, flags.build)
        cores.take(*configs, together=True)
        _tell_unused()
        paths = ensemble.run(configs, profiled=options.profile, accept=accept)
        print(*paths, sep="\n")
        tell_next(paths, config)
        return 0
    if options.distributed is None:  # else each process has what its user gave it
        cores.take(config)
    _tell_unused()
    path = loop.run(config, profiled=options.profile, accept=accept)
    print(path)
    tell_next([path], config, further(config, path, options.config, overrides, paid=bool(tree.run.flops)))
    return 0


def further(
    config: Config, path: Path, file_and_arg: str, overrides: dict[str, str], paid: bool = False
) -> tuple[str, str]:
    """How a run that has ended is trained further: what that is, and a line to paste.

    `paid`: `run.flops` set its steps, and with them the warm-up, which must stay.
    """
    steps = config.run.steps
    schedule = config.optim.schedule
    if schedule == "constant":
        what = "further: its rate is constant, so the same run goes on"
        given = overrides | {"run.steps": str(2 * steps)}
        if paid:
            given |= {"run.flops": "0", "optim.warmup": str(config.optim.warmup)}
    else:
        given = {key: value for key, value in overrides.items() if not key.startswith("init.")}
        what = (
            f"further: its {schedule} schedule ended at step {steps}, so another run begins from it (one that begins "
            "with optim.schedule=constant, or wsd, can itself go on)"
        )
        given |= {"init.run": str(path), "run.name": f"{path.name}-further"}
    options = [f"--config.{key}={value}" for key, value in given.items()]
    return what, flags.command("train", f"--config={file_and_arg}", *options)


def tell_next(paths: Sequence[Path], config: Config, *more: tuple[str, str]) -> None:
    """What can be done with runs that have ended, in lines to paste; of `more`, what each is, and its line."""
    if not sharding.is_first_process():
        return
    lines = [("held-out losses of its newest checkpoint", flags.command("evaluate", str(paths[0])))]
    if any(s.is_drawn for s in config.streams.values()):
        lines.append(("what it draws and writes", flags.command("sample", str(paths[0]))))
    lines += [("a page about it, beside other runs", flags.command("report", *map(str, paths))), *more]
    print("next:", *(f"  {line}  # {what}" for what, line in lines), sep="\n", file=sys.stderr)


def _tell_unused() -> None:
    if message := cores.unused():
        print(f"warning: {message}", file=sys.stderr)


def join(text: str) -> None:
    """Makes this process one of several; `UserError` where it cannot be told which."""
    advice = "where no cluster tells, write HOST:PORT,I,N with I below N, as in 10.0.0.1:1234,0,2"
    found = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", text, re.ASCII)
    if text != "auto" and not (found and int(found[2]) < int(found[3])):
        raise UserError(f"--distributed={text}: names no process of several; {advice}")
    try:
        if text == "auto":
            return jax.distributed.initialize()
        address, number, count = found.groups()
        print(f"process {number} of {count} waits for all, at most {PATIENCE} s, at {address}", file=sys.stderr)
        jax.distributed.initialize(address, int(count), int(number), initialization_timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed={text}: {error}; {advice}") from error


if __name__ == "__main__":
    sys.exit(guarded(main))

"""What is wrong with a command line of `mot launch`, and the job that it means, as far as JAX is not needed."""

import importlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from launch import arguments, flags
from launch.targets import job
from launch.targets.job import OPTIONS, Job, Target
from mot.config import Config, load
from mot.errors import UserError
from mot.files import is_address

LAUNCHED = ("train", "sweep")
FOLLOWING = ("status", "logs", "stop", "keep")
OWN = ("target", "name", "dry_run", "unplanned")  # options of a launch, whatever its target


def target(name: str) -> Target:
    return importlib.import_module(f"launch.targets.{name.replace('-', '_')}").TARGET


def judge(argv: Sequence[str]) -> tuple[Any, Job]:
    """The options, and the job that they ask for, or that of `status NAME` and the like.

    `options.words` are those of the command after `--`, or of the following. Raises `UserError` with all that is wrong.
    """
    if "--" not in argv and (found := [word for word in argv if word in LAUNCHED]):
        raise UserError(f"-- is missing before {found[0]}: what is launched stands after it; write -- {found[0]} ...")
    options = arguments.launch().parse_args(argv)
    words = options.words
    if not words or words[0] not in (*LAUNCHED, *FOLLOWING):
        said = f"{words[0]!r} is nothing to launch" if words else "nothing to launch is given"
        raise UserError(f"{said}; write -- train ... or -- sweep ..., or one of {', '.join(FOLLOWING)} and a name")
    if words[0] in FOLLOWING:
        return options, _followed(options, words)
    if options.target is None:
        raise UserError(f"--target is missing: where; allowed: {', '.join(job.TARGETS)}; name one")
    if options.follow:
        raise UserError("--follow: is of `mot launch logs NAME`; leave it out")
    return options, _launched(options, words)


def _followed(options: Any, words: Sequence[str]) -> Job:
    if len(words) != 2:
        raise UserError(f"{words[0]}: takes one name, and got {len(words) - 1}; give one")
    given = [f"--{name}" for name in (*OWN, *OPTIONS) if getattr(options, name) not in (None, False)]
    if given:
        raise UserError(f"{words[0]}: takes no {', '.join(given)}; leave them out")
    followed = job.load(words[1])
    if words[0] == "keep" and target(followed.target).keep is None:
        raise UserError(f"keep: {followed.name} is of {followed.target}, which keeps it itself; leave it out")
    return followed


def _launched(options: Any, words: list[str]) -> Job:
    found = target(options.target)
    faults, told = _options(options)
    config = None
    if words[0] == "train":
        config = _configuration(words, apart=options.target != "local")
    elif words[0] in arguments.PARSERS:
        rows = _rows(words, apart=options.target != "local")
        if told.get("rows", 0) > rows:
            faults.append(f"--rows={told['rows']}: the sweep has {rows}; leave it out")
        if "rows" in told:
            told["rows"] = told["rows"] or rows
    name = options.name
    if name is None:
        name = re.sub("[^a-z0-9]+", "-", config.run.name.lower() if config else "sweep")
    if not re.fullmatch(job.NAME, name, re.ASCII):
        whose = "--name=" if options.name is not None else "the run's name, "
        faults.append(f"{whose}{name!r}: must match {job.NAME}, as clusters ask; give such a --name")
    made = Job(
        name=name,
        target=options.target,
        command=words,
        options=told,
        slices=config.mesh.slices if config else 1,
        root=f"{config.run.root.rstrip('/')}/{config.run.name}" if config else "",
        steps=config.run.steps if config else 0,
    )
    if not faults:
        faults += found.refuse(made)
    if options.target in job.CLOUD:
        faults += _places(made)
    if faults:
        raise UserError("\n  ".join(["nothing was launched:", *faults]) if len(faults) > 1 else faults[0])
    return made


def _options(options: Any) -> tuple[list[str], dict[str, Any]]:
    """Faults of what was said of the target, and its options with what was not said."""
    faults: list[str] = []
    told: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        given = getattr(options, name)
        is_its = options.target in option.targets
        if is_its:
            told[name] = option.default
        if given is None:
            continue
        shown = f"--{name}" if given is True else f"--{name}={given!r}"
        if not is_its:
            faults.append(f"{shown}: is for {', '.join(option.targets)}, not for {options.target}; leave it out")
        elif given is not True and not re.fullmatch(option.pattern, given, re.ASCII):
            example = f", as {option.example}" if option.example else ""
            faults.append(f"{shown}: must match {option.pattern}{example}; correct it")
        else:
            told[name] = type(option.default)(given)
    return faults, told


def training(words: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """Options and overrides of `train ...`."""
    return flags.parse(arguments.train(), [*words[1:]])


def _configuration(words: Sequence[str], apart: bool) -> Config:
    """Of a training, judged as `mot train` does; where it runs `apart`, without a look at what lies there."""
    options, overrides = training(words)
    if options.distributed is not None:
        raise UserError("--distributed: launch says itself how many processes there are; leave it out")
    arguments.check("train", [*words[1:], *["--distributed"] * apart])
    return flags.judged(load.read(options.config, overrides))


def _rows(words: Sequence[str], apart: bool) -> int:
    """How many rows a sweep has, all judged as `mot sweep` does; where they run `apart`, without a look at what lies
    there."""
    from launch import sweep_rows

    options = arguments.PARSERS["sweep"]().parse_args(words[1:])
    if options.row is not None or options.distributed is not None:
        raise UserError("--row, --distributed: launch gives these to the jobs of a sweep's rows; leave them out")
    if options.dry_run or options.topology is not None:
        raise UserError("--dry-run, --topology after --: nothing would be trained; call `mot sweep` with them here")
    rows = sweep_rows.read(options.sweep)
    out = options.out or sweep_rows.usual_out(options.sweep)
    if not apart:
        sweep_rows.refuse_other(out, options.sweep, rows)
    return len(sweep_rows.judged(options.sweep, rows, out))


def _places(job_: Job) -> Iterator[str]:
    """What must lie where every machine reaches it, and does not."""
    root = job_.root
    given = "--config.run.root"
    if job_.is_sweep:
        root = next((after for word, after in zip(job_.command, job_.command[1:], strict=False) if word == "--out"), "")
        root = next((word.partition("=")[2] for word in job_.command if word.startswith("--out=")), root)
        given = "--out"
    if not is_address(root):
        yield f"{given}: {root or 'nothing'} lies on no machine that stays; write {given}=gs://BUCKET/runs"

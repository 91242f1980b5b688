"""What is wrong with a command line that can be told from the run directories and datasets it names, without JAX.

`launch.arguments.check` asks; whoever computes later checks what only it can know.
"""

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launch import flags
from mot.config import Config
from mot.config.options import ANY, EVALUATIONS, QUESTION, SOLVERS
from mot.data import captions
from mot.data.manifest import read_json
from mot.errors import UserError
from mot.files import as_path, is_bucket, numbered
from mot.runs import swept, written

RANGES = {  # of the options of `mot sample`
    "n": (1, 10_000),
    "each": (1, 1000),
    "read": (0, 1000),
    "max_text": (0, 65_536),
    "max_media": (0, 1000),
    "length": (1, 65_536),
    "temperature": (0, 100),
    "top_k": (0, 2**31 - 1),
    "top_p": (1e-6, 1),
    "guidance": (0, 100),
    "steps": (1, 10_000),
    "block": (1, 65_536),
    "seed": (0, 2**31 - 1),
}


def folder(path: Path, flag: str) -> None:
    """Raises `UserError` where no folder can be made at `path`, or nothing be written there; leaves nothing behind."""
    if is_bucket(path):
        return _bucket(path, flag)
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{flag} {path}: {there} is a file, not a folder; move it away, or name another folder")
    probe = there / f".mot-{os.getpid()}.partial"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UserError(
            f"{flag} {path}: nothing can be written in {there} ({error.strerror}); name another folder, or change its "
            "permissions"
        ) from None


def _bucket(path: Path, flag: str) -> None:
    probe = path / f".mot-{os.getpid()}.partial"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except Exception as error:  # gcsfs's own, the network's, and that the extra is not installed
        raise UserError(
            f"{flag} {path}: nothing can be written there ({type(error).__name__}: {error!s:.200}); see that the "
            "bucket exists, that this machine's account may write to it, and that the extra gcs is installed"
        ) from None


def training(configs: Sequence[Config]) -> None:
    """Of runs that are to be trained: where they lie, and the run that they begin from."""
    for c in configs:
        path = written.folder(c)
        folder(path, "run.root, run.name:")
        if c.init.run and not numbered(path / "checkpoints", holding="manifest.json"):
            beginning(c)


def beginning(config: Config) -> None:
    """Raises `UserError` where `init.run` is no run, or has no checkpoint of `init.step`."""
    try:
        written.config_as_written(as_path(config.init.run))
        written.saved(as_path(config.init.run), config.init.step or None)
    except UserError as error:
        raise UserError(f"init.run: {error}") from None


def exports(options: Any) -> None:
    """Of `mot export`."""
    if not 1 <= options.shard_mb <= 1_000_000:
        raise UserError(f"--shard-mb={options.shard_mb}; must be from 1 to 1,000,000; give a number of that range")
    flags.refuse_absent(options.run, "run directory")
    written.read_config(options.run)
    written.saved(options.run, options.step)


OF_EVALUATIONS = {  # an option of `mot evaluate`, and the kinds that it is for
    "answers": ("ranking",),
    "pool": ("retrieval",),
    "pools": ("retrieval",),
    "documents": ("conditioning",),
    "draws": ("judged", "distances"),
    "steps": ("judged", "distances"),
    "features": ("distances",),
    "tasks": ("harness",),
    "task_folder": ("harness",),
    "shots": ("harness",),
    "limit": ("harness",),
}
EVALUATION_RANGES = {"pool": (2, 1000), "pools": (1, 10_000), "documents": (2, 100_000), "draws": (2, 100_000)}
EVALUATION_RANGES |= {"steps": RANGES["steps"], "shots": (0, 1000), "limit": (1, 10**9)}
WITHOUT_SAMPLES = ("loss", "bits")


def evaluation(options: Any, overrides: dict[str, str], config: Config | None) -> list[str]:
    """The kinds that are asked for. `config`: that of --config, where it is given."""
    what = _kinds(options.what)
    for name, kinds in OF_EVALUATIONS.items():
        if getattr(options, name) is not None and not {*kinds} & {*what}:
            raise UserError(f"--{name}={getattr(options, name)}: is for --what {' or '.join(kinds)}; leave one out")
    for name, (least, most) in EVALUATION_RANGES.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name}={value}; must be from {least} to {most:,}; give a number of that range")
    if "ranking" in what:
        _answers(options.answers)
    if "harness" in what:
        _harness(options)
    if options.features is not None:
        _features(options.features)
    if options.out is not None:
        if options.out.is_dir():
            raise UserError(f"--out {options.out}: is a folder; name a file in it")
        folder(options.out.parent, "--out")
    if options.config and (beyond := [kind for kind in what if kind not in WITHOUT_SAMPLES]):
        raise UserError(f"--what={options.what}: {beyond[0]} is of a run directory; name it in place of --config")
    if (options.run is None) == (not options.config):
        raise UserError("give a run directory, or the --config=FILE:arg that it was trained with")
    if options.run and overrides:
        raise UserError(f"--config.{next(iter(overrides))}: a run directory has its own configuration; leave it out")
    path = options.run if config is None else written.folder(config)
    if config is None:
        known_data(path, written.config_as_written(path), options.fetch)
    else:
        written.read_config(path)
    written.saved(path, options.step)
    if config is None:
        _of_the_run(what, options, written.config_as_written(path))
    return what


def _kinds(said: str) -> list[str]:
    """The kinds of --what, each once."""
    kinds = [kind.strip() for kind in said.split(",")]
    for kind in kinds:
        if kind not in EVALUATIONS:
            near = flags.asked(kind, EVALUATIONS) or "; write some of these"
            raise UserError(
                f"--what={said}: {kind!r} is no kind of evaluation; allowed: {', '.join(EVALUATIONS)}, with commas "
                f"between{near}"
            )
    return list(dict.fromkeys(kinds))


def _answers(file: Path | None) -> None:
    if file is None:
        raise UserError(f"--answers is missing: ranking needs a file of questions, one a line, as {QUESTION}")
    flags.refuse_absent(file, "file", "--answers=")
    if file.is_dir():
        raise UserError(f"--answers={file}: is a folder; name a file of JSON lines in it")


def _harness(options: Any) -> None:
    if not options.tasks:
        raise UserError(
            "--tasks is missing: the harness needs tasks, as --tasks=hellaswag; `lm-eval ls tasks` lists them"
        )
    if options.task_folder is not None and not options.task_folder.is_dir():
        raise UserError(
            f"--task-folder={options.task_folder}: there is no such folder; name one that has tasks in YAML"
        )
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("the package lm-eval is not installed; `pip install lm-eval`, or mot's extra eval")


def _features(said: str) -> None:
    name, colon, function = said.partition(":")
    flags.refuse_absent(Path(name), "file", "--features=")
    is_program = name.endswith(".py")
    if (
        not (is_program or name.endswith(".npz"))
        or is_program != bool(colon)
        or (colon and not function.isidentifier())
    ):
        raise UserError(
            f"--features={said}: must be an .npz of arrays real and generated, or FILE.py:NAME, a function of a file; "
            "name one of these"
        )


def _of_the_run(what: Sequence[str], options: Any, config: Config) -> None:
    """Raises `UserError` where a run has not what a kind of evaluation needs."""
    is_embedded = "embedded" in config.data.sources.values()
    if "judged" in what and not is_embedded:
        raise UserError("--what=judged: there is a classifier of the embedded digits alone; leave it out")
    if "distances" in what and not is_embedded and not options.features:
        raise UserError(
            "--features is missing: distances need features, and there is a classifier of the embedded digits alone; "
            "name an .npz of arrays real and generated, or FILE.py:NAME"
        )
    if "labels" in what and not any(map(config.has_states, config.streams)):
        raise UserError("--what=labels: no stream of this run is of units that have states; leave it out")
    by_likelihood = ["ranking", "conditioning", "harness"]
    if len(config.streams) > 1 and len(config.objective.contrastive.pools) < 2:
        by_likelihood.append("retrieval")
    if config.data.blocks == "document" and (without := [kind for kind in what if kind in by_likelihood]):
        raise UserError(
            f"--what={without[0]}: needs likelihoods, and this run has none: data.blocks is 'document', where all "
            "tokens see later ones; leave it out, or train with 'units' or 'prefix'"
        )
    if options.steps is not None and (use := _not_there(config).get("steps")):
        raise UserError(f"--steps={options.steps}: is for {use}, and this run has none; leave it out")


def known_data(path: Path, config: Config, fetch: bool) -> None:
    """Raises `UserError` where a run names data at addresses that its user has not named."""
    if any("://" in address for address in config.data.sources.values()):
        from mot.data import remote  # which takes a moment to import

        remote.refuse_unknown(path, config.data.sources, fetch)


def replay(options: Any) -> None:
    config = written.config_as_written(options.run)
    if not 1 <= options.step <= config.run.steps:
        raise UserError(f"step {options.step}: {options.run} has steps 1 to {config.run.steps}; choose one of them")
    known_data(options.run, config, options.fetch)
    if options.rows < 0:
        raise UserError(f"--rows={options.rows}; must be 0, for all, or more")


def probe(options: Any, steps: Sequence[int] | None, what: Sequence[str]) -> None:
    """`steps`: None are all; else those of which each must be there."""
    config = written.config_as_written(options.run)
    known_data(options.run, config, options.fetch)
    written.probes(options.run, config, what)
    for step in steps or [None]:
        written.saved(options.run, step)
    folder(options.run / "probes", "the run directory")


def report(options: Any) -> None:
    if options.watch:
        path = as_path(options.runs[0])
        if len(options.runs) > 1 or is_bucket(path) or not swept.is_sweep(path):
            given = " ".join(map(str, options.runs))
            raise UserError(f"--watch {given}: give one folder of this machine in which a sweep was begun, its --out")
        if options.port is not None and not 0 <= options.port < 2**16:
            raise UserError(f"--port={options.port}: must be from 1 to {2**16 - 1}, or 0 for any that is free")
        folder(options.out or path, "--out")
        return
    if options.port is not None:
        raise UserError(f"--port={options.port}: is for --watch; leave it out, or add --watch")
    found = swept.named(options.runs)
    for path in found:
        written.read_config(path)
    if is_bucket(found[0]) and not options.out:
        raise UserError("--out is missing: a browser opens a page of this machine; name a folder for it")
    folder(options.out or found[0].parent, "--out")


def inspection(options: Any) -> None:
    if (options.dataset is None) == (options.config is None):
        raise UserError("give a dataset's folder, or --config=FILE:arg for a packed batch")
    if options.out and options.out.is_dir():
        raise UserError(f"--out {options.out}: is a folder; name a file in it, as {options.out / 'preview.png'}")
    if options.dataset is None:
        return
    count = read_json(options.dataset)["splits"][options.split]["documents"]
    for i in options.document:
        documents(i, count, options.split)


def documents(i: int, count: int, split: str) -> None:
    if not 0 <= i < count:
        has = f"documents 0 to {count - 1}" if count else "no documents"
        raise UserError(f"--document={i}; {split} has {has}; name one of these")


def plan(options: Any, overrides: dict[str, str], default: str) -> None:
    """`default`: of --config."""
    if options.ladder:
        given = [name for name in ("topology", "out", "search", "quick") if getattr(options, name)]
        given += [f"config.{key}" for key in overrides]
        given += ["config"] * (options.config != default)
        if given:
            raise UserError(f"--ladder is of all rungs, and takes no --{', --'.join(given)}; leave one out")
    elif not options.topology:
        from mot.plan import chips

        raise UserError(f"--topology is missing; write as in {chips.EXAMPLES}")
    if options.out:
        file_to_write(options.out)


def file_to_write(path: Path) -> None:
    """Raises `UserError` where `--out` cannot be a file at `path`."""
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; name a file in it")
    folder(path.parent, "--out")


# --- mot sample ------------------------------------------------------------------------------------------------------


def sampling(run: Path, step: int | None, options: Any) -> None:
    """Of `launch.arguments.Options`."""
    config = written.config_as_written(run)
    known_data(run, config, options.fetch)
    refuse(of_options(options, config, is_of_digits(options, config)))
    written.saved(run, step)
    for file in options.files:
        prompt_file(file)
    folder(options.out or run / "samples", "--out")


def prompt_file(file: Path) -> None:
    flags.refuse_absent(file, "file", "--prompt-file=")
    if file.is_dir():
        raise UserError(f"--prompt-file={file}: is a folder; name a document in it, a file of JSON")


def refuse(found: Iterable[str]) -> None:
    """Raises `UserError` with all faults of the options, if there are any."""
    if faults := list(dict.fromkeys(found)):
        raise UserError("\n  ".join(["nothing was sampled", *faults]) if len(faults) > 1 else faults[0])


def is_size(written: str) -> bool:
    return re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", written, re.ASCII) is not None


def is_of_digits(options: Any, config: Config) -> bool:
    """Are digits drawn and read, rather than documents gone on with?"""
    return "embedded" in config.data.sources.values() and not options.continues


def of_options(o: Any, config: Config, of_digits: bool) -> Iterator[str]:
    """What is wrong with the options for a run of this configuration, or for digits drawn and read by it."""
    prompts = [*(o.prompts or ()), *o.texts, *o.files]
    if of_digits:
        yield from captions.faults(o.prompts or ())
    else:
        yield from _of_documents(o, config)
    for flag, texts in (("prompt", o.prompts or ()), ("text", o.texts)):
        for text in texts:
            if any("\ud800" <= character <= "\udfff" for character in text):
                shown = text if len(text) <= 60 else text[:57] + "..."
                yield f"--{flag} {shown!r}: holds half a character (a lone surrogate), which is no text; write UTF-8"
    if o.size is not None and not is_size(o.size):
        yield f"--size={o.size}: must be WIDTHxHEIGHT in pixels, as 24x40; write it so"
    if o.n is not None and o.each is not None:
        yield f"--n={o.n}, --each={o.each}: each says how many; give one"
    if o.n is not None and prompts and 0 < o.n < len(prompts):
        yield f"--n={o.n}: there are {len(prompts)} prompts; ask for as many rows at least"
    apart = set()  # options that are no use here: whether they are in range does not matter
    for flag, what in _not_there(config).items():
        if getattr(o, flag) is not None:
            apart.add(flag)
            yield f"--{flag}={getattr(o, flag)}: is for {what}, and this run has none; leave it out"
    if o.solver not in (None, *SOLVERS):
        yield f"--solver={o.solver}: unknown; allowed: {', '.join(SOLVERS)}; choose one"
    for flag, (least, most) in RANGES.items():
        value = getattr(o, flag)
        if value is not None and flag not in apart and not least <= value <= most:
            yield f"--{flag.replace('_', '-')}={value}; must be from {least} to {most}; give a number of that range"


def _not_there(config: Config) -> dict[str, str]:
    """The options that a run has no use for, and what each is for."""
    streams = config.streams.values()
    vectors = any(s.diffuses for s in streams)
    units = vectors or any(s.masks == "unit" for s in streams)
    in_steps = "vectors and masked ids"
    return (
        ({} if units else {"guidance": "vectors and units of masked ids"})
        | ({} if vectors else {"solver": "vectors"})
        | ({} if vectors or config.masks else {"steps": in_steps})
        | ({} if any(s.masks == "document" for s in streams) else {"block": "text that is masked by document"})
    )


def _of_documents(o: Any, config: Config) -> Iterator[str]:
    drawn = [s.modality for s in config.streams.values() if s.modality != "text" and s.is_drawn]
    for flag in ("each", "read"):
        if getattr(o, flag) is not None:
            yield f"--{flag}={getattr(o, flag)}: is for digits that are drawn and read; use --n, or --prompt-file"
    opens = o.draw or (drawn[0] if drawn and o.prompts else ANY)
    if o.max_media == 0 and opens in drawn:
        yield f"--max-media=0: and {opens} is to be drawn first; allow at least 1, or write --draw={ANY}"
    if o.draw not in (None, ANY, *drawn):
        near = flags.asked(o.draw, drawn)
        yield f"--draw={o.draw}: this run draws {', '.join(drawn) or 'nothing'}; write one of these, or {ANY}{near}"

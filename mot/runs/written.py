"""What can be read of a run directory without JAX: its configuration as written, and which steps it saved.

So a command line that names no run, or a step that the run lacks, is answered at once.
"""

import dataclasses
import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mot.config import Config, resolve
from mot.config.options import PROBES
from mot.config.renames import modern
from mot.console import say_once
from mot.errors import Damaged, UserError
from mot.files import as_path, digest_of, is_bucket, numbered, size

LARGEST_CONFIG = 2**20  # bytes; one that names hundreds of streams has a tenth


def folder(config: Config) -> Path:
    return as_path(config.run.root) / config.run.name


def saved(path: Path, step: int | None = None) -> list[int]:
    """The steps of a run's checkpoints; raises `UserError` where there are none, or `step` is not among them."""
    steps = numbered(path / "checkpoints", holding="manifest.json")
    if not steps:
        raise UserError(f"{path} has no checkpoint yet; `mot train` with its configuration makes one")
    if step is not None and step not in steps:
        raise UserError(f"{path} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}; choose one")
    return steps


def read_config(path: Path) -> dict:
    """A run's configuration as written; raises `Damaged` where the folder is no run or the file is not whole."""
    file = path / "config.json"
    if file.is_dir():
        raise Damaged(
            f"{path} is no run directory: its config.json is a folder; name a run's own folder, or to train choose "
            "another run.name"
        )
    if not file.is_file():
        if not path.exists():
            raise Damaged(f"{path}: there is no such run directory; name one that exists, or train it first")
        held = sorted(p.name for p in path.iterdir())[:5] if path.is_dir() else "a file"
        raise Damaged(
            f"{path} is no run directory: no config.json, but {held}; name a run's own folder, or to train choose "
            "another run.name"
        )
    if (found := size(file)) > LARGEST_CONFIG:
        not_ours(file, f"it has {found:,} bytes, and no configuration has more than {LARGEST_CONFIG:,}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        not_ours(file, error)
    if isinstance(config, dict) and config.pop("digest", None) not in (None, digest_of(config)):
        not_ours(file, "its digest does not match: it was changed after it was written; without its digest it is taken")
    sections = {f.name for f in dataclasses.fields(Config)}
    if not isinstance(config, dict) or "run" not in config:
        not_ours(file, f"it needs the sections {', '.join(sorted(sections))}")
    if odd := [name for name in sorted(sections & config.keys()) if not isinstance(config[name], dict)]:
        not_ours(file, f"{odd[0]} is {json.dumps(config[odd[0]]):.60}; every section must be a group of keys")
    if lacks := sorted(sections - config.keys()):
        not_ours(file, f"it lacks {', '.join(lacks)}; a run of an earlier version of mot is read by that one")
    optim = config["optim"]
    if "base_rules" not in optim:  # of a version whose `rules` were all there are
        config["optim"] = optim | {"freeze": "", "rules": [], "base_rules": optim.get("rules", [])}
    config, renamed = modern(config)
    if renamed:
        say_once(f"{file} is of an earlier version, with other names: {', '.join(renamed)}")
    return config


def probes(path: Path, config: Config, what: Sequence[str] = ()) -> list[str]:
    """The kinds of probes that are asked for, by default all that a run has.

    `UserError` where it has one modality alone, or nothing of a kind.
    """
    if len(config.modalities) < 2:
        raise UserError(
            f"{path}: a run of {', '.join(config.modalities)} alone; there is nothing to compare; "
            "probe a run of two modalities or more"
        )
    there = [kind for kind in PROBES if kind != "experts" or any(config.sparse)]
    if absent := [kind for kind in what if kind not in there]:
        raise UserError(f"{absent[0]}: {path} has none; its probes are {', '.join(there)}; ask for these")
    return [kind for kind in there if kind in (what or there)]


def sealed(config: dict) -> str:
    """A plain configuration as config.json holds it: with a digest, so that a bit that flips is noticed."""
    return json.dumps(config | {"digest": digest_of(config)}, indent=1)


def config_as_written(path: Path) -> Config:
    """A run's configuration, checked; raises `Damaged` where `read_config` does and where a value is not allowed."""
    config = read_config(path)
    try:
        return resolve(config)
    except UserError as error:
        not_ours(path / "config.json", error)


def named(patterns: Sequence[str | Path]) -> list[Path]:
    """The run directories that paths and globs name, each once, in order.

    Raises `UserError` for what names nothing, and where there is no run at all; files among runs (a shell's `runs/*`
    names the report beside them) are passed over.
    """
    paths: dict[Path, Path] = {}
    for pattern in map(str, patterns):
        is_folder = as_path(pattern).is_dir()
        matches = [as_path(pattern)] if is_folder else _matching(pattern)
        if not matches:
            raise UserError(
                f"{pattern}: no run directory there; give folders that hold a config.json, or a glob of them"
            )
        for path in [path for path in matches if is_folder or (path / "config.json").exists()]:
            paths.setdefault(path if is_bucket(path) else path.resolve(), path)  # one run by two names is one run
    if not paths:
        raise UserError(f"{', '.join(map(str, patterns))}: no run there; give folders that hold a config.json")
    return list(paths.values())


def _matching(pattern: str) -> list[Path]:
    """What a glob finds. A folder at its beginning that exists is meant literally, whatever characters its name has."""
    if is_bucket(as_path(pattern)):
        return sorted(as_path(pattern).parent.glob(as_path(pattern).name))
    names = Path(pattern).parts
    existing = 0
    while existing < len(names) and Path(*names[: existing + 1]).exists():
        existing += 1
    literal = [glob.escape(name) for name in names[:existing]]
    return [Path(p) for p in sorted(glob.glob(str(Path(*literal, *names[existing:]))))]


def not_ours(file: Path, why: object) -> NoReturn:
    raise Damaged(
        f"{file} is damaged or foreign ({why}); nothing was overwritten; move it away, or to train choose another "
        "run.name"
    )

"""The run directory: one configuration, its metrics, its checkpoints. Nothing that is not ours is ever overwritten."""

import dataclasses
import json
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from mot import checkpoint, optim
from mot.config import Config, differences, resolve
from mot.config.axes import MESH_AXES
from mot.config.options import ACCEPTED
from mot.errors import UserError
from mot.files import absolute, as_path, is_address, is_bucket, make_folder, read_appended, write_atomically
from mot.model import attention, dispatch
from mot.runs import lock, provenance, written
from mot.runs.written import config_as_written, folder, not_ours, read_config

SCHEMA = 1
KINDS = ("train", "eval", "event")
HOW_DATA_IS_READ = ("verify", "workers", "timeout", "max_skipped")
HOW_IT_IS_COMPUTED = ("attention", "dispatch", "remat")
HOW_OFTEN = (
    "run.eval_every",
    "run.save_every",
    "run.save_minutes",
    "run.keep",
    "run.keep_every",
    "run.keep_best",
    "run.probe_every",
    "run.check_every",
    "run.hang_timeout",
    "run.peer_timeout",
    "run.trackers",
)
RATES = ("run.steps", "optim.schedule", "optim.decay_steps", "optim.end_lr")


def plain(config: Config) -> dict:
    """The resolved configuration as JSON holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def open_run(config: Config) -> Path:
    """The run's folder, made with `config.json` or found with an equal one.

    Raises `UserError` with the differences where it holds another configuration, `Damaged` where a file is not ours.
    What changes results by no more than rounding may change: where the run directory and the data lie, the mesh, and
    how things are computed and read. What may change otherwise (`unlike`) is written down.
    """
    path = folder(config)
    if not _holds_something(path):
        make_folder(path)
        write_atomically(path / "config.json", written.sealed(anchored(plain(config))))
        return path
    if why := unlike(config):
        refuse(path, {"config": why})
    write_down(config, _saved_step(path))
    return path


@contextmanager
def locked(config: Config) -> Iterator[Path]:
    """The run's folder, made where it is absent, and no other process's as long as this lasts."""
    path = folder(config)
    if not (path / "config.json").exists():
        open_run(config)  # makes it, or refuses what lies there
    with lock.held(path):
        yield path


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def unlike(config: Config) -> list[str]:
    """Why a run's folder cannot go on with a configuration: the reason, and each `key: its -> yours`; none: it can.

    It may change how often it is evaluated and saved. Its steps and its schedule may change as long as every step so
    far had the rate that it would have had: then the run ends as if it had the new numbers from the start.

    Raises `Damaged` where a file is not ours.
    """
    path = folder(config)
    if not _holds_something(path):
        return []
    old = read_config(path)
    different = changes(old, plain(config))
    why = _why_not(path, old, different, config, _saved_step(path))
    read_metrics(path)
    if (path / "checkpoints").exists() and not (path / "checkpoints").is_dir():
        not_ours(path / "checkpoints", "a file, not a folder")
    return why


def unlike_branch(config: Config, step: int) -> list[str]:
    """As `unlike`, of a run that goes on, as another run, from the state that `init.run` had after a step.

    Where nothing is unlike, the branch is the run that was planned so from the start.
    """
    path = as_path(config.init.run)
    old = read_config(path)
    different = [d for d in changes(old, plain(config)) if not re.match(r"init\.|run\.name:", d)]
    return _why_not(path, old, different, config, step)


def _why_not(path: Path, old: dict, different: list[str], config: Config, step: int) -> list[str]:
    keys = {difference.partition(":")[0] for difference in different}
    if "run.steps" in keys and config.run.steps < step:
        raise UserError(
            f"{path} is at step {step} already, and cannot end at step {config.run.steps}; nothing was overwritten; "
            "raise run.steps, or choose another run.name"
        )
    if keys - {*HOW_OFTEN, *RATES}:
        return [f"{path} holds a run of another configuration", *different]
    if keys & set(RATES) and (why := _other_rates(path, old, config, step)):
        return [why, *different]
    return []


GIVE_BACK = "give it its own configuration and data back, or choose another run.name"


def refuse(
    path: Path, found: Mapping[str, Sequence[str]], accepted: Collection[str] = (), instead: str = GIVE_BACK
) -> None:
    """`UserError` with all differences, by kind, of a run that is to go on, unless each kind is accepted."""
    if not found.keys() - {*accepted}:
        return
    effects = "\n".join(f"  {kind}: {ACCEPTED[kind]}" for kind in found)
    raise UserError(
        f"{path} cannot go on as asked; nothing was overwritten. Differences (its -> yours):\n"
        f"{checkpoint.listed(found)}\n{instead}; or have it go on in spite of them with --accept={','.join(found)}:\n"
        f"{effects}"
    )


def _saved_step(path: Path) -> int:
    """The step that was saved last; 0 where none was."""
    return max(checkpoint.steps(path / "checkpoints"), default=0)


def copy_metrics(source: Path, path: Path, step: int) -> None:
    """A branch begins with the rows of the run that it goes on from, as far as it shares them."""
    if (path / "metrics.jsonl").exists():
        return
    rows = [row for row in read_metrics(source) if row["step"] <= step]
    event = {"schema": SCHEMA, "kind": "event", "step": step, "time": provenance.now()}
    event |= {"event": "branched", "run": str(source)}
    write_atomically(path / "metrics.jsonl", "".join(map(line_of, [*rows, event])))


def _other_rates(path: Path, plain_before: dict, config: Config, step: int) -> str:
    """Why a run that is at a step cannot go on with other steps or another schedule; "" where it can."""
    try:
        before = resolve(plain_before)
    except UserError as error:
        return not_ours(path / "config.json", error)
    old, new = (np.asarray(optim.schedule(c)(np.arange(step))) for c in (before, config))
    if (old == new).all():
        return ""
    n = 1 + int((old != new).argmax())
    return (
        f"{path} is at step {step}, where its rate is {old[-1]:.4g} ({before.optim.schedule} over {before.run.steps} "
        f"steps); it would have been {new[-1]:.4g} ({config.optim.schedule} over {config.run.steps}), and differ from "
        f"step {n} on. A run goes on as long as its rate has not begun to decay: with optim.schedule=constant, or wsd "
        "up to its last optim.decay_steps. To train this one further, begin another run from it, with a schedule of "
        f"its own: --config.init.run={path} and another run.name"
    )


def write_down(config: Config, step: int, accepted: Mapping[str, Sequence[str]] | None = None) -> None:
    """What changes in a run that goes on from a step: into events of metrics.jsonl, which come first, and config.json.

    `accepted` are the differences, by kind, of which `unlike` says that it could not go on, and its user that it shall.
    """
    path = folder(config)
    old, new = read_config(path), plain(config)
    changed = {key: [_value(old, key), _value(new, key)] for key in HOW_OFTEN + RATES}
    changed = {key: both for key, both in changed.items() if both[0] != both[1]}
    events: list[dict] = []
    if accepted:
        about = {kind: [*lines] for kind, lines in accepted.items()}
        events.append({"event": "accepted", "kinds": [*accepted], "differences": about})
    if "config" in (accepted or ()):
        now = anchored(new)
    else:
        now = old
        for key, (_, value) in changed.items():
            section, name = key.split(".")
            now[section][name] = value
        if changed:
            events.append({"event": "changed", "keys": changed})
    if not events:
        return
    common = {"schema": SCHEMA, "kind": "event", "step": step, "time": provenance.now()}
    rows = [*read_metrics(path), *(common | event for event in events)]
    write_atomically(path / "metrics.jsonl", "".join(map(line_of, rows)))
    write_atomically(path / "config.json", written.sealed(now))


def accepted(path: Path) -> dict:
    """For `made_by`: at which steps a run went on in spite of which kinds of differences; {} where it never did."""
    rows = [row for row in read_metrics(path) if row.get("event") == "accepted"]
    return {"accepted": [{key: row[key] for key in ("step", "kinds")} for row in rows]} if rows else {}


def _value(plain: dict, key: str):
    section, name = key.split(".")
    return plain[section].get(name)


def anchored(config: dict) -> dict:
    """A plain configuration whose folders are found from wherever it is read: absolute ones."""
    data, init, run = config["data"], config["init"], config["run"]

    def anchor(address: str) -> str:
        return absolute(address) if _is_folder(address) else address

    sources = {name: anchor(address) for name, address in data["sources"].items()}
    return config | {
        "run": run | {"root": absolute(run["root"])},
        "data": data | {"sources": sources},
        "init": init | {"run": anchor(init["run"])},
    }


def _is_folder(address: str) -> bool:
    """Does an entry of `data.sources` or `init.run` name a folder: no remote address, no name with its own meaning?"""
    return address not in ("", "embedded") and not address.startswith("seqio:") and not is_address(address)


def _moved(config: Config, path: Path) -> Config:
    """A run's configuration, read from `path`: a folder that is gone is looked for where it lay from the run's folder.

    So a project that was copied as a whole, runs and data, goes on elsewhere.
    """
    former = folder(config)
    if is_address(str(path)) or is_address(str(former)):
        return config

    def present(address: str) -> str:
        if not _is_folder(address) or Path(address).exists():
            return address
        beside = os.path.normpath(path.absolute() / os.path.relpath(address, former))
        return beside if Path(beside).exists() else address

    sources = {name: present(address) for name, address in config.data.sources.items()}
    init = dataclasses.replace(config.init, run=present(config.init.run))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources), init=init)


def _is_same_run(old: str, new: str) -> bool:
    """Do both name one run directory, or has the old one gone, and the new one its name?"""
    if not (old and new):
        return old == new
    gone = not as_path(old).exists() and as_path(old).name == as_path(new).name
    return gone or absolute(old) == absolute(new)


def changes(old: dict, new: dict) -> list[str]:
    """How a run's configuration, as written, differs from a resolved one in what decides its results."""
    old = old | {"run": old["run"] | {"root": new["run"]["root"]}, "mesh": new["mesh"]}
    if isinstance(model := old["model"], dict):
        old["model"] = model | {key: new["model"][key] for key in HOW_IT_IS_COMPUTED}
    if isinstance(data := old["data"], dict):
        old["data"] = data | {key: new["data"][key] for key in HOW_DATA_IS_READ}
        sources = data.get("sources")
        if isinstance(sources, dict) and sources.keys() == new["data"]["sources"].keys():
            old["data"]["sources"] = new["data"]["sources"]  # moved; the data's digest is compared later
    if isinstance(init := old["init"], dict) and _is_same_run(str(init.get("run", "")), new["init"]["run"]):
        old["init"] = init | {"run": new["init"]["run"]}
    return differences(old, new)


def config_of(path: Path) -> Config:
    """A run's checked configuration, adapted to this machine: rows over all devices, no kernels that it lacks.

    Raises `Damaged` where `read_config` does and where a value is not allowed.
    """
    config = config_as_written(path)
    sizes = dict.fromkeys((*MESH_AXES, "slices"), 1) | {"data": 0}
    mesh = dataclasses.replace(config.mesh, **sizes)
    model = config.model
    if jax.default_backend() == "cpu":
        if model.attention in attention.KERNELS:
            model = dataclasses.replace(model, attention="chunked")
        if model.dispatch in dispatch.KERNELS:
            model = dataclasses.replace(model, dispatch="blocked")
    return _moved(dataclasses.replace(config, mesh=mesh, model=model), path)


def line_of(row: dict) -> str:
    """A row as metrics.jsonl holds it: with a checksum, so that a bit that flips is noticed."""
    text = json.dumps(row)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'


def row_of(line: bytes) -> dict:
    """The row of a line that `line_of` made; `ValueError` where it is not what was written.

    Earlier versions wrote no checksum.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("no object")
    written = row.pop("crc32", None)
    found = f"{zlib.crc32(json.dumps(row).encode()):08x}"
    if written not in (None, found):
        raise ValueError(f"its checksum is {found}, and it says {written}: it was changed after it was written")
    return row


def _is_mesh(value: object) -> bool:
    return isinstance(value, dict) and all(type(n) is int and n > 0 for n in value.values()) and value.keys() <= AXES


def _are_kinds(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(kind, str) and kind in ACCEPTED for kind in value)


def _is_seconds(value: object) -> bool:
    return type(value) in (int, float) and value >= 0


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_peak(value: object) -> bool:
    return value is None or _is_seconds(value)


def _is_size(value: object) -> bool:
    """Documents, and tokens by modality, of each split; None are endlessly many."""
    return isinstance(value, dict) and all(
        isinstance(split, dict)
        and isinstance(tokens := split.get("tokens") or {}, dict)
        and all(n is None or _is_number(n) for n in [split.get("documents"), *tokens.values()])
        for split in value.values()
    )


# What is made of rows later, beside the numbers of steps and evaluations, and what it must be.
AXES = {*MESH_AXES, "slices", "runs"}  # of several runs in one program the last
WORDS = ("time", "host", "cpu", "device_kind", "version", "commit", "jax", "python", "command", "matmul_peak_measured")
LATER = dict.fromkeys(WORDS, _is_text) | {
    "mesh": _is_mesh,
    "kinds": _are_kinds,
    "wall_seconds": _is_seconds,
    "matmul_peak": _is_peak,
    "size": _is_size,
}
# How keys of a step's row and an evaluation's begin from which something is computed later.
NUMBERS = ("loss", "causal_loss", "bits_per_byte", "flops", "seconds", "step_seconds", "tokens", "mfu", "fill/")
NUMBERS += ("grad_norm", "lr", "wall/")
LONGEST = 2**53  # steps: no run has as many, and a larger one is no exact float
LARGEST = 10**300  # of whole numbers, as FLOPs are: a float can hold it


def read_metrics(path: Path) -> list[dict]:
    """The rows of metrics.jsonl; a last line cut off by a crash is left out, any other damage raises `Damaged`."""
    file = path / "metrics.jsonl"
    if not file.exists() and not is_bucket(file):  # there it may lie in parts
        return []
    try:
        lines = read_appended(file).split(b"\n")
    except OSError as error:
        not_ours(file, error)
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is empty, or cut off
        try:
            row = row_of(line)
            if type(row["schema"]) is not int or row["schema"] != SCHEMA:
                raise ValueError(f"schema {row['schema']!r}, this version reads {SCHEMA}")
            if row["kind"] not in KINDS or type(row["step"]) is not int or not 0 <= row["step"] < LONGEST:
                raise ValueError(f"kind {row['kind']!r}, step {row['step']!r}; kinds are {', '.join(KINDS)}")
            if wrong := [k for k, v in row.items() if _has_number(row["kind"], k) and not _is_number(v)]:
                raise ValueError(f"{wrong[0]} is {row[wrong[0]]!r:.40}, no number")
            if wrong := [key for key, is_right in LATER.items() if key in row and not is_right(row[key])]:
                raise ValueError(f"{wrong[0]} is {row[wrong[0]]!r:.60}")
            if row.get("event") == "accepted" and "kinds" not in row:
                raise ValueError("it accepts no kinds")
            rows.append(row)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            not_ours(file, f"line {number}: {error!r}" if isinstance(error, KeyError) else f"line {number}: {error}")
    return rows


def _has_number(kind: str, key: str) -> bool:
    """Must a number stand under this key of a row?"""
    return key.startswith(("loss", "wall/") if kind == "event" else NUMBERS)


def _is_number(value: object) -> bool:
    """As metrics.jsonl holds one: JSON has no NaN, so what is not finite is text."""
    return type(value) is float or (type(value) is int and abs(value) < LARGEST) or value in ("nan", "inf", "-inf")

"""The rows of a sweep: read from its file, judged all at once, and told apart by what one program can hold."""

import inspect
import json
import re
import runpy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch import flags
from mot.config import Config, ConfigError, differences, load, varied
from mot.config.axes import MESH_AXES
from mot.errors import UserError
from mot.files import as_path, make_folder, write_atomically
from mot.runs.swept import FILE, NAME, parse, saved

LISTED = 12  # lines of differences in a message
MOST_FAULTS = 100  # lines of faults in a message
WRITTEN = (".csv", ".html", ".json", ".log", ".png")  # ends of what a sweep and its report write beside the rows
LONGEST = 200  # bytes of a row's name: file systems take 255 for a file's, as for its log's


class Row(NamedTuple):
    index: int  # from 0, as `--row` counts
    values: Mapping[str, Any]  # as the sweep's file gives them
    config: Config

    @property
    def name(self) -> str:
        return self.config.run.name

    @property
    def path(self) -> Path:
        return as_path(self.config.run.root) / self.name


def usual_out(text: str) -> Path:
    """The folder of a sweep without `--out`."""
    return Path("runs") / parse(text)[1]


def read(text: str) -> list[dict[str, Any]]:
    """The rows of `FILE:NAME,arg`, as its function gives them. FILE is a program, and is run here."""
    file, name, arg = parse(text)
    found = _namespace(text, _file_of(text, file))
    sweeps = sorted(key for key, value in found.items() if _is_sweep(value) and not key.startswith("_"))
    if name not in sweeps:
        raise UserError(
            f"{text}: {file} has no sweep {name!r}; allowed: {', '.join(sweeps) or 'none: a sweep is def NAME(arg)'}"
            f"{load.asked(name, sweeps)}"
        )
    try:
        rows = found[name](arg)
    except ValueError as error:  # the file's own message, as for an unknown argument
        raise UserError(f"{text}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{text}: {name}({arg!r}) failed: {error!r}; mend {file}") from error
    return _rows(text, rows)


def _rows(text: str, rows: Any) -> list[dict[str, Any]]:
    if not isinstance(rows, list | tuple) or not rows:
        raise UserError(
            f"{text}: it gave {_short(rows)}; a sweep is a list of rows, one or more; see configs/sweeps.py"
        )
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping) or not all(isinstance(key, str) for key in row):
            raise UserError(f"{text}: row {i} is {_short(row)}; a row is a dict of values by dotted key; mend it")
        if not isinstance(row.get("config"), str):
            raise UserError(f"{text}: row {i} has no `config`, FILE:arg as `mot train --config` takes it; add it")
        if "run.root" in row:
            raise UserError(f"{text}: row {i} has run.root={row['run.root']!r}; rows lie in --out; leave it out")
        if not isinstance(row.get(NAME), str):
            raise UserError(f"{text}: row {i} has no `{NAME}`, a text by which its folder is called; add it")
    return [
        {key: _written(f"{text}: row {i}: {key}", value) for key, value in row.items()} for i, row in enumerate(rows)
    ]


def _written(whose: str, value: Any) -> Any:
    """A value as sweep.json gives it back; `UserError` where JSON cannot hold it."""
    try:
        found = _plain(value)
        json.dumps(found)
    except Exception as error:  # also one of a value's own methods
        raise UserError(
            f"{whose} is of type {type(value).__name__}, which sweep.json cannot hold ({error}); give a number, a "
            "text, or lists and dicts of them"
        ) from None
    return found


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."


def _plain(value: Any) -> Any:
    """As JSON gives it back: numpy's numbers and arrays as Python's, a tuple as a list."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _is_sweep(value: Any) -> bool:
    """A function whose first parameter is `arg`."""
    return inspect.isfunction(value) and next(iter(inspect.signature(value).parameters), "") == "arg"


def _file_of(text: str, file: str) -> Path:
    path, shipped = Path(file), load.SHIPPED / Path(file).name
    if path.is_file() and path.suffix == ".py":
        return path
    if path.parts == ("configs", path.name) and shipped.is_file():
        return shipped
    near = load.asked(file, ["configs/sweeps.py", *map(str, path.parent.glob("*.py"))])
    raise UserError(f"{text}: there is no file {file} whose name ends in .py{near}; with mot comes configs/sweeps.py")


def _namespace(text: str, path: Path) -> dict[str, Any]:
    try:
        return runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise UserError(f"{text}: {path} is no file of sweeps: {error!r}; mend it") from error


# --- judging ---------------------------------------------------------------------------------------------------------


def overrides(row: Mapping[str, Any]) -> dict[str, str]:
    """What is changed, as `--config.KEY=VALUE` says it."""
    return {key: value if isinstance(value, str) else repr(value) for key, value in row.items() if key != "config"}


def no_faults(_: Config) -> Iterable[str]:
    return ()


def judged(
    text: str,
    rows: Sequence[Mapping[str, Any]],
    out: Path,
    faults: Callable[[Config], Iterable[str]] = no_faults,
    only: Sequence[int] | None = None,
) -> list[Row]:
    """Rows with their configurations, `only` those that are asked for; `UserError` with the faults of all of them.

    `faults` says what else is wrong with a configuration, beside what it says itself.
    """
    refuse_twice(text, rows)
    found: dict[str, list[str]] = {}  # each fault with the rows that have it
    built = []
    for i in range(len(rows)) if only is None else only:
        try:
            tree = load.read(rows[i]["config"], overrides(rows[i]) | {"run.root": str(out)})
            built.append(Row(i, rows[i], flags.judged(tree)))
            told = list(faults(built[-1].config))
        except ConfigError as error:
            told = [str(fault) for fault in error.faults]
        except UserError as error:
            told = [str(error)]
        for fault in [*told, *_name_faults(rows[i][NAME])]:
            found.setdefault(fault, []).append(rows[i][NAME])
    if found:
        ill = {name for names in found.values() for name in names}
        lines = [f"of {_some(names)}: {fault}" for fault, names in found.items()]
        lines = [*lines[:MOST_FAULTS], *[f"and {len(lines) - MOST_FAULTS} more faults"] * (len(lines) > MOST_FAULTS)]
        raise UserError(
            "\n  ".join([f"{text}: {len(ill)} of {len(rows)} rows cannot run; nothing was started", *lines])
        )
    return built


def _name_faults(name: str) -> Iterable[str]:
    """What is wrong with a name in a sweep's folder; that it is one of a run, the configuration says."""
    if name.endswith(WRITTEN):
        yield f"{NAME}: {name!r} ends as the files of a sweep's folder do ({', '.join(WRITTEN)}); rename the row"
    if len(name.encode(errors="replace")) > LONGEST:
        yield f"{NAME}: {_short(name)} has {len(name)} characters; must be at most {LONGEST}; shorten it"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) < 5 else [*names[:3], f"{len(names) - 3} more"])


def refuse_twice(text: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """`UserError` where two rows have one name."""
    counts = Counter(row[NAME] for row in rows)
    if twice := [f"{name} ({n} rows)" for name, n in counts.items() if n > 1]:
        raise UserError(f"{text}: {NAME}: {_some(twice)}; each row needs a name of its own, its folder's; rename them")


def chosen(text: str, given: str, count: int) -> list[int]:
    """The rows that `--row` names."""
    wanted = given.split(",")
    if not all(re.fullmatch(r"\d{1,9}", one, re.ASCII) and int(one) < count for one in wanted):
        raise UserError(
            f"--row {given}: {text} has rows 0 to {count - 1}; name one of these, or some with commas between"
        )
    return [int(one) for one in dict.fromkeys(wanted)]


# --- the folder ------------------------------------------------------------------------------------------------------


def refuse_other(out: Path, text: str, rows: Sequence[Mapping[str, Any]], is_part: bool = False) -> None:
    """`UserError` with the differences where `out` was made by a sweep of other rows, or is no folder for a sweep.

    A sweep may grow: rows may come to those that are there. Where these are only a part of a sweep, it may be of one
    that has grown meanwhile.
    """
    if out.is_file():
        raise UserError(f"--out {out}: is a file; name a folder")
    if (out / "config.json").exists():
        raise UserError(f"--out {out}: is a run's folder; name another, as {out.parent / 'sweep'}")
    if not (out / FILE).exists():
        return
    before = saved(out)
    old, new = ({row[NAME]: row for row in each} for each in (before["rows"], rows))
    gone = [name for name in old if name not in new]
    if is_part and new.keys() <= old.keys():
        gone = []
    different = [f"{name}: {one}" for name in old if name in new for one in differences(old[name], new[name])]
    different += [f"{name}: it alone has this row" for name in gone]
    if not different:
        return
    if gone:
        different += [f"{name}: yours alone has this row" for name in new if name not in old]
    more = [f"and {len(different) - LISTED} more"] if len(different) > LISTED else []
    head = f"{out} was made by another sweep, {before['sweep']}; nothing was changed. Differences (its -> yours):"
    goes_on = flags.command("sweep", before["sweep"], "--out", str(out))
    raise UserError(
        "\n  ".join([head, *different[:LISTED], *more])
        + f"\nchoose another --out for yours; this goes on with the other: {goes_on}"
    )


def claim(out: Path, text: str, rows: Sequence[Mapping[str, Any]], is_part: bool = False) -> None:
    """Writes down whose folder it is; `UserError` as `refuse_other`."""
    refuse_other(out, text, rows, is_part)
    known = {row[NAME] for row in saved(out)["rows"]} if (out / FILE).exists() else set()
    if not known.issuperset(row[NAME] for row in rows):
        make_folder(out)
        write_atomically(out / FILE, json.dumps({"sweep": text, "rows": list(rows)}, indent=1) + "\n")


# --- programs --------------------------------------------------------------------------------------------------------


def program(config: Config) -> str:
    """Equal for runs that can be one program (`mot.train.ensemble`), and for no others."""
    shared = {key: value for key, value in varied.flat(config).items() if key != NAME and not varied.varies(key)}
    if config.init.state == "all" or any(getattr(config.mesh, axis) > 1 for axis in (*MESH_AXES, "slices")):
        shared[NAME] = config.run.name  # it is alone
    return json.dumps(shared, sort_keys=True)

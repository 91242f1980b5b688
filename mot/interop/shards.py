"""Models in folders of safetensors: headers are judged first, then one tensor at a time is read, or written."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # comes with JAX; numpy knows bfloat16 by it  # noqa: F401
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mot.console import announce
from mot.errors import UserError
from mot.tokenizers import safetensors

DTYPES = ("F32", "F16", "BF16")  # which float32 holds exactly


class Header(NamedTuple):
    """What a header says of a tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    name: str  # that it has in the file


def refuse_taken(out: Path) -> None:
    """Raises `UserError` unless `out` is the name of a folder that is new, or empty."""
    if not out.name:
        raise UserError(f"--out {out}: has no name of its own; name a new folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists; nothing was overwritten; name a new folder")


def headers(folder: Path) -> dict[str, Header]:
    """Every tensor of a folder, by name, from the headers alone.

    Raises `UserError` as `safetensors.files` does, and for numbers that float32 does not hold.
    """
    found: dict[str, Header] = {}
    for file in sorted({*safetensors.files(folder).values()}):
        with safetensors.opened(file) as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
            found |= {name: Header(file, tuple(x.get_shape()), x.get_dtype(), name) for name, x in parts.items()}
    for name, header in found.items():
        if header.dtype not in DTYPES:
            raise UserError(
                f"{header.file}: {name} has dtype {header.dtype}; known are {', '.join(DTYPES)}; save the model as one"
            )
    return found


def renamed(found: Mapping[str, Header], aliases: Sequence[tuple[str, str]]) -> dict[str, Header]:
    """The tensors by the names that their own become, pattern after pattern; one that two would have keeps its own."""
    result: dict[str, Header] = {}
    for name, header in found.items():
        new = name
        for pattern, ours in aliases:
            new = re.sub(pattern, ours, new)
        result[name if new in result else new] = header
    return result


def tensors(found: Mapping[str, Header], title: str) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor as it is stored, file by file, with a line of progress."""
    by_file: dict[Path, list[str]] = {}
    for name, header in found.items():
        by_file.setdefault(header.file, []).append(name)
    with progress(title, len(found)) as advance:
        for file, names in by_file.items():
            with safetensors.opened(file) as opened:
                for name in names:
                    yield name, opened.get_tensor(found[name].name)
                    advance()


@contextmanager
def progress(title: str, total: int) -> Iterator[Any]:
    """A line of progress; what it gives is called after each of `total` parts."""
    console = Console(stderr=True)
    announce(f"{title}: {total} tensors")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def planned(
    shapes: Mapping[str, tuple[int, ...]], most: int, itemsize: int = 4, stem: str = safetensors.STEMS[0]
) -> dict[str, list[str]]:
    """Which tensors, in order, go to which file, of at most so many bytes each but for one larger tensor.

    The files' names begin with `stem`, one of `safetensors.STEMS`.
    """
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        bytes_ = itemsize * int(np.prod(shape))
        if groups[-1] and size + bytes_ > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += bytes_
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{i + 1:05}-of-{len(groups):05}.safetensors": names for i, names in enumerate(groups)}


def write(folder: Path, plan: Mapping[str, Sequence[str]], tensor: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Writes the files of a plan, one at a time, and their index; `tensor` gives each by its name."""
    save_file = safetensors.package("safetensors.numpy", "hf").save_file
    total = 0
    with progress("writing the weights", len(shapes)) as advance:
        for file, names in plan.items():
            held = {}
            for name in names:
                held[name] = np.ascontiguousarray(tensor(name))
                total += held[name].nbytes
                advance()
            save_file(held, folder / file, metadata={"format": "pt"})
    if len(plan) > 1:
        index = {"metadata": {"total_size": total}}
        index["weight_map"] = {name: file for file, names in plan.items() for name in names}
        stem = next(iter(plan)).rpartition("-00001-of-")[0]
        (folder / f"{stem}{safetensors.INDEX}").write_text(json.dumps(index, indent=1), encoding="utf-8")

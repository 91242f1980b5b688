"""Folders of safetensors in Hugging Face's layout: headers are judged first, then one tensor at a time is read.

Nothing is unpickled and no code of a folder is run: what is no safetensors is refused by its name and its content.
"""

import json
import os
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
from mot.errors import UserError, reason
from mot.files import make_folder, remove

STEMS = ("model", "diffusion_pytorch_model", "ema")  # of files' names: transformers', diffusers', BAGEL's
DTYPES = ("F32", "F16", "BF16")  # which float32 holds exactly
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NO_PICKLE = "a pickle can run code, and is never opened; save the model as safetensors (save_pretrained does)"
SINGLE = f"{STEMS[0]}.safetensors"
INDEX = ".safetensors.index.json"
FILE = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
LARGEST_JSON = 2**26  # bytes; an index of 100,000 tensors has a tenth


class Header(NamedTuple):
    """What a header says of a tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    name: str  # that it has in the file


def library() -> Any:
    """The package safetensors, of the extra `hf`; raises `UserError` where it is not installed."""
    try:
        import safetensors
        import safetensors.numpy  # noqa: F401 - `library().numpy`
    except ImportError:
        raise UserError(
            "the package safetensors is not installed; `pip install safetensors`, or mot's extra hf"
        ) from None
    return safetensors


def read_json(file: Path) -> dict:
    """Raises `UserError` where it is absent, too large, or no object."""
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is no file")  # a pipe would be waited for, a device never ends
        if file.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has {file.stat().st_size:,} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({reason(error)}); name a folder as save_pretrained writes it"
        ) from None
    return content


def refuse_taken(out: Path) -> None:
    """Raises `UserError` unless `out` is the name of a folder that is new, or empty."""
    if not out.name:
        raise UserError(f"--out {out}: has no name of its own; name a new folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists; nothing was overwritten; name a new folder")


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, which gets its name at the end; nothing is left of it where that fails."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    make_folder(partial)
    try:
        yield partial
        if out.exists():
            out.rmdir()  # it is empty
        os.rename(partial, out)
    except BaseException:
        remove(partial)
        raise


def headers(folder: Path) -> dict[str, Header]:
    """Every tensor of a folder, by name, from the headers alone.

    Raises `UserError` for what is missing, damaged or foreign, for files outside the folder, and for pickles.
    """
    index, single = _files(folder)
    listed = _listed(index) if index.is_file() else {}
    found: dict[str, Header] = {}
    for file in sorted({*listed.values()} if listed else {single}):
        of_file = _headers(file)
        if listed and (odd := sorted(of_file.keys() ^ {name for name, at in listed.items() if at == file})):
            raise UserError(
                f"{file}: {odd[0]} is {'in' if odd[0] in of_file else 'not in'} it, and {index.name} says otherwise; "
                "copy the folder again"
            )
        found |= of_file
    for name, header in found.items():
        if header.dtype not in DTYPES:
            raise UserError(
                f"{header.file}: {name} has dtype {header.dtype}; known are {', '.join(DTYPES)}; save the model as one"
            )
    return found


def _files(folder: Path) -> tuple[Path, Path]:
    """The index of a folder's shards, and its single file, of which one is there; raises `UserError` for neither."""
    for stem in STEMS:
        index, single = folder / f"{stem}{INDEX}", folder / f"{stem}.safetensors"
        if index.is_file() or single.is_file():
            return index, single
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    names = f"{STEMS[0]}.safetensors", f"{STEMS[0]}{INDEX}"
    if pickles := [name for name in there if name.endswith(PICKLES)]:
        raise UserError(f"{folder} has {pickles[0]} and no {names[0]}: {NO_PICKLE}")
    raise UserError(f"{folder} has neither {names[0]} nor {names[1]}; name a folder as save_pretrained writes it")


def _listed(index: Path) -> dict[str, Path]:
    """The file of each tensor as the index says."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map; copy the folder again")
    for name, file in weight_map.items():
        if isinstance(file, str) and file.endswith(PICKLES):
            raise UserError(f"{index}: {name} lies in {file!r:.80}: {NO_PICKLE}")
        if not isinstance(file, str) or not FILE.fullmatch(file):
            raise UserError(
                f"{index}: {name} lies in {file!r:.80}; must be the name of a .safetensors file of this folder"
            )
    for file in sorted(set(weight_map.values())):
        if not (index.parent / file).is_file():
            raise UserError(f"{index.parent / file} is missing, and {index.name} names it; copy the folder again")
    return {name: index.parent / file for name, file in weight_map.items()}


def _headers(file: Path) -> dict[str, Header]:
    with _opened(file) as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        return {name: Header(file, tuple(part.get_shape()), part.get_dtype(), name) for name, part in parts.items()}


def renamed(found: Mapping[str, Header], aliases: Sequence[tuple[str, str]]) -> dict[str, Header]:
    """The tensors by the names that their own become, pattern after pattern; one that two would have keeps its own."""
    result: dict[str, Header] = {}
    for name, header in found.items():
        new = name
        for pattern, ours in aliases:
            new = re.sub(pattern, ours, new)
        result[name if new in result else new] = header
    return result


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    safetensors = library()
    try:
        opened = safetensors.safe_open(str(file), framework="np")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} is no safetensors file ({reason(error)}); {NO_PICKLE}, or copy it again") from None
    with opened:
        yield opened


def tensors(found: Mapping[str, Header], title: str) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor as it is stored, file by file, with a line of progress."""
    by_file: dict[Path, list[str]] = {}
    for name, header in found.items():
        by_file.setdefault(header.file, []).append(name)
    with progress(title, len(found)) as advance:
        for file, names in by_file.items():
            with _opened(file) as opened:
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
    shapes: Mapping[str, tuple[int, ...]], most: int, itemsize: int = 4, stem: str = STEMS[0]
) -> dict[str, list[str]]:
    """Which tensors, in order, go to which file, of at most so many bytes each but for one larger tensor.

    The files' names begin with `stem`, one of STEMS.
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
    total = 0
    with progress("writing the weights", len(shapes)) as advance:
        for file, names in plan.items():
            held = {}
            for name in names:
                held[name] = np.ascontiguousarray(tensor(name))
                total += held[name].nbytes
                advance()
            library().numpy.save_file(held, folder / file, metadata={"format": "pt"})
    if len(plan) > 1:
        index = {"metadata": {"total_size": total}}
        index["weight_map"] = {name: file for file, names in plan.items() for name in names}
        stem = next(iter(plan)).rpartition("-00001-of-")[0]
        (folder / f"{stem}{INDEX}").write_text(json.dumps(index, indent=1), encoding="utf-8")

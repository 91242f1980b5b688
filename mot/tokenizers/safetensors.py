"""Folders of safetensors as save_pretrained writes them: which file has which tensor, judged before one is read.

Nothing is unpickled and no code of a folder is run: what is no safetensors is refused by its name and its content.
"""

import importlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mot.errors import UserError, reason

STEMS = ("model", "diffusion_pytorch_model", "ema")  # of files' names: transformers', diffusers', BAGEL's
SINGLE = f"{STEMS[0]}.safetensors"
INDEX = ".safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NO_PICKLE = "a pickle can run code, and is never opened; save the model as safetensors (save_pretrained does)"
FILE = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
LARGEST_JSON = 2**26  # bytes; an index of 100,000 tensors has a tenth


def package(name: str, extra: str) -> Any:
    """A package that an extra brings, imported; raises `UserError` where it cannot be."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        whole = name.partition(".")[0]
        raise UserError(
            f"the package {whole} cannot be imported ({reason(error)}); `pip install {whole}`, or mot's extra {extra}"
        ) from None


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


def files(folder: Path, extra: str = "hf") -> dict[str, Path]:
    """The file of each tensor of a folder; `extra` has the package safetensors.

    Raises `UserError` for what is missing, damaged or foreign, for files outside the folder, and for pickles.
    """
    index, single = _index_and_single(folder)
    if not index.is_file():
        return dict.fromkeys(_names(single, extra), single)
    listed = _listed(index)
    for file in sorted(set(listed.values())):
        there, said = _names(file, extra), {name for name, at in listed.items() if at == file}
        if odd := sorted(there ^ said):
            raise UserError(
                f"{file}: {odd[0]} is {'in' if odd[0] in there else 'not in'} it, and {index.name} says otherwise; "
                "copy the folder again"
            )
    return listed


def _index_and_single(folder: Path) -> tuple[Path, Path]:
    """The index of a folder's shards, and its single file, of which one is there; raises `UserError` for neither."""
    for stem in STEMS:
        index, single = folder / f"{stem}{INDEX}", folder / f"{stem}.safetensors"
        if index.is_file() or single.is_file():
            return index, single
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if pickles := [name for name in there if name.endswith(PICKLES)]:
        raise UserError(f"{folder} has {pickles[0]} and no {SINGLE}: {NO_PICKLE}")
    raise UserError(f"{folder} has neither {SINGLE} nor {STEMS[0]}{INDEX}; name a folder as save_pretrained writes it")


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


def _names(file: Path, extra: str) -> set[str]:
    with opened(file, extra=extra) as found:
        return set(found.keys())


@contextmanager
def opened(file: Path, framework: str = "np", extra: str = "hf") -> Iterator[Any]:
    """A file, whose tensors are numpy's (np) or torch's (pt); raises `UserError` where it is no safetensors."""
    safetensors = package("safetensors", extra)
    try:
        found = safetensors.safe_open(str(file), framework=framework)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} is no safetensors file ({reason(error)}); {NO_PICKLE}, or copy it again") from None
    with found:
        yield found

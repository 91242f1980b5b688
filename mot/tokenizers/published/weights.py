"""Tensors of one network from a folder of safetensors: of all that lie there, those under its prefix are read."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mot.errors import UserError, reason

STEMS = ("model", "diffusion_pytorch_model")  # of transformers' and of diffusers' files
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NO_PICKLE = "a pickle can run code, and is never opened; save the network as safetensors (save_pretrained does)"
FILE = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
LARGEST_JSON = 2**26  # bytes


def package(name: str) -> Any:
    """A package of the extra `networks`, imported; raises `UserError` where it cannot be."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"the package {name} cannot be imported ({reason(error)}); `pip install {name}`, or mot's extra networks"
        ) from None


def read_json(file: Path) -> dict:
    """Raises `UserError` where it is too large, or no object."""
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is no file")  # a pipe would be waited for, a device never ends
        if file.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has {file.stat().st_size:,} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({reason(error)}); copy the folder again") from None
    return content


def tensors(folder: Path, own: str) -> dict[str, Any]:
    """torch tensors of the network that has the tensor `own`, by their names in it.

    Raises `UserError` where there is none or more than one, and for files that are missing, damaged or pickles.
    """
    listed = _listed(folder)
    prefixes = {name.removesuffix(own) for name in listed if name.endswith(own)}
    prefixes = {prefix for prefix in prefixes if prefix == "" or prefix.endswith(".")}
    if len(prefixes) != 1:
        found = f"{len(prefixes)} networks" if prefixes else "no network"
        raise UserError(f"{folder} has {found} with a tensor {own} in its weights; name a folder that has one")
    (prefix,) = prefixes
    by_file: dict[Path, list[str]] = {}
    for name, file in listed.items():
        if name.startswith(prefix):
            by_file.setdefault(file, []).append(name)
    taken = {}
    for file, names in by_file.items():
        with _opened(file) as opened:
            taken |= {name.removeprefix(prefix): opened.get_tensor(name) for name in names}
    return taken


def _listed(folder: Path) -> dict[str, Path]:
    """The file of each tensor."""
    for stem in STEMS:
        index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
        if index.is_file():
            return _of_index(index)
        if single.is_file():
            return _names(single)
    there = sorted(p.name for p in folder.iterdir())
    if pickles := [name for name in there if name.endswith(PICKLES)]:
        raise UserError(f"{folder} has {pickles[0]} and no safetensors: {NO_PICKLE}")
    raise UserError(
        f"{folder} has no weights, {' or '.join(f'{stem}.safetensors' for stem in STEMS)}; copy the folder again"
    )


def _of_index(index: Path) -> dict[str, Path]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{index} has no weight_map; copy the folder again")
    for name, file in listed.items():
        if isinstance(file, str) and file.endswith(PICKLES):
            raise UserError(f"{index}: {name} lies in {file!r:.80}: {NO_PICKLE}")
        if not isinstance(file, str) or not FILE.fullmatch(file):
            raise UserError(f"{index}: {name} lies in {file!r:.80}; must be a .safetensors file of this folder")
    there = {file: _names(index.parent / file) for file in sorted(set(listed.values()))}
    for name, file in listed.items():
        if name not in there[file]:
            raise UserError(f"{index}: {name} is not in {file}, where it should be; copy the folder again")
    return {name: index.parent / file for name, file in listed.items()}


def _names(file: Path) -> dict[str, Path]:
    with _opened(file) as opened:
        return dict.fromkeys(opened.keys(), file)


def _opened(file: Path) -> Any:
    safetensors = package("safetensors")
    package("torch")
    try:
        return safetensors.safe_open(str(file), framework="pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} is no safetensors file ({reason(error)}); {NO_PICKLE}, or copy it again") from None


def digest(told: Any, taken: Mapping[str, Any]) -> str:
    """SHA-256 of what is told of a network, as JSON, and of its tensors: names, dtypes, shapes and bytes."""
    found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    uint8 = package("torch").uint8
    for name, tensor in sorted(taken.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(tensor.contiguous().reshape(-1).view(uint8).numpy())
    return found.hexdigest()

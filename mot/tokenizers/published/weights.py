"""Tensors of one network from a folder of safetensors: of all that lie there, those under its prefix are read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mot.errors import UserError
from mot.tokenizers import safetensors

EXTRA = "networks"


def package(name: str) -> Any:
    """A package of the extra, imported; raises `UserError` where it cannot be."""
    return safetensors.package(name, EXTRA)


def tensors(folder: Path, own: str) -> dict[str, Any]:
    """torch tensors of the network that has the tensor `own`, by their names in it.

    Raises `UserError` where there is none or more than one, and for files that are missing, damaged or pickles.
    """
    listed = safetensors.files(folder, EXTRA)
    package("torch")  # as which the tensors are read
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
        with safetensors.opened(file, "pt", EXTRA) as opened:
            taken |= {name.removeprefix(prefix): opened.get_tensor(name) for name in names}
    return taken


def digest(told: Any, taken: Mapping[str, Any]) -> str:
    """SHA-256 of what is told of a network, as JSON, and of its tensors: names, dtypes, shapes and bytes."""
    found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    uint8 = package("torch").uint8
    for name, tensor in sorted(taken.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(tensor.contiguous().reshape(-1).view(uint8).numpy())
    return found.hexdigest()

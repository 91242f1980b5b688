"""What is told of a step that was skipped: why, and in which leaves, towers, modalities and documents."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mot import batches, optim
from mot.batches import Batch
from mot.config import Config
from mot.model import params

NAMED = 5  # leaves and documents in a message; an event has all
LARGEST = 3  # leaves that are named where a gradient is too long


def about(config: Config, measured: Mapping, batch: Batch, name_of: Callable[[int, int], str], sources) -> dict:
    """The event's further keys. All processes of a run must ask: each has a part of the batch.

    `name_of(source, doc_id)` is a document's own name, `sources` are the sources' names.
    """
    leaves = dict(zip(optim.trained(config), measured["leaves"]["not_finite"].tolist(), strict=True))
    not_finite = {path: n for path, n in leaves.items() if n}
    norms = dict(zip(leaves, map(float, measured["leaves"]["norm"]), strict=True))
    by_norm = sorted((path for path, norm in norms.items() if np.isfinite(norm)), key=norms.__getitem__, reverse=True)
    longest = {path: norms[path] for path in by_norm[:LARGEST]} if _is_too_long(measured) else {}
    in_batch = {field: int(n) for field, n in measured["broken"].items() if n}
    return {
        "why": _why(config, measured),
        "leaves": not_finite,
        "towers": _list(tower for tower, x in measured["grad_norms"].items() if not np.isfinite(x)),
        "modalities": _list(_modalities(config, in_batch, not_finite or longest)),
        "batch": _list(f"{field} ({n})" for field, n in in_batch.items()),
        **({"longest": longest} if longest else {}),
        **_documents(batch, name_of, sources),
    }


def told(about: Mapping) -> str:
    """An event's keys in words."""
    parts = [
        f"not finite in leaves: {_some([f'{path} ({n})' for path, n in about['leaves'].items()])}",
        f"towers: {about['towers']}",
        f"modalities: {about['modalities']}",
        f"in the batch: {about['batch']}",
    ]
    if longest := about.get("longest"):
        parts[0] = f"the longest leaves: {_some([f'{path} ({norm:.4g})' for path, norm in longest.items()])}"
    said = "of the documents" if about["broken_documents"] else "documents"
    named = about["broken_documents"] or about["documents"]
    parts.append(f"{said}: {_some([f'{name} of {source}' for source, names in named.items() for name in names])}")
    return f"{about['why']}; {', '.join(parts)}"


def _is_too_long(measured: Mapping) -> bool:
    return bool(np.isfinite(measured["grad_norm"]) and measured["grad_norm"] > measured.get("grad_norm_limit", np.inf))


def _why(config: Config, measured: Mapping) -> str:
    why = f"loss {measured['loss']}, gradient norm {measured['grad_norm']}"
    if not _is_too_long(measured):
        return why
    return f"{why}, above {measured['grad_norm_limit']} (optim.skip_above = {config.optim.skip_above:g} medians)"


def _modalities(config: Config, in_batch: Mapping, leaves: Mapping) -> list[str]:
    """Those of the batch's fields that are not finite; where all are, those whose tokens pass through the leaves."""
    streams = {field.partition(".")[0] for field in in_batch} & config.streams.keys()
    streams = streams or {stream for path in leaves for stream in params.users(path, config)}
    return list(dict.fromkeys(stream.modality for name, stream in config.streams.items() if name in streams))


def _documents(batch: Batch, name_of: Callable[[int, int], str], sources) -> dict[str, dict[str, list[str]]]:
    """The batch's documents by source; and those of them that hold numbers which are not finite."""
    found: dict[str, dict[str, list[str]]] = {"documents": {}, "broken_documents": {}}
    for (source, doc_id), broken in batches.documents(on_host(batch)).items():
        name = name_of(source, doc_id)
        found["documents"].setdefault(sources[source], []).append(name)
        if broken:
            found["broken_documents"].setdefault(sources[source], []).append(name)
    return found


def on_host(tree: Any) -> Any:
    """Arrays of all devices, as this process can read them. Where there are several processes, all must ask."""
    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else jax.device_get(tree)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (", ".join(names[:NAMED]) or "none") + more


def _list(names) -> str:
    return ", ".join(names) or "none"

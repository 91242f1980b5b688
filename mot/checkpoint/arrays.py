"""Single arrays of a saved step, read through tensorstore; nothing else of the step is restored."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorstore

from mot.checkpoint import digests
from mot.checkpoint.folder import literal


def read(target: Path, path: str, part: tuple[slice, ...] | None = None) -> np.ndarray:
    """An array of a step by its path in the manifest: `params/text/attn/q`; or a part of it.

    Raises `ValueError` or `OSError` where tensorstore cannot read it.
    """
    item, _, rest = path.partition("/")
    with literal(target) as folder:
        base = {"driver": "file", "path": f"{folder / item}/"}  # no address, in which a % would begin a code
        store = {"driver": "ocdbt", "base": base, "path": f"{rest.replace('/', '.')}/"}
        opened = tensorstore.open({"driver": "zarr", "kvstore": store}, open=True, read=True).result()
        return (opened if part is None else opened[part]).read().result()


def fault(target: Path, path: str, described: Mapping) -> str:
    """Why an array is not what the manifest describes; "" where it is."""
    try:
        x = read(target, path)
    except (ValueError, OSError) as error:
        return str(error).splitlines()[0]
    if [*x.shape] != described["shape"] or str(x.dtype) != described["dtype"]:
        return f"{x.dtype}{[*x.shape]}, and the manifest says {described['dtype']}{described['shape']}"
    return "" if digests.of_host(x) == described["digest"] else "its digest is not the manifest's"

"""Single arrays of a saved step, read through tensorstore; nothing else of the step is restored."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorstore

from mot.checkpoint import digests
from mot.checkpoint.folder import literal
from mot.files import is_bucket


def read(target: Path, path: str, part: tuple[slice, ...] | None = None) -> np.ndarray:
    """An array of a step by its path in the manifest: `params/text/attn/q`; or a part of it.

    Raises `ValueError` or `OSError` where tensorstore cannot read it.
    """
    item, _, rest = path.partition("/")
    with literal(target) as folder:
        store = {"driver": "ocdbt", "base": _base(folder / item), "path": f"{rest.replace('/', '.')}/"}
        spec = {"driver": "zarr", "kvstore": store, "recheck_cached_metadata": False, "recheck_cached_data": False}
        opened = tensorstore.open(spec, open=True, read=True).result()  # nothing changes meanwhile
        return (opened if part is None else opened[part]).read().result()


def _base(folder: Path) -> dict:
    """Where tensorstore finds a folder; not as an address, in which a % would begin a code."""
    if is_bucket(folder):
        _, bucket, name = str(folder.relative_to(folder.anchor)).split("/", 2)
        return {"driver": "gcs", "bucket": bucket, "path": f"{name}/"}
    return {"driver": "file", "path": f"{folder}/"}


def fault(target: Path, path: str, described: Mapping) -> str:
    """Why an array is not what the manifest describes; "" where it is."""
    try:
        x = read(target, path)
    except (ValueError, OSError) as error:
        return str(error).splitlines()[0]
    if [*x.shape] != described["shape"] or str(x.dtype) != described["dtype"]:
        return f"{x.dtype}{[*x.shape]}, and the manifest says {described['dtype']}{described['shape']}"
    return "" if digests.of_host(x) == described["digest"] else "its digest is not the manifest's"

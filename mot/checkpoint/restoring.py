"""Reading a step back: the newest that verifies, on any mesh, each array compared with the digest it was saved with."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mot import sharding
from mot.checkpoint import arrays, digests, manifest
from mot.checkpoint.folder import ignored, literal, steps
from mot.errors import Damaged, UserError

NONE, DAMAGED = -1, -2  # what the first process tells the others in place of a step
REMEDY = "give the run the configuration that it had at this step, or name another step"


def newest(folder: Path, say: Callable[[str], None]) -> int | None:
    """The newest step whose files verify; None where no step was saved. What is passed over is told, with the reason.

    The first process looks, and tells the others. Raises `Damaged` where steps were saved and none verifies: a run that
    would start anew in silence is lost work.
    """
    if jax.process_count() == 1:
        return _newest(folder, say)
    step, fault = DAMAGED, None
    if sharding.is_first_process():
        try:
            found = _newest(folder, say)
            step = NONE if found is None else found
        except Damaged as error:
            fault = error
    step = int(multihost_utils.broadcast_one_to_all(np.int64(step)))
    if step == DAMAGED:
        raise fault or Damaged(f"{folder}: none of its steps verifies; the first process tells why")
    return None if step == NONE else step


def _newest(folder: Path, say: Callable[[str], None]) -> int | None:
    for name in ignored(folder):
        say(f"{folder}: passed over {name}")
    saved = steps(folder)
    faults = []
    for step in reversed(saved):
        try:
            manifest.verify(folder / str(step))
            position(folder / str(step))
        except Damaged as error:
            faults.append(str(error))
            say(f"warning: step {step} is passed over: {error}")
            continue
        return step
    if faults:
        raise Damaged(f"{folder}: none of its steps ({', '.join(map(str, saved))}) verifies; the newest: {faults[0]}")
    return None


def restore(folder: Path, step: int, like: dict, verified: bool = False) -> tuple[dict, dict]:
    """The trees of a step, with the shapes, dtypes and shardings of the abstract `like`, and the position as JSON.

    Its files are verified first, unless they were `verified` just before.

    Raises `Damaged` where the step is not what was saved, `UserError` where it holds other arrays than `like`.
    """
    target = folder / str(step)
    content = (manifest.read if verified else manifest.verify)(target)
    if found := _unlike(content["arrays"], like):
        raise UserError(f"{target} holds other arrays than are needed:\n{listed(found)}\n{REMEDY}")
    items = {name: ocp.args.StandardRestore(tree) for name, tree in like.items()}
    arguments = ocp.args.Composite(**items)
    with literal(folder) as path, ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        try:
            restored = checkpointer.restore(path / target.name, args=arguments)
        except (KeyError, ValueError, TypeError, FileNotFoundError) as error:  # what is whole, but not this model's
            why = str(error).splitlines()[0]
            raise UserError(f"{target} holds other arrays than are needed ({why}); {REMEDY}") from error
    trees = {name: restored[name] for name in like}
    _refuse_changed(target, trees, content["arrays"])
    return trees, position(target)


def fitted(folder: Path, step: int, like: dict, fresh: dict, verified: bool = False) -> tuple[dict, dict]:
    """As `restore`, of a step that holds other arrays: those that fit are taken, and cast; the others are `fresh`."""
    target = folder / str(step)
    content = (manifest.read if verified else manifest.verify)(target)

    def array(path: str, wanted: jax.ShapeDtypeStruct, instead: jax.Array) -> jax.Array:
        said = content["arrays"].get(path)
        if said is None or said["shape"] != [*wanted.shape]:
            return instead
        x = jax.make_array_from_callback(wanted.shape, wanted.sharding, lambda part: arrays.read(target, path, part))
        if digests.as_text(jax.device_get(digests.of_tree([x]))[0]) != said["digest"]:
            raise Damaged(f"{target}: {path} came back changed; {manifest.remedy(target)}")
        return x.astype(wanted.dtype)

    trees = {}
    for item, tree in like.items():
        leaves, structure = jax.tree.flatten(tree)
        paths = [f"{item}/{name}" for name in digests.names(tree)]
        trees[item] = structure.unflatten(map(array, paths, leaves, jax.tree.leaves(fresh[item])))
    return trees, position(target)


def position(target: Path) -> dict:
    """Where the run was at a step that is verified: a `Position` as JSON. `Damaged` where it is none of this step."""
    file = target / "data" / "metadata"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{file} cannot be read ({error}); {manifest.remedy(target)}") from None
    if not isinstance(found, dict) or found.get("step", int(target.name)) != int(target.name):
        raise Damaged(f"{file} is no position of step {target.name}; {manifest.remedy(target)}")
    return found


def unlike(target: Path, like: dict) -> dict[str, list[str]]:
    """How a step's arrays differ from those of `like`, by kind (tree, shape, dtype): a line `path: its -> yours` each.

    Of a step whose version did not describe its arrays nothing is known.
    """
    return _unlike(manifest.read(target)["arrays"], like)


def _unlike(described: dict, like: dict) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    if not described:
        return found
    wanted = {}
    for item, tree in like.items():
        leaves = zip(digests.names(tree), jax.tree.leaves(tree), strict=True)
        wanted |= {f"{item}/{name}": {"shape": [*x.shape], "dtype": str(x.dtype)} for name, x in leaves}
    held = {path: said for path, said in described.items() if path.split("/")[0] in like}
    for path in sorted({*wanted, *held}):
        if path not in held or path not in wanted:
            kind = "tree"
        elif held[path]["shape"] != wanted[path]["shape"]:
            kind = "shape"
        elif held[path]["dtype"] != wanted[path]["dtype"]:
            kind = "dtype"
        else:
            continue
        found.setdefault(kind, []).append(f"{path}: {_told(held.get(path))} -> {_told(wanted.get(path))}")
    return found


def _told(said: dict | None) -> str:
    return f"{said['dtype']}{said['shape']}" if said else "absent"


def listed(found: Mapping[str, Sequence[str]], most: int = 20) -> str:
    """Differences by kind as a message shows them, at most so many of a kind."""
    lines = []
    for kind, of_kind in found.items():
        more = [f"and {len(of_kind) - most} more"] if len(of_kind) > most else []
        lines += [f"{kind}:", *(f"  {line}" for line in [*of_kind[:most], *more])]
    return "\n".join(lines)


def _refuse_changed(target: Path, trees: dict, described: dict) -> None:
    """`Damaged` where an array has another digest than it was saved with."""
    if not described:
        return
    for item, tree in trees.items():
        values = jax.device_get(digests.of_tree(tree))
        for path, said in digests.described(item, tree, values).items():
            if said["digest"] != described[path]["digest"]:
                raise Damaged(f"{target}: {path} came back changed; {manifest.remedy(target)}")

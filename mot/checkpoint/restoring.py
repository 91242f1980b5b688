"""Reading a step back: the newest that verifies, on any mesh, each array compared with the digest it was saved with."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mot import sharding
from mot.checkpoint import digests, manifest
from mot.checkpoint.folder import ignored, literal, steps
from mot.errors import Damaged

NONE, DAMAGED = -1, -2  # what the first process tells the others in place of a step


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
    if differences := _differences(content["arrays"], like):
        listed = "\n".join(f"  {line}" for line in differences[:20])
        more = f"\n  and {len(differences) - 20} more" if len(differences) > 20 else ""
        raise Damaged(
            f"{target} does not hold what this run needs. Differences (its -> yours):\n{listed}{more}\n"
            f"{manifest.remedy(target)}"
        )
    items = {name: ocp.args.StandardRestore(tree) for name, tree in like.items()}
    arguments = ocp.args.Composite(**items, data=ocp.args.JsonRestore())
    with literal(folder) as path, ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        try:
            restored = checkpointer.restore(path / target.name, args=arguments)
        except (KeyError, ValueError, TypeError, FileNotFoundError) as error:  # what is whole, but not this model's
            why = str(error).splitlines()[0]
            raise Damaged(f"{target} does not hold what this run needs ({why}); {manifest.remedy(target)}") from error
    trees = {name: restored[name] for name in like}
    _refuse_changed(target, trees, content["arrays"])
    return trees, restored["data"]


def _differences(described: dict, like: dict) -> list[str]:
    """How a step's arrays differ from those that are wanted, one line each."""
    wanted = {}
    for item, tree in like.items():
        leaves = zip(digests.names(tree), jax.tree.leaves(tree), strict=True)
        wanted |= {f"{item}/{name}": f"{x.dtype}{[*x.shape]}" for name, x in leaves}
    held = {path: f"{said['dtype']}{said['shape']}" for path, said in described.items() if path.split("/")[0] in like}
    if not described:  # of a version that did not describe them
        return []
    differing = [path for path in sorted({*wanted, *held}) if wanted.get(path) != held.get(path)]
    return [f"{path}: {held.get(path, 'absent')} -> {wanted.get(path, 'absent')}" for path in differing]


def _refuse_changed(target: Path, trees: dict, described: dict) -> None:
    """`Damaged` where an array has another digest than it was saved with."""
    if not described:
        return
    for item, tree in trees.items():
        values = jax.device_get(digests.of_tree(tree))
        for path, said in digests.described(item, tree, values).items():
            if said["digest"] != described[path]["digest"]:
                raise Damaged(f"{target}: {path} came back changed; {manifest.remedy(target)}")

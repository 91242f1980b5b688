"""Checkpoints: orbax items in `checkpoints/<step>/`, each file's digest in `manifest.json`, verified before use.

A step is written under a temporary name and renamed when it is whole, so a folder named by a number is complete.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import orbax.checkpoint as ocp

from mot import provenance, sharding
from mot.errors import Damaged

FORMAT = 1
MANIFEST = "manifest.json"


def save(folder: Path, step: int, trees: dict, data: dict, keep: int) -> Path:
    """Writes the step (unless it is there) and removes all but the newest `keep`.

    `trees` are pytrees of arrays by item name (params, opt, ema); `data` is the position in the data, as JSON.
    """
    target, temporary = folder / str(step), folder / f"{step}.partial"
    if target.exists():
        return target
    if sharding.leads():
        shutil.rmtree(temporary, ignore_errors=True)
    sharding.together(f"saving {step}")
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    meta = {"format": FORMAT, "step": step, "items": sorted(trees), "made_by": provenance.made_by()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        arguments = ocp.args.Composite(**items, data=ocp.args.JsonSave(data), meta=ocp.args.JsonSave(meta))
        checkpointer.save(temporary.absolute(), args=arguments)
    if sharding.leads():
        (temporary / MANIFEST).write_text(json.dumps(_digests(temporary), indent=1), encoding="utf-8")
        os.rename(temporary, target)
        for old in steps(folder)[:-keep]:
            shutil.rmtree(folder / str(old))
    sharding.together(f"saved {step}")
    return target


def steps(folder: Path) -> list[int]:
    """The steps that were saved whole, oldest first."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def verify(target: Path) -> None:
    """Raises `Damaged`, naming the first file that is missing, new or changed."""
    try:
        expected = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(expected, dict):
            raise ValueError("not an object of file names")
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{target / MANIFEST} cannot be read ({error}); {_remedy(target)}") from None
    found = _digests(target)
    for name in sorted({*expected, *found}):
        if name not in found:
            raise Damaged(f"{target / name} is missing; {_remedy(target)}")
        if name not in expected:
            raise Damaged(f"{target / name} is foreign: the manifest does not list it; {_remedy(target)}")
        if expected[name] != found[name]:
            raise Damaged(f"{target / name} is damaged: its digest is not the manifest's; {_remedy(target)}")


def restore(folder: Path, step: int, like: dict) -> tuple[dict, dict]:
    """Verified trees, with the shapes, dtypes and shardings of the abstract trees `like`, and the data position."""
    target = folder / str(step)
    verify(target)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:

        def read(**items):
            try:
                return checkpointer.restore(target.absolute(), args=ocp.args.Composite(**items))
            except (KeyError, ValueError, TypeError, FileNotFoundError) as error:  # what is whole, but not this model's
                why = str(error).splitlines()[0]
                raise Damaged(f"{target} does not hold what this run needs ({why}); {_remedy(target)}") from error

        meta = read(meta=ocp.args.JsonRestore())["meta"]
        if meta["format"] != FORMAT:
            raise Damaged(
                f"{target} has format {meta['format']}; this version reads {FORMAT}; use the one that wrote it"
            )
        if meta["step"] != step:
            raise Damaged(f"{target} holds step {meta['step']}, not {step}; give the folder its own name back")
        items = {name: ocp.args.StandardRestore(tree) for name, tree in like.items()}
        restored = read(**items, data=ocp.args.JsonRestore())
    return {name: restored[name] for name in like}, restored["data"]


def made_by(target: Path) -> dict:
    """Where a verified step comes from: `provenance.made_by`; empty where its version did not write that down."""
    meta = json.loads((target / "meta" / "metadata").read_text(encoding="utf-8"))
    return meta.get("made_by", {})


def _remedy(target: Path) -> str:
    others = [s for s in steps(target.parent) if str(s) != target.name]
    older = f"the run then resumes from step {others[-1]}" if others else "the run then starts anew"
    return f"move {target} away to go on without it ({older}); nothing was overwritten"


def _digests(target: Path) -> dict[str, str]:
    files = sorted(p for p in target.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(target)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

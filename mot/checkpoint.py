"""Checkpoints: orbax items in `checkpoints/<step>/`, each file's digest in `manifest.json`, verified before use.

A step is written under a temporary name and renamed when it is whole, so a folder named by a number is complete.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from mot import sharding
from mot.errors import Damaged, UserError
from mot.files import numbered

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass
class Position:
    """Where a run is. Each checkpoint keeps it beside its arrays, so that what is cumulative goes on."""

    step: int = 0  # batches consumed, the next batch's number
    tokens: dict[str, int] = field(default_factory=dict)  # trained on, by modality
    flops: int = 0  # model FLOPs
    seconds: float = 0.0  # in steps; compiling, evaluating and saving are not counted
    skipped: int = 0  # steps in a row
    data: str = ""  # digest of the documents
    plan: dict = field(default_factory=dict)  # from which the next batch is made: pipeline.Packed.state
    left_out: dict[str, int] = field(default_factory=dict)  # documents, by source


def steps(folder: Path) -> list[int]:
    """The steps that were saved whole, oldest first."""
    return numbered(folder)


def save(folder: Path, step: int, trees: dict, data: dict, keep: int, made_by: dict | None = None) -> Path:
    """Writes the step (unless it is there) and removes all but the newest `keep`.

    `trees` are pytrees of arrays by item name (params, opt, ema); `data` is the run's `Position`, as JSON, and
    `made_by` says where the step comes from. The first step of a folder is read back before it is trusted.
    Raises `UserError`, with nothing left of the step, where it cannot be written or read back.
    """
    target, temporary = folder / str(step), folder / f"{step}.partial"
    if target.exists():
        return target
    earlier = steps(folder)
    if sharding.is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
        _remove_partial(folder)
    sharding.barrier(f"saving {step}")
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    meta = {"format": FORMAT, "step": step, "items": sorted(trees), "made_by": made_by or {}}
    arguments = ocp.args.Composite(**items, data=ocp.args.JsonSave(data), meta=ocp.args.JsonSave(meta))
    try:
        with _literal(folder) as literal, ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(literal / temporary.name, args=arguments)
            if not earlier:
                _read_back(literal / temporary.name, trees)
        if sharding.is_first_process():
            (temporary / MANIFEST).write_text(json.dumps(_digests(temporary), indent=1), encoding="utf-8")
            os.rename(temporary, target)
    except (OSError, ValueError, RuntimeError) as error:  # libraries report a full disk by any of these
        if sharding.is_first_process():
            _remove_partial(folder)
        raise _unsaved(target, earlier, error) from error
    if sharding.is_first_process():
        for old in steps(folder)[:-keep]:
            shutil.rmtree(folder / str(old))
    sharding.barrier(f"saved {step}")
    return target


def _remove_partial(folder: Path) -> None:
    """What an interrupted or failed save has left."""
    for left in folder.iterdir():
        if re.fullmatch(r"[0-9]+\.partial(\.orbax.*)?", left.name):
            shutil.rmtree(left, ignore_errors=True)


def _unsaved(target: Path, earlier: list[int], error: Exception) -> UserError:
    return UserError(f"{target} was not saved: {_why(target.parent, error)}; {goes_on(earlier)}")


def _why(folder: Path, error: BaseException) -> str:
    text = str(error)
    if "No space left" in text or "RESOURCE_EXHAUSTED" in text or getattr(error, "errno", None) == errno.ENOSPC:
        return f"No space left on the disk of {folder}"
    return text.splitlines()[0] if text else type(error).__name__


def goes_on(earlier: list[int]) -> str:
    """How a run whose disk has failed goes on, of these steps that it has saved."""
    if earlier:
        had = f"step {earlier[-1]} was saved last, and the same command resumes from there"
    else:
        had = "no step of this run was saved before, so the same command starts anew"
    return f"{had}; make room or mend the folder first, or choose another run.root"


# Paths that orbax and tensorstore take literally. They read brackets and backslashes as patterns, `gs:` as an address.
_PLAIN = re.compile(r"[\w./ +=,@%~-]*")


@contextlib.contextmanager
def _literal(folder: Path) -> Iterator[Path]:
    """A path of this folder that every library takes literally: its own, or else a link to it while this lasts."""
    absolute = folder.absolute()
    if _PLAIN.fullmatch(str(absolute)):
        yield absolute
        return
    with tempfile.TemporaryDirectory(prefix="mot-", dir=_folder_of_links()) as temporary:
        link = Path(temporary) / "checkpoints"
        link.symlink_to(absolute, target_is_directory=True)
        yield link


def _folder_of_links() -> str:
    """A folder of temporary files whose own path is plain."""
    folders = (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")
    for folder in folders:
        if _PLAIN.fullmatch(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    listed = ", ".join(dict.fromkeys(folders))
    raise OSError(f"a link to it is needed, and none of {listed} can hold one; set TMPDIR to a folder of a plain name")


def refuse_odd(folder: Path) -> None:
    """`UserError` where several processes would need a link to the same folder, each another one."""
    odd = sorted(set(_PLAIN.sub("", str(folder.absolute()))))
    if odd and jax.process_count() > 1:
        raise UserError(
            f"{folder}: {' '.join(odd)} in a path of checkpoints works with one process, and there are "
            f"{jax.process_count()}; choose another run.root or run.name"
        )


def refuse_unwritable(folder: Path) -> None:
    """`UserError`, before a run trains, where its folder of checkpoints would not give back what it is to hold.

    A step of one number is saved there, read back and removed. Where a step was saved before, or several processes
    save together, nothing is tried.
    """
    if steps(folder) or jax.process_count() > 1:
        return
    try:
        save(folder / "0.partial", 0, {"params": {"number": jnp.ones(1)}}, {}, 1)
    except UserError as error:
        why = _why(folder, error.__cause__)
        raise UserError(
            f"{folder} cannot hold checkpoints: {why}; nothing was trained; make room or mend the folder, or choose "
            "another run.root"
        ) from error
    finally:
        if folder.is_dir():
            _remove_partial(folder)


def _read_back(step: Path, trees: dict) -> None:
    """Raises where a step that was just saved does not give back the smallest of its parameters, bit for bit."""
    path, array = min(flatten_dict(trees["params"]).items(), key=lambda item: item[1].size)
    like = unflatten_dict({path: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)})
    restore_args = ocp.checkpoint_utils.construct_restore_args(like)
    arguments = ocp.args.PyTreeRestore(like, restore_args=restore_args, partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = flatten_dict(checkpointer.restore(step / "params", args=arguments))
    if not jnp.array_equal(restored[path], array, equal_nan=True):
        raise ValueError(f"{'/'.join(path)} came back changed")


def verify(target: Path) -> None:
    """Raises `Damaged`, naming the first file that is missing, new or changed."""
    try:
        expected = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(expected, dict):
            raise ValueError("not an object of file names")
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{target / MANIFEST} cannot be read ({error}); {_remedy(target)}") from None
    digests = _digests(target)
    for name in sorted({*expected, *digests}):
        if name not in digests:
            raise Damaged(f"{target / name} is missing; {_remedy(target)}")
        if name not in expected:
            raise Damaged(f"{target / name} is foreign: the manifest does not list it; {_remedy(target)}")
        if expected[name] != digests[name]:
            raise Damaged(f"{target / name} is damaged: its digest is not the manifest's; {_remedy(target)}")


def restore(folder: Path, step: int, like: dict) -> tuple[dict, dict]:
    """Verified trees, with the shapes, dtypes and shardings of the abstract trees `like`, and the position as JSON."""
    target = folder / str(step)
    verify(target)
    with _literal(folder) as literal, ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:

        def read(**items):
            try:
                return checkpointer.restore(literal / target.name, args=ocp.args.Composite(**items))
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
    """Where a verified step comes from: `runs.provenance.made_by`; empty where its version did not write that down."""
    meta = json.loads((target / "meta" / "metadata").read_text(encoding="utf-8"))
    return meta.get("made_by", {})


def _remedy(target: Path) -> str:
    others = [s for s in steps(target.parent) if str(s) != target.name]
    older = f"the run then resumes from step {others[-1]}" if others else "the run then starts anew"
    return f"move {target} away to go on without it ({older}); nothing was overwritten"


def _digests(target: Path) -> dict[str, str]:
    files = sorted(p for p in target.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(target)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

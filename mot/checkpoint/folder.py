"""The folder of checkpoints: which steps lie in it, what else does, and a path that libraries take literally."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax

from mot.errors import UserError
from mot.files import NUMBER, is_bucket, numbered, remove

MANIFEST = "manifest.json"
ASIDE = ".damaged"
PARTIAL = re.compile(r"[0-9]+\.partial(\.orbax.*)?")


@dataclass
class Position:
    """Where a run is. Each checkpoint keeps it beside its arrays, so that what is cumulative goes on."""

    step: int = 0  # batches consumed, the next batch's number
    tokens: dict[str, int] = field(default_factory=dict)  # trained on, by modality
    flops: int = 0  # model FLOPs
    seconds: float = 0.0  # in steps; compiling, evaluating and saving are not counted
    skipped: int = 0  # steps in a row
    data: str = ""  # digest of the documents
    tokenizers: dict[str, str] = field(default_factory=dict)  # digests, by modality
    packing: str = ""  # digest of what else `plan` depends on: pipeline.packing
    plan: dict = field(default_factory=dict)  # from which the next batch is made: pipeline.Packed.state
    left_out: dict[str, int] = field(default_factory=dict)  # documents, by source
    wall: dict[str, float] = field(default_factory=dict)  # seconds by kind: runs.goodput


def steps(folder: Path) -> list[int]:
    """The steps that were saved whole, oldest first: folders named by a number that hold a manifest."""
    return numbered(folder, holding=MANIFEST)


def ignored(folder: Path) -> list[str]:
    """What lies among the steps and is none: each name, and why it is passed over."""
    if not folder.is_dir():
        return []
    whole = {str(step) for step in steps(folder)}
    return [f"{path.name} ({_why_ignored(path)})" for path in sorted(folder.iterdir()) if path.name not in whole]


def _why_ignored(path: Path) -> str:
    if PARTIAL.fullmatch(path.name):
        return "left by a save, or by a removal, that was interrupted"
    if path.suffix == ASIDE:
        return "it was damaged, and set aside when its step was saved again"
    if not re.fullmatch(NUMBER, path.name):
        return "not the name of a step"
    if not path.is_dir():
        return "a file, not a folder"
    return f"it has no {MANIFEST}" if any(path.iterdir()) else "an empty folder"


def remove_partial(folder: Path) -> None:
    """Removes what an interrupted or failed save, or a removal, has left."""
    for left in folder.iterdir() if folder.is_dir() else ():
        if PARTIAL.fullmatch(left.name) or (_is_step_of_bucket(left) and not (left / MANIFEST).is_file()):
            remove(left)


def _is_step_of_bucket(path: Path) -> bool:
    """A bucket renames nothing: there a step is written under its own name, and its manifest makes it whole."""
    return is_bucket(path) and re.fullmatch(NUMBER, path.name) is not None


def partial_name(folder: Path, step: int) -> str:
    """The name under which a step is written."""
    return str(step) if is_bucket(folder) else f"{step}.partial"


def remove_step(target: Path) -> None:
    """Removes a step. It loses what makes it one first, so a kill leaves no step that lacks files."""
    with contextlib.suppress(Exception):  # what stays goes before the next save
        if is_bucket(target):
            (target / MANIFEST).unlink(missing_ok=True)
            remove(target)
        else:
            left = target.with_name(f"{target.name}.partial")
            os.rename(target, left)
            remove(left)


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
def literal(folder: Path) -> Iterator[Path]:
    """A path of this folder that every library takes literally: its own, or else a link to it while this lasts."""
    if is_bucket(folder):
        yield folder
        return
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
    if is_bucket(folder):
        return
    odd = sorted(set(_PLAIN.sub("", str(folder.absolute()))))
    if odd and jax.process_count() > 1:
        raise UserError(
            f"{folder}: {' '.join(odd)} in a path of checkpoints works with one process, and there are "
            f"{jax.process_count()}; choose another run.root or run.name"
        )

"""Writing a step beside training: the loop pays for the copy of the state alone, one save at a time."""

import copy
import errno
import math
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mot import sharding
from mot.checkpoint import arrays, digests, manifest
from mot.checkpoint.folder import ASIDE, goes_on, literal, partial_name, remove_partial, remove_step, steps
from mot.errors import UserError
from mot.files import is_bucket, make_folder, remove, sync

PATIENCE = 600  # seconds that a process waits for the others of its run to write their part


class Keep(NamedTuple):
    """Which steps stay. The newest always does."""

    last: int  # so many of the newest
    every: int = 0  # those that this divides; 0 = none
    best: Mapping[int, float] = {}  # held-out loss by step, also of steps to come: the step of the lowest stays


def kept(saved: Sequence[int], keep: Keep) -> set[int]:
    """Of the steps that are saved, oldest first, those that stay."""
    stay = {*saved[-max(keep.last, 1) :]}
    if keep.every:
        stay |= {step for step in saved if step % keep.every == 0}
    evaluated = [step for step in saved if step in keep.best]
    return stay | ({min(evaluated, key=keep.best.__getitem__)} if evaluated else set())


class Outcome(NamedTuple):
    """What became of a save."""

    step: int
    error: str  # why it failed; "" where the step is saved
    seconds: float  # from its begin to its end
    stall: float  # seconds for which it held the loop


class _Copied(NamedTuple):
    """A step whose arrays are on the host, and are being written."""

    step: int
    began: float  # on the monotonic clock
    stall: float
    path: Path  # to which orbax writes
    closing: ExitStack  # of the link to the folder, and of orbax's threads
    checkpointer: ocp.AsyncCheckpointer
    shapes: dict  # the trees, abstract
    digests: dict[str, jax.Array]  # by item
    made_by: dict


class Saver:
    """Saves the steps of one folder, one at a time. `begin` returns once the state is copied; a thread does the rest.

    Every process of a run has one, and calls it at the same steps.
    """

    def __init__(self, folder: Path, keep: Keep):
        self.folder = folder
        self.keep = keep
        self.thread: threading.Thread | None = None
        self.ended: Outcome | None = None
        self.saved: int | None = None  # the step that it saved last

    def is_busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def begin(self, step: int, trees: dict, data: dict, made_by: dict | None = None) -> None:
        """Begins to save a step, once the save before it has ended. The caller may donate the arrays at once.

        `trees` are pytrees of arrays by item name (params, opt, ema); `data` is the run's `Position`, as JSON, and
        `made_by` says where the step comes from. A step that it has just saved is not saved again.
        """
        self.wait()
        if step == self.saved:
            return
        self.ended = None
        began = time.monotonic()
        try:
            copied = _copy(self.folder, step, trees, data, began, made_by or {})
        except Exception as error:  # each library of a disk or bucket has errors of its own, and training goes on
            self._fail(step, began, error)
            return
        self.thread = threading.Thread(target=self._finish, args=(copied,), name="checkpoint", daemon=True)
        self.thread.start()

    def wait(self, seconds: float | None = None) -> Outcome | None:
        """What became of the last save, once it has ended; None where `outcome` has told it, or none was begun.

        None also where it has not ended after so many seconds.
        """
        if self.thread is not None:
            self.thread.join(None if seconds is None else max(seconds, 0.0))
            if self.thread.is_alive():
                return None
            self.thread = None
        return self.ended

    def outcome(self) -> Outcome | None:
        """What became of a save that has ended since this was asked last."""
        if self.is_busy():
            return None
        ended = self.wait()
        self.ended = None
        return ended

    def _finish(self, copied: _Copied) -> None:
        try:
            with copied.closing:
                _commit(self.folder, copied)
        except Exception as error:
            self._fail(copied.step, copied.began, error, copied.stall)
            return
        if sharding.is_first_process():
            saved = [step for step in steps(self.folder) if step <= copied.step]  # a later one was damaged: it stays
            for old in {*saved} - kept(saved, self.keep):
                remove_step(self.folder / str(old))
        self.saved = copied.step
        self.ended = Outcome(copied.step, "", time.monotonic() - copied.began, copied.stall)

    def _fail(self, step: int, began: float, error: Exception, stall: float | None = None) -> None:
        # Threads of tensorstore may still write there for a moment. What they leave is no step by its name, and the
        # next save, after a pause, removes it.
        if sharding.is_first_process():
            remove_partial(self.folder)
        seconds = time.monotonic() - began
        self.ended = Outcome(step, _why(self.folder, error), seconds, seconds if stall is None else stall)


def save(folder: Path, step: int, trees: dict, data: dict, keep: int, made_by: dict | None = None) -> Path:
    """Saves a step (unless it is there) as `Saver` does, and waits until it is whole: for whoever has no loop.

    Raises `UserError`, with nothing left of the step, where it cannot be written or read back.
    """
    target = folder / str(step)
    if step in steps(folder):
        return target
    saver = Saver(folder, Keep(keep))
    saver.begin(step, trees, data, made_by)
    outcome = saver.wait()
    if outcome and outcome.error:
        raise UserError(f"{target} was not saved: {outcome.error}; {goes_on(steps(folder))}")
    return target


def _copy(folder: Path, step: int, trees: dict, data: dict, began: float, made_by: dict) -> _Copied:
    """Copies the state to the host, from where orbax writes it."""
    if sharding.is_first_process():
        make_folder(folder)
        if is_bucket(folder) and step in steps(folder):
            remove_step(folder / str(step))  # passed over when the run resumed: it is damaged
        remove_partial(folder)
    sharding.barrier(f"saving {step}")
    found = {item: digests.of_tree(tree) for item, tree in trees.items()}  # on the devices, before they go on
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trees)
    with ExitStack() as closing:
        path = closing.enter_context(literal(folder)) / partial_name(folder, step)
        # Folders are made at once: threads would wait minutes for one that cannot be made, and the process for them.
        options = ocp.options.AsyncOptions(timeout_secs=PATIENCE, create_directories_asynchronously=False)
        handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(async_options=options))
        checkpointer = ocp.AsyncCheckpointer(handler, async_options=options)
        closing.callback(checkpointer.close)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        position = ocp.args.JsonSave(copy.deepcopy(data))  # which training changes while it is written
        checkpointer.save(path, args=ocp.args.Composite(**items, data=position))
        stall = time.monotonic() - began
        return _Copied(step, began, stall, path, closing.pop_all(), checkpointer, shapes, found, made_by)


def _commit(folder: Path, copied: _Copied) -> None:
    """Once all processes have written their part: the manifest, the disk's word, and the step's own name."""
    copied.checkpointer.wait_until_finished()
    if not sharding.is_first_process():
        return
    partial = folder / copied.path.name
    described = {}
    for item, tree in copied.shapes.items():
        described |= digests.described(item, tree, jax.device_get(copied.digests[item]))
    _read_back(partial, described)
    files = manifest.digests(partial, manifest.files(partial))
    manifest.write(partial, copied.step, described, copied.made_by, files)
    manifest.sync_all(partial)
    target = folder / str(copied.step)
    if target == partial:
        return
    if target.exists():  # passed over when the run resumed: it is damaged
        aside = folder / f"{copied.step}{ASIDE}"
        remove(aside)
        os.rename(target, aside)
    os.rename(partial, target)
    sync(folder)


def _read_back(partial: Path, described: Mapping[str, dict]) -> None:
    """Raises where a step that was just written does not give back the smallest of its parameters, bit for bit."""
    parameters = [path for path in described if path.startswith("params/")]
    smallest = min(parameters, key=lambda path: math.prod(described[path]["shape"]))
    if why := arrays.fault(partial, smallest, described[smallest]):
        raise ValueError(f"{smallest} came back changed: {why}")


_TAIL = re.compile(r" \[(?:os_error_code|tensorstore_spec|source locations)=")  # thousands of characters


def _why(folder: Path, error: BaseException) -> str:
    text = str(error)
    if "No space left" in text or "RESOURCE_EXHAUSTED" in text or getattr(error, "errno", None) == errno.ENOSPC:
        return f"No space left on the disk of {folder}"
    return _TAIL.split(text.splitlines()[0])[0] if text else type(error).__name__


def refuse_unwritable(folder: Path) -> None:
    """`UserError`, before a run trains, where its folder of checkpoints would not give back what it is to hold.

    A step of one number is saved there, read back and removed. Where a step was saved before, or several processes
    save together, nothing is tried.
    """
    if steps(folder) or jax.process_count() > 1:
        return
    trial = Saver(folder / "0.partial", Keep(1))
    trial.begin(0, {"params": {"number": jnp.ones(1)}}, {})
    outcome = trial.wait()
    if folder.is_dir():
        remove_partial(folder)
    if outcome and outcome.error:
        raise UserError(
            f"{folder} cannot hold checkpoints: {outcome.error.replace(str(folder / '0.partial'), str(folder))}; "
            "nothing was trained; make room or mend the folder, or choose another run.root"
        )

"""W&B and trackio, each opened for one run: the only file that knows them. Neither is imported before a run needs it.

Keys are theirs to find, in the environment or in files of their own. mot reads none and passes none on.
"""

import contextlib
import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mot.files import cache_folder, is_bucket, make_folder
from mot.runs.curves import CURVES, kind_of

PROJECT = "mot"  # where the environment names no other
OPENS = 20  # seconds that W&B may take to answer when a run is opened
FINISHES = 4  # seconds that W&B may take to send the rest when a run is closed


class About(NamedTuple):
    """What a tracker is told of a run."""

    id: str  # the same after a restart
    name: str
    group: str
    config: Mapping
    folder: Path  # the run's own
    starts: int  # how often it was opened before


class Opened(NamedTuple):
    """A tracker's run."""

    log: Callable[[int, Mapping[str, float]], None]  # takes a step and its points by tag
    close: Callable[[], None]
    where: str  # told to the user
    has: Mapping[str, int]  # the newest step of each kind that it has; where it cannot tell, that kind is not there


def open_wandb(about: About) -> Opened:
    """A run of W&B: online where W&B finds a key, else offline, in files that `wandb sync` sends later.

    Steps are a value beside the others, as W&B passes over a row whose own step is not above all before.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
    # Nothing is sent that nobody asked for: what the program prints, the command line, git's state, the packages.
    settings = wandb.Settings(
        console="off",
        disable_git=True,
        save_code=False,
        silent=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=OPENS,
        finish_timeout=FINISHES,
        x_transaction_log_flush_interval=1.0,
    )
    folder = _own_folder(about, "wandb")
    has = _in_files(folder / "wandb", about)
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        id=about.id,
        name=about.name,
        group=about.group,
        config=dict(about.config),
        allow_val_change=True,
        dir=folder,
        mode=mode,
        resume="allow",
        reinit="create_new",  # several runs of one program are open at once
        settings=settings,
    )
    opened.define_metric("step", hidden=True)
    opened.define_metric("*", step_metric="step")

    def log(step: int, points: Mapping[str, float]) -> None:
        opened.log({"step": step, **points})

    where = opened.url if mode == "online" else f"{mode}; `wandb sync {opened.settings.sync_dir}` sends it"
    return Opened(log, opened.finish, where, has)


def _in_files(folder: Path, about: About) -> dict[str, int]:
    """The newest step of each kind in the files of earlier starts that were offline: a kill costs W&B its last rows.

    Of those that were online W&B has more than lies here, and of those that were sent and removed, too. Where the files
    of all starts are here, a kind of which they hold no row is at -1.
    """
    starts = sorted(folder.glob(f"*run-*-{about.id}"), key=lambda start: start.name.removeprefix("offline-"))
    newest: dict[str, int] = {}
    for start in reversed(starts):
        if not start.name.startswith("offline-"):
            return newest
        with contextlib.suppress(Exception):  # what cannot be read tells nothing
            for record in reversed(wandb_records(start / f"run-{about.id}.wandb")):
                if len(newest) == len(CURVES):
                    return newest
                row = wandb_row(record)
                for kind in {kind_of(tag) for tag in row.keys() - {"step"}}:
                    newest.setdefault(kind, int(row["step"]))
    if 0 < about.starts <= len(starts):
        return dict.fromkeys(CURVES, -1) | newest
    return newest


def wandb_records(file: Path) -> list[bytes]:
    """The records of a file of W&B, in LevelDB's log format: blocks of 32 KiB, after a header of 7 bytes."""
    content = file.read_bytes()
    records: list[bytes] = []
    record = b""
    at = 7
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:  # the header of a record is never split between blocks
            at += left
            continue
        length, part = struct.unpack_from("<HB", content, at + 4)  # after its checksum
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or the last part
            records.append(record)
            record = b""
    return records


def wandb_row(record: bytes) -> dict[str, float]:
    """The values of a record that is a row, its step among them; none of another record."""
    from wandb.proto.wandb_internal_pb2 import Record

    read = Record.FromString(record)
    items = read.history.item if read.WhichOneof("record_type") == "history" else ()
    values = {"/".join(item.nested_key) or item.key: item.value_json for item in items}
    return {tag: float(value.strip('"')) for tag, value in values.items() if not tag.startswith("_")}


def open_trackio(about: About) -> Opened:
    """A run of trackio, in its own database on this machine unless the environment names a Space or a server.

    trackio finds a run again by its name, which others may have too, so the id is part of it. It writes rows some time
    after it took them, so of those that it took last it may have none after a kill: its database says which it has.
    """
    import trackio

    project = os.environ.get("TRACKIO_PROJECT") or PROJECT
    name = f"{about.name}-{about.id}"
    opened = trackio.init(
        project=project,
        name=name,
        group=about.group,
        config=dict(about.config),
        resume="allow",
        embed=False,
        auto_log_cpu=False,
        auto_log_gpu=False,
    )

    def log(step: int, points: Mapping[str, float]) -> None:
        opened.log(dict(points), step=step)

    elsewhere = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
    where = f"run {name}; `trackio show --project {project}` shows it"
    return Opened(log, opened.finish, where, {} if elsewhere else _in_database(project, name))


def _in_database(project: str, name: str) -> dict[str, int]:
    """The newest step of each kind that trackio's database has of a run; those of a run that it lacks are below 0."""
    from trackio.sqlite_storage import SQLiteStorage

    newest = {"train": -1, "eval": -1}
    for row in SQLiteStorage.get_logs(project, name):
        for kind in {kind_of(key) for key in row.keys() - {"step", "timestamp"}}:
            newest[kind] = max(newest[kind], row["step"])
    return newest


def _own_folder(about: About, name: str) -> Path:
    """Where a tracker may write: the run's folder, or for a run in a bucket a folder of this machine."""
    if not is_bucket(about.folder):
        return about.folder
    folder = (cache_folder() or Path(tempfile.mkdtemp())) / name / about.id
    make_folder(folder)
    return folder


# By the names that `run.trackers` takes (`mot.config.options.TRACKERS`).
OPENERS: dict[str, Callable[[About], Opened]] = {"wandb": open_wandb, "trackio": open_trackio}

"""W&B and trackio, each opened for one run: the only file that knows them. Neither is imported before a run needs it.

Keys are theirs to find, in the environment or in files of their own. mot reads none and passes none on.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mot.files import cache_folder, is_bucket, make_folder
from mot.runs.curves import kind_of

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


class Opened(NamedTuple):
    """A tracker's run."""

    log: Callable[[int, Mapping[str, float]], None]  # takes a step and its points by tag
    close: Callable[[], None]
    where: str  # told to the user
    has: Mapping[str, int] | None = None  # the newest step of each kind that it has; None where it cannot tell


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
    )
    folder = _own_folder(about, "wandb")
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
    return Opened(log, opened.finish, where)


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
    return Opened(log, opened.finish, where, None if elsewhere else _in_database(project, name))


def _in_database(project: str, name: str) -> dict[str, int]:
    """The newest step of each kind that trackio's database has of a run; those of a run that it lacks are below 0."""
    from trackio.sqlite_storage import SQLiteStorage

    newest = {"train": -1, "eval": -1}
    for row in SQLiteStorage.get_logs(project, name):
        for kind in {kind_of(key) for key in row.keys() - {"step", "timestamp"}}:
            newest[kind] = max(newest[kind], row["step"])
    return newest


def _own_folder(about: About, name: str) -> str:
    """Where a tracker may write: the run's folder, or for a run in a bucket a folder of this machine."""
    if not is_bucket(about.folder):
        return str(about.folder)
    folder = (cache_folder() or Path(tempfile.mkdtemp())) / name / about.id
    make_folder(folder)
    return str(folder)


# By the names that `run.trackers` takes (`mot.config.options.TRACKERS`).
OPENERS: dict[str, Callable[[About], Opened]] = {"wandb": open_wandb, "trackio": open_trackio}

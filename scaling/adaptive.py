"""Adaptive search with optuna: asked for points, told what they came to. Its storage is a file beside the sweep.

    waiting = ask(out / "search.log", "mot", RANGES, 8)      # {0: {"optim.lr": 0.0021}, ...}
    ...                                                      # a run of each; whoever runs a sweep does it
    tell(out / "search.log", "mot", {0: 2.31, 1: None})      # None: the run diverged, or failed

A study is of one architecture. Each has the same ranges and is asked for as many points; they differ in what they were
told. A point that was asked for and not told waits: after a restart the same points are asked for again, and done
runs are found as done. The file is a log of JSON, and is never unpickled.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from configs.search import DIGITS, Range
from mot.errors import UserError

if TYPE_CHECKING:
    import optuna


def ask(file: Path, study: str, ranges: Mapping[str, Range], count: int, seed: int = 0) -> dict[int, dict[str, float]]:
    """So many points by number, each a value by dotted key: first those that wait, then new ones."""
    opened = _opened(file, study, seed)
    waiting = [trial for trial in opened.trials if not trial.state.is_finished()]
    points = {trial.number: dict(trial.user_attrs["point"]) for trial in waiting[:count]}
    distributions = {key: _distribution(one) for key, one in ranges.items()}
    for _ in range(count - len(points)):
        trial = opened.ask(distributions)
        point = {key: float(f"{value:.{DIGITS}g}") for key, value in trial.params.items()}
        trial.set_user_attr("point", point)
        points[trial.number] = point
    return points


def tell(file: Path, study: str, losses: Mapping[int, float | None]) -> None:
    """What points came to, by number; a loss that is None or not finite is a failure. What was told stays told."""
    import optuna

    opened = _opened(file, study, 0)
    states = {trial.number: trial.state for trial in opened.trials}
    for number, loss in losses.items():
        if number not in states:
            raise UserError(f"{file}: study {study} has no point {number}; it has {len(states)}, from 0")
        if states[number].is_finished():
            continue
        if loss is None or not math.isfinite(loss):
            opened.tell(number, state=optuna.trial.TrialState.FAIL)
        else:
            opened.tell(number, loss)


def _opened(file: Path, study: str, seed: int) -> "optuna.Study":
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError(
            "adaptive search needs optuna, which is not installed; install '.[search]' with constraints.txt, or search "
            "with configs/search.py's points"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(file)))
    opened = optuna.create_study(storage=storage, study_name=study, direction="minimize", load_if_exists=True)
    # Of several points asked for at once, those that wait count as bad ones, so that the next lie elsewhere. The seed
    # moves on with what the file holds: a search that is resumed does not repeat its points.
    opened.sampler = optuna.samplers.TPESampler(seed=seed + len(opened.trials), constant_liar=True)
    return opened


def _distribution(one: Range) -> "optuna.distributions.FloatDistribution":
    import optuna

    return optuna.distributions.FloatDistribution(one.low, one.high, log=one.scale == "log")

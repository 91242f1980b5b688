"""A run opened to generate from, and any number of rows from it, in batches."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mot.config import Config
from mot.console import announce, phase
from mot.data import layout, remote
from mot.data.layout import Format, Stretch
from mot.data.mixture import Sources
from mot.generate import codecs
from mot.generate.sampling import Generated, Sampler, Settings
from mot.runs import written
from mot.train import restore

ROWS = 64  # of a batch at most


class LoadedModel(NamedTuple):
    """A checkpoint of a run, and what it needs to generate."""

    path: Path
    config: Config
    step: int
    format: Format
    codec: codecs.Codec
    training: Sources
    held_out: Sources
    sampler: Sampler  # compiles once for all steps of a run


def opened(path: Path, step: int | None = None, fetch: bool = False) -> LoadedModel:
    """The newest checkpoint, or that of `step`. Raises `UserError` if it cannot be read, or the data have changed.

    `fetch`: also from an address that only the run itself names.
    """
    remote.refuse_unknown(path, written.config_as_written(path).data.sources, fetch)
    with phase("reading the checkpoint"):
        config, position, params = restore.load(path, step)
    format = layout.of(config)
    # Nothing but tokenizers is read of a dataset, and these are verified where they are opened.
    data = dataclasses.replace(config.data, verify=False)
    _, training, held_out = restore.open_data(dataclasses.replace(config, data=data))
    restore.refuse_other_data(path, position, training)
    sampler = Sampler(params, config, format)
    return LoadedModel(path, config, position.step, format, codecs.of(config), training, held_out, sampler)


def at(model: LoadedModel, step: int) -> LoadedModel:
    """Another step of the same run; the model given is it from now on."""
    _, position, model.sampler.params = restore.load(model.path, step)
    return model._replace(step=position.step)


def draws(config: Config, format: Format) -> list[str]:
    """The modalities other than text that a run learned to draw, in the order of its streams."""
    media = {medium.stream for medium in format.media}
    return [s.modality for name, s in config.streams.items() if name in media and s.is_drawn]


def stream_of(config: Config, modality: str) -> str:
    return next(name for name, stream in config.streams.items() if stream.modality == modality)


def prompt(parts: Sequence[tuple[str, object]], config: Config) -> list[Stretch]:
    """A prompt for `rows`, from pairs of a modality and its data."""
    return [Stretch(stream_of(config, kind), data) for kind, data in parts]


def rows(
    model: LoadedModel, prompts: Sequence[Sequence[Stretch]], settings: Settings, title: str, seed: int, **how
) -> list[Generated]:
    """What follows each prompt, in batches of equal size, ROWS at most; `how` is that of `Sampler`."""
    if not prompts:
        return []
    batches = -(-len(prompts) // ROWS)
    size = -(-len(prompts) // batches)
    console = Console(stderr=True)
    generated = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    announce(f"{title}: {len(prompts)} rows in {batches} batches; the first compiles their programs")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=len(prompts))
        for first in range(0, len(prompts), size):
            own = list(prompts[first : first + size])
            # The last batch is filled up: another shape would be compiled anew.
            whole = own + own[-1:] * (size - len(own))
            generated += model.sampler(whole, settings, seed=seed, first=first, **how)[: len(own)]
            bar.advance(task, len(own))
    return generated

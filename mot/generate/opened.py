"""A run opened to generate from, and any number of rows from it, in batches."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mot.config import Config
from mot.console import announce, phase
from mot.data import layout, remote, roles
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
    codec = codecs.of(config)
    sampler = Sampler(params, config, format, further(config, codec))
    return LoadedModel(path, config, position.step, format, codec, training, held_out, sampler)


def at(model: LoadedModel, step: int) -> LoadedModel:
    """Another step of the same run; the model given is it from now on."""
    _, position, model.sampler.params = restore.load(model.path, step)
    return model._replace(step=position.step)


def draws(config: Config, format: Format) -> list[str]:
    """The modalities other than text that a run learned to draw, in the order of its streams."""
    media = {medium.stream for medium in format.media}
    drawn = [s.modality for name, s in config.streams.items() if name in media and s.is_drawn]
    return list(dict.fromkeys(drawn))


def stream_of(config: Config, modality: str) -> str:
    """The stream in which a modality is drawn; where none is, the one in which it is read."""
    streams = [(not s.is_drawn, name) for name, s in config.streams.items() if s.modality == modality]
    return min(streams, key=lambda one: one[0])[1]


def prompt(parts: Sequence[tuple[str, np.ndarray]], config: Config) -> list[Stretch]:
    """A prompt for `rows`, from pairs of a representation and its data; those of one unit follow one another.

    A unit appears where `data.roles` say of any source, as one after which its document goes on.
    """
    streams = config.streams
    modality_of = {s.holds: s.modality for s in streams.values()}
    grouped: list[dict[str, np.ndarray]] = []
    for kind, data in ((kind, data) for kind, data in parts if kind in modality_of):
        # A unit has a representation once, and text has no other.
        is_same = grouped and kind not in grouped[-1] and modality_of[kind] == modality_of[next(iter(grouped[-1]))]
        grouped[-1:] = [grouped[-1] | {kind: data}] if is_same else [*grouped[-1:], {kind: data}]
    kinds = [modality_of[next(iter(unit))] for unit in grouped]
    followed = np.unique([*kinds, ""], return_inverse=True)[1]  # "": what is to come, of no modality that is there
    place = roles.places(followed, np.zeros(len(followed), int))[: len(kinds)]
    return [s for unit, p in zip(grouped, place, strict=True) for s in _stretches(unit, roles.PLACES[p], config)]


def _stretches(unit: Mapping[str, np.ndarray], place: str, config: Config) -> list[Stretch]:
    """A unit, by representation, in the streams where it appears."""
    names = list(config.streams)
    placed = roles.placements(config.streams, [s.holds for s in config.streams.values()])
    shown = roles.appearances(list(unit), place, placed, roles.rules(config.data.roles, None, config.streams, placed))
    held = [placed[one.placement] for one in shown]
    return [Stretch(names[p.stream], unit[p.modality], n > 0) for n, p in enumerate(held)]


def further(config: Config, codec: codecs.Codec) -> Callable[[str, np.ndarray], list[Stretch]]:
    """What follows a unit that was drawn in a stream: its other representations, which are made of it.

    Those that no tokenizer makes of it, as supplied features, are left out: the model goes on with what it has drawn.
    """

    def after(stream: str, data: np.ndarray) -> list[Stretch]:
        drawn = config.streams[stream].holds
        wanted = {s.holds for s in config.streams.values() if s.modality == config.streams[stream].modality} - {drawn}
        made = codec.others(drawn, data, sorted(wanted)) if wanted else {}
        shown = _stretches(made | {drawn: data}, "middle", config)
        begins = next((n for n, one in enumerate(shown) if one.stream == stream), len(shown))
        return [one._replace(is_same=True) for one in shown[begins + 1 :]]

    return after


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
    announce(
        f"{title}: {len(prompts)} rows in {batches} batch{'es' * (batches > 1)}; the first compiles their programs"
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=len(prompts))
        for first in range(0, len(prompts), size):
            own = list(prompts[first : first + size])
            # The last batch is filled up: another shape would be compiled anew.
            whole = own + own[-1:] * (size - len(own))
            generated += model.sampler(whole, settings, seed=seed, first=first, **how)[: len(own)]
            bar.advance(task, len(own))
    return generated

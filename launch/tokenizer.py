"""Trains a tokenizer of pictures or sounds: a network that makes ids or vectors of them, and back."""

import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from launch import arguments
from launch.process import guarded
from mot.config.options import DROP_DOCUMENT
from mot.config.tokenizer import Settings
from mot.console import phase
from mot.errors import UserError
from mot.prepare import readers
from mot.prepare.encode import opened
from mot.prepare.fit import spinner
from mot.prepare.raw import Raw
from mot.prepare.sides import Sides, held_out_below, is_held_out
from mot.tokenizers import image
from mot.tokenizers.learned import folder, training
from mot.tokenizers.networks import Network

SHOWN = {"image": 16, "audio": 4}  # of what is held out, in the picture
ENLARGED = 64  # pixels of a side at least
BETWEEN = 4  # pixels


class Read(NamedTuple):
    """What a network learns from, and what it is measured on."""

    train: training.Examples
    held_out: training.Examples
    shown: list[np.ndarray]  # some of what is held out: pictures, or sounds
    counts: dict[str, int]


def main(argv: list[str] | None = None) -> int:
    options = arguments.tokenizer().parse_args(argv)
    settings = arguments.tokenizer_settings(options)
    with phase("reading what it learns from"):
        read = _read(options, settings)
    fitted = _fit(settings, read, options.out.name)
    figures = _figures(settings, fitted) | read.counts
    with phase("writing it"):
        made = folder.save(
            options.out, settings, fitted, figures, lambda network: _sheet(_pairs(network, settings, read.shown))
        )
    what = "ids" if made.is_of_ids else "features"
    each = f", {made.shape[0]} x {made.shape[1]} tokens a picture" if made.shape else f", {made.layers} layers"
    print(f"{options.out}: {options.kind} of {made.size} {what}{each}, tokenizer {made.digest[:16]}")
    print(f"held out: {_told(settings, fitted.held_out)}, after step {fitted.step} of {fitted.steps}")
    print(f"originals above what comes back: {options.out / folder.PICTURE}")
    return 0


def _read(options, settings: Settings) -> Read:
    """Raises `UserError` where fewer than two units of the medium can be read."""
    inputs = [Path(path) for path in options.inputs]
    form = readers.detect(inputs) if options.format == "auto" else options.format
    # A folder's pictures need no captions here, which `mot data prepare` asks for unless it is told.
    templates = options.content or _usual(inputs, form, settings.medium)

    def documents() -> Iterator[Raw]:
        return itertools.islice(readers.read(inputs, form, templates), options.sample)

    sides = Sides(held_out_below(documents(), options.held_out, DROP_DOCUMENT, {}))
    made: dict[bool, list[np.ndarray]] = {False: [], True: []}
    shown: list[np.ndarray] = []
    bad = []
    for raw in documents():
        try:
            if raw.bad:
                raise ValueError(raw.bad)
            is_out = is_held_out(raw, sides)
            for part in (part for part in raw.parts if part.kind == settings.medium):
                content = opened(part)
                made[is_out].append(_bytes(content, settings))
                if is_out and len(shown) < SHOWN[settings.medium]:
                    shown.append(_original(content, settings))
        except ValueError as error:
            bad.append(f"{raw.id}: {error}")
    named = ", ".join(map(str, options.inputs))
    if bad:
        print(f"left out: {len(bad)} documents that are bad, the first: {bad[0]}", file=sys.stderr)
    if not all(made.values()):
        found = f"{len(made[False])} {settings.medium} to train on and {len(made[True])} held out"
        raise UserError(
            f"{named}: {found} among its first {options.sample} documents; one of each is needed at least; name inputs "
            "that have more, say which field has them (--content), or raise --held-out or --sample"
        )
    gathered = training.windows if settings.medium == "audio" else lambda found: training.pictures(found, settings)
    counts = {"train": len(made[False]), "held_out": len(made[True])}
    return Read(gathered(made[False]), gathered(made[True]), shown, counts)


def _usual(inputs: list[Path], form: str, medium: str) -> list[str]:
    """As `mot data prepare` reads them, so that both hold out the same; a folder without captions by its media."""
    first = next(readers.read(inputs, form), None) if form == "folder" else None
    return [f"{medium}:{medium}"] if first and first.bad else []


def _bytes(content, settings: Settings) -> np.ndarray:
    """uint8 `[places, P]` of what a codec has opened."""
    if settings.medium == "audio":
        return training.frames(*content, settings)
    return image.patches(content, settings.side, settings.patch)


def _original(content, settings: Settings) -> np.ndarray:
    """A picture as the network sees it, or a sound at its rate."""
    if settings.medium == "audio":
        return training.resampled(*content, settings.rate)
    grid = (settings.side // settings.patch,) * 2
    return image.assembled(_bytes(content, settings), grid, settings.patch)


def _fit(settings: Settings, read: Read, name: str) -> training.Fitted:
    """With a bar, and the time that is left; without a terminal a line for each measurement."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(spinner(console)),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(escape(name), total=settings.steps)

        def tell(step: int, found: training.Quality | None) -> None:
            progress.update(task, completed=step)
            if found:
                told = _told(settings, found)
                progress.update(task, description=f"{escape(name)}, {told}")
                if not console.is_terminal:
                    print(f"step {step} of {settings.steps}: {told}", file=sys.stderr, flush=True)

        return training.fit(settings, read.train, read.held_out, tell)


def _told(settings: Settings, found: training.Quality) -> str:
    what = "PSNR" if settings.medium == "image" else "error of log-mel levels"
    used = [f"{100 * part:.0f} %" for part in found.used]
    perplexity = [f"{x:.0f}" for x in found.perplexity]
    of_ids = f", ids used {', '.join(used)}, perplexity {', '.join(perplexity)}" if used else ""
    return f"{what} {found.decibels:.2f} dB{of_ids}"


def _figures(settings: Settings, fitted: training.Fitted) -> dict:
    """What `mot-tokenizer.json` says of what is held out."""
    found = fitted.held_out
    name = "psnr" if settings.medium == "image" else "log_mel_error"
    figures = {name: found.decibels, "used": list(found.used), "perplexity": list(found.perplexity)}
    return figures | {"best_step": fitted.step, "steps_taken": fitted.steps}


def _pairs(network: Network, settings: Settings, shown: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures uint8 `[H, W, 3]`: an original, and what comes back of it; of sounds their spectrograms."""
    back = [network.decode(tokens) for tokens in network.encode(shown)]
    if settings.medium == "image":
        return list(zip(shown, back, strict=True))
    return [(_spectrogram(x, settings), _spectrogram(y, settings)) for x, y in zip(shown, back, strict=True)]


def _spectrogram(sound: np.ndarray, settings: Settings) -> np.ndarray:
    """uint8 `[BANDS, frames, 3]`, low bands below, loud ones bright."""
    return np.repeat(training.frames(sound, settings.rate, settings).T[::-1, :, None], 3, axis=2)


def _sheet(pairs: list[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """A PNG: originals in a row, and below each what comes back, enlarged by whole pixels."""
    columns = []
    height = max(len(x) for pair in pairs for x in pair)
    times = -(-ENLARGED // height)
    for pair in pairs:
        width = max(x.shape[1] for x in pair)
        cells = [np.full((height * times + BETWEEN, width * times + BETWEEN, 3), 255, np.uint8) for _ in pair]
        for cell, x in zip(cells, pair, strict=True):
            large = x.repeat(times, 0).repeat(times, 1)
            cell[: large.shape[0], : large.shape[1]] = large
        columns.append(np.concatenate(cells))
    out = io.BytesIO()
    Image.fromarray(np.concatenate(columns, axis=1)).save(out, "PNG")
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(guarded(main))

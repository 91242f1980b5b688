"""Samples of a run on the embedded data: digits drawn and judged, held-out digits captioned, free text."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mot.config.options import Settings
from mot.data import embedded
from mot.data.captions import NAMES
from mot.errors import UserError
from mot.generate import codecs, opened, pictures
from mot.generate.judge import judge
from mot.generate.opened import LoadedModel
from mot.prepare.raw import Part

CAPTION, BEGINNING = 21, 48  # tokens of a prompt and of a text's beginning, at most
READ, TEXT = 48, 96  # tokens of a caption that is read, and of what follows a beginning
PROMPTS = tuple(f"a handwritten {name}" for name in NAMES)
ENLARGED = 16  # pixels of a grey level's side
COLUMNS = 3  # more, and a phone shows titles too small to read


class Wanted(NamedTuple):
    prompts: tuple[str, ...]  # in turn,
    drawn: int  # until so many digits are drawn
    read: int  # held-out digits to caption
    texts: tuple[str, ...]
    seed: int
    grid: bool


class Made(NamedTuple):
    """What was drawn and what was read."""

    prompts: list[str]
    drawn: list[np.ndarray]  # grey levels `[64]` of each
    shown: np.ndarray  # `[n, 64]`
    labels: np.ndarray  # which digits these are
    captions: list[str]


def samples(model: LoadedModel, wanted: Wanted, settings: Settings) -> tuple[dict[str, bytes], dict]:
    """Pictures by file name, and the record that `judged` makes."""
    made, record = judged(model, wanted, settings)
    return _pictures(made, wanted), record


def judged(model: LoadedModel, wanted: Wanted, settings: Settings) -> tuple[Made, dict]:
    """What is made, and the record of it: judge (its accuracy), drawn, read, text."""

    def encode(text):
        return model.codec.encode(Part("text", text))

    for flag, given, most in (("prompt", wanted.prompts, CAPTION), ("text", wanted.texts, BEGINNING)):
        for value in given:
            if (n := len(encode(value))) > most:
                raise UserError(f"--{flag} {value[:60]!r}: {n} tokens; there is room for {most}; shorten it")

    def as_text(text):
        return opened.prompt([("text", encode(text))], model.config)

    def follow(prompts, title, **how):
        return opened.rows(model, prompts, settings, title, wanted.seed, **how)

    prompts = [wanted.prompts[i % len(wanted.prompts)] for i in range(wanted.drawn)]
    image = opened.stream_of(model.config, "image")
    found = follow([as_text(p) for p in prompts], "drawing", text=0, media=1, opens=image)
    drawn = [codecs.levels_of(row.parts[0].data) for row in found]

    shown, labels = (x[: wanted.read] for x in embedded.labelled(model.held_out))
    encoded = [model.codec.forms(Part("image", codecs.paper(x))) for x in shown]
    found = follow([opened.prompt(forms, model.config) for forms in encoded], "reading", text=READ, media=0)
    captions = [_text(model, row) for row in found]

    found = follow([as_text(text) for text in wanted.texts], "writing", text=TEXT, media=0)

    def cut(row):
        return "" if row.ended else f" ... (cut after {TEXT} tokens)"

    texts = [text + _text(model, row) + cut(row) for text, row in zip(wanted.texts, found, strict=True)]

    classify, accuracy = judge(model.training, model.held_out)
    asked = [embedded.named(prompt) for prompt in prompts]
    found = classify(np.stack(drawn)).tolist() if drawn else []
    named = [embedded.named(caption) for caption in captions]
    record = {"judge": accuracy, "drawn": _score(asked, found) | {"prompts": list(wanted.prompts)}}
    record |= {"read": _score(labels.tolist(), named) | {"captions": captions}, "text": texts}
    return Made(prompts, drawn, shown, labels, captions), record


def _pictures(made: Made, wanted: Wanted) -> dict[str, bytes]:
    """By file name."""
    files = {}

    def large(levels):
        return codecs.paper(levels).repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)

    if made.drawn and wanted.grid:
        files["grid.png"] = pictures.grid([large(x) for x in made.drawn])
    elif made.drawn:
        columns = len(wanted.prompts) if 1 < len(wanted.prompts) < COLUMNS else COLUMNS
        files["digits.png"] = pictures.titled([large(x) for x in made.drawn], made.prompts, columns)
    if made.captions:
        is_right = [embedded.named(c) == label for c, label in zip(made.captions, made.labels, strict=True)]
        titles = ["WRONG: " * (not right) + c for c, right in zip(made.captions, is_right, strict=True)]
        files["captions.png"] = pictures.titled([large(x) for x in made.shown], titles, COLUMNS)
    return files


def summary(record: dict) -> list[str]:
    lines = []
    drawn = record["drawn"]
    read = record["read"]
    if drawn["asked"]:
        lines.append(
            f"digits drawn as asked: {drawn['right']} of {drawn['asked']}, by a classifier right "
            f"on {100 * record['judge']:.1f} % of real held-out digits"
        )
    if read["asked"]:
        lines.append(f"captions that name the digit: {read['right']} of {read['asked']}")
    return lines + [f"text: {text!r}" for text in record["text"]]


def _text(model: LoadedModel, row) -> str:
    return "".join(model.codec.decode("text", part.data) for part in row.parts)


def _score(asked: Sequence[int | None], got: Sequence[int | None]) -> dict[str, int]:
    """How many prompts ask for a digit, and how many of them got it."""
    right = sum(a == b and a is not None for a, b in zip(asked, got, strict=True))
    return {"asked": sum(a is not None for a in asked), "right": right}

"""Questions with candidate answers, as a file of JSON lines has them, for `mot evaluate --what ranking`."""

import os
from pathlib import Path
from typing import Any

from launch import flags
from mot.config import Config
from mot.config.options import QUESTION
from mot.data.layout import Format, Stretch
from mot.errors import UserError
from mot.generate import codecs, opened
from mot.generate.codecs import Codec
from mot.measures import likelihood, ranking
from mot.measures.ranking import Question
from mot.prepare.compressed import DamagedInput
from mot.prepare.inputs import short
from mot.prepare.raw import Part, json_rows, text

KEYS = ("prompt", "candidates", "answer", "source")


def read(file: Path, config: Config, format: Format, codec: Codec) -> list[Question]:
    """The questions of a file, one a line; media lie in its folder. Raises `UserError` with the line of a fault.

    A prompt and each candidate are a text, a part as {"image": "cat.png"}, or a list of parts. The prompt may be
    absent.
    """
    folder = os.path.realpath(file.parent)
    questions = []
    number = 1
    try:
        for number, row in json_rows(file):  # noqa: B007
            if isinstance(row, ValueError):
                raise row
            questions.append(_question(row, file, folder, config, format, codec))
    except (DamagedInput, ValueError) as error:
        raise UserError(f"--answers={file}: line {number}: {error}") from None
    except OSError as error:
        raise UserError(f"--answers={file}: {error.strerror}; name a file that can be read") from None
    if not questions:
        raise UserError(f"--answers={file}: it holds no question; write one a line, as {QUESTION}")
    return questions


def _question(row: dict, file: Path, folder: str, config: Config, format: Format, codec: Codec) -> Question:
    for key in row:
        if key not in KEYS:
            near = flags.asked(key, KEYS) or "; leave it out"
            raise ValueError(f"unknown key {short(key)}; allowed: {', '.join(KEYS)}{near}")
    if absent := [key for key in ("candidates", "answer") if key not in row]:
        raise ValueError(f"it lacks {absent[0]}; write {QUESTION}")
    candidates, answer, source = row["candidates"], row["answer"], row.get("source", file.name.partition(".")[0])
    if not isinstance(candidates, list) or len(candidates) < 2:
        raise ValueError(f"candidates are {short(candidates)}; a list of 2 or more is needed, of which one is right")
    if type(answer) is not int or not 0 <= answer < len(candidates):
        raise ValueError(f"answer is {short(answer)}; must be 0 to {len(candidates) - 1}, the right candidate's place")
    if not isinstance(source, str) or not source.isprintable() or not source or "/" in source:
        raise ValueError(
            f"source is {short(source)}; must be a name, without / and control characters, for its results"
        )
    prompt = _encoded("prompt", row.get("prompt", ""), folder, config, codec)
    encoded = [_encoded(f"candidate {i}", c, folder, config, codec) for i, c in enumerate(candidates)]
    found = Question(prompt, tuple(encoded), answer, source)
    _refuse(found, config, format)
    return found


def _encoded(name: str, given: Any, folder: str, config: Config, codec: Codec) -> tuple[Stretch, ...]:
    """A text, a part or a list of parts, as stretches; raises `ValueError` that names it."""
    try:
        if isinstance(given, str):
            parts = [Part("text", text(given))]
        else:
            parts = [
                codecs.part(i, one, folder) for i, one in enumerate(given if isinstance(given, list) else [given], 1)
            ]
        return tuple(opened.prompt(codecs.tokens(parts, codec), config))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _refuse(question: Question, config: Config, format: Format) -> None:
    """Raises `ValueError` where a candidate is empty, has no likelihood, stands there twice, or fits no row."""
    seen: dict[tuple, int] = {}
    for i, candidate in enumerate(question.candidates):
        if not candidate:
            raise ValueError(f"candidate {i}: it is empty; write what is to be ranked")
        for stretch in candidate:
            if why := likelihood.why_none(stretch.stream, config):
                allowed = [s.modality for name, s in config.streams.items() if not likelihood.why_none(name, config)]
                raise ValueError(f"candidate {i}: {why}; rank {', '.join(allowed)}")
        key = tuple((s.stream, s.data.tobytes()) for s in candidate)
        if key in seen:
            raise ValueError(f"candidates {seen[key]} and {i} have the same tokens; give each once")
        seen[key] = i
        d = ranking.document(question.prompt, candidate, config, format)
        if why := likelihood.too_long(likelihood.lengths(d, config), config):
            raise ValueError(f"candidate {i} with its prompt: {why}")

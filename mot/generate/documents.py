"""Documents that a run continues: text and media in turn, each with its files, or all of their pictures in a grid."""

import io
import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mot.config.options import Settings
from mot.data import preview
from mot.errors import UserError
from mot.generate import codecs, opened, pictures, sounds
from mot.generate.opened import Model
from mot.prepare import inputs, raw

SHEET = 420  # pixels of the page of all documents, in width: a phone shows letters on a wider one too small
SUFFIXES = {"image": "png", "audio": "wav", "action": "npy", "latents": "npy", preview.IDS: "npy"}


class Request(NamedTuple):
    name: str  # as a message names it
    parts: tuple[raw.Part, ...]
    opens: str  # the modality that comes right after it; "" = the model decides
    text: int  # tokens of text that may follow,
    media: int  # and media


class Continuation(NamedTuple):
    """Modality and content (as `Codec.decode` gives it; None: nothing in it) of each part."""

    name: str
    given: int  # parts that were the prompt's
    parts: list[tuple[str, Any]]
    ended: bool
    limit: str = ""  # what ended it, if it did not end by itself


def encoded(model: Model, requests: Sequence[Request]) -> list[list[tuple[str, np.ndarray]]]:
    """The prompts in tokens; raises `UserError` that names each one's fault."""
    found, faults = {}, []
    for request in {id(request): request for request in requests}.values():  # arrays in them have no hash
        try:
            found[id(request)] = codecs.tokens(request.parts, model.codec)
        except ValueError as error:
            faults.append(f"{request.name}: {error}")
    if faults:
        raise UserError("\n  ".join(["nothing was sampled:", *faults]) if len(faults) > 1 else faults[0])
    return [found[id(request)] for request in requests]


def samples(
    model: Model, requests: Sequence[Request], settings: Settings, length: int, seed: int, grid: bool
) -> tuple[dict[str, bytes], dict]:
    """Files by name, and the record, whose documents have their name, how many parts were given, and their content."""
    prompts = encoded(model, requests)
    found: list = [None] * len(requests)
    for how in dict.fromkeys((r.opens, r.text, r.media) for r in requests):
        opens, text, media = how
        mine = [i for i, r in enumerate(requests) if (r.opens, r.text, r.media) == how]
        rows = opened.rows(
            model,
            [opened.prompt(prompts[i], model.config) for i in mine],
            settings,
            "sampling",
            seed,
            text=text,
            media=media,
            opens=opened.stream_of(model.config, opens) if opens else "",
            length=length,
        )
        for i, row in zip(mine, rows, strict=True):
            found[i] = _document(model, f"document-{i}", prompts[i], row, requests[i])
    files = _grid(model, found, seed) if grid else _files(model, found, seed)
    shown = [
        {
            "name": d.name,
            "prompt": r.name,
            "given": d.given,
            "ended": d.ended,
            "limit": d.limit,
            "content": _content(d, files),
        }
        for d, r in zip(found, requests, strict=True)
    ]
    return files, {"documents": shown}


def _document(model: Model, name: str, prompt, row, request: Request) -> Continuation:
    kinds = {stream: s.modality for stream, s in model.config.streams.items()}
    parts = [*prompt, *((kinds[part.stream], part.data) for part in row.parts)]
    content = [(kind, model.codec.decode(kind, data) if len(data) else None) for kind, data in parts]
    return Continuation(name, len(prompt), content, row.ended, "" if row.ended else _limit(request))


def _limit(request: Request) -> str:
    """Text alone has an end that is set: after media, too, it goes on until the model ends it, or there is enough."""
    if request.text:
        return f"ended by --max-text={request.text}"
    return f"as asked: no further text (--max-text=0), media {request.media} at most (--max-media={request.media})"


def _file(document: Continuation, number: int, kind: str) -> str:
    """What a part's content is kept in, which `--prompt-file` reads again; `kind` as `preview.shown_as` says."""
    return f"{document.name}-{number}.{SUFFIXES[kind]}"


def _content(document: Continuation, files: Container[str]) -> list[dict[str, Any]]:
    """As `--prompt-file` reads it, but for what has no file: None. Ids of one's own stand there themselves."""
    content = []
    for number, (kind, x) in enumerate(document.parts, 1):
        shown = preview.shown_as(kind, x)
        if kind == "text":
            content.append({"text": x})
        elif shown == preview.IDS:
            content.append({"ids": x.tolist(), "modality": kind})
        else:
            name = _file(document, number, shown)
            content.append({kind: name if name in files else None})
    return content


def _files(model: Model, documents: Sequence[Continuation], seed: int) -> dict[str, bytes]:
    files, sound = {}, None
    for d in documents:
        for number, (kind, content) in enumerate(d.parts, 1):
            if kind == "text" or content is None:
                continue
            shown = preview.shown_as(kind, content)
            name = _file(d, number, shown)
            if name.endswith(".npy"):
                files[name] = _npy(_path(content) if kind == "action" else content)
            if shown == "audio":
                wave, rate = model.codec.sound(content, seed)
                files[name], sound = (
                    sounds.wav(wave, rate),
                    preview.Sound(len(wave) / rate / content.shape[1], rate / 2),
                )
            if shown not in ("latents", preview.IDS):
                picture = content if kind == "image" else preview.picture(kind, content)
                files[str(Path(name).with_suffix(".png"))] = pictures.png(picture)
        content = _content(d, files)
        # A part a line: ids would take a line each.
        files[f"{d.name}.json"] = ("[\n " + ",\n ".join(map(json.dumps, content)) + "\n]").encode()
        lines = [x if kind == "text" else f"\n[{kind}: {x}]\n" for kind, x in map(_in_words, content)]
        files[f"{d.name}.txt"] = (_printable("".join(lines)).replace("\n\n[", "\n[").strip("\n") + "\n").encode()
    title = f"{model.config.run.name}, step {model.step}: what was given, and what follows"
    page = io.BytesIO()
    preview.documents([(_title(d), [_shown(*part) for part in d.parts]) for d in documents], page, title, SHEET, sound)
    return files | {"documents.png": page.getvalue()}


def _in_words(part: dict[str, Any]) -> tuple[str, str]:
    """A part of `_content`: its modality, and its text, its file, or how many ids it has."""
    if "ids" in part:
        return part["modality"], f"{len(part['ids'])} ids"
    ((kind, x),) = part.items()
    return kind, x if kind == "text" else x or "empty"


def _printable(text: str) -> str:
    """Without what commands a terminal; marks that join letters, or turn their direction, are text."""
    return inputs.COMMANDS.sub(lambda found: found[0] if found[0] in "\n\t" else "\ufffd", text)


def _grid(model: Model, documents: Sequence[Continuation], seed: int) -> dict[str, bytes]:
    """All that was drawn in one picture, and all that sounds in one WAV, in the picture's order."""
    found = [part for d in documents for part in d.parts[d.given :] if part[0] != "text" and part[1] is not None]
    files = {"grid.png": pictures.grid([preview.picture(*part) for part in found])} if found else {}
    if heard := [
        model.codec.sound(content, seed) for kind, content in found if preview.shown_as(kind, content) == "audio"
    ]:
        files["grid.wav"] = sounds.joined([sound for sound, _ in heard], heard[0][1])
    return files


def _title(d: Continuation) -> str:
    """Of a document: how many of its parts were given, and which limit ended it."""
    given = f": {d.given} part{'s' * (d.given != 1)} given" if d.given else ""
    return f"{d.name}{given}{d.limit and f'; {d.limit}'}"


def _shown(kind: str, content) -> tuple[str, Any]:
    return (kind, content) if content is not None else ("text", f"[{kind}: empty]")


def _path(strokes: Sequence[np.ndarray]) -> np.ndarray:
    """`[n, 3]`: x, y, and 1 where the pen leaves the paper."""

    def up(n):
        return (np.arange(n) == n - 1).astype(float)

    return np.concatenate([np.column_stack([stroke, up(len(stroke))]) for stroke in strokes])


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def summary(record: dict, most: int = 10) -> list[str]:
    """A line for each of the first documents."""
    lines = []
    for d in record["documents"][:most]:
        parts = [repr(x) if kind == "text" else f"[{kind}]" for kind, x in map(_in_words, d["content"])]
        line = " ".join(parts)
        lines.append(f"{d['name']}: {line if len(line) <= 200 else line[:196] + ' ...'}")
    left_out = len(record["documents"]) - len(lines)
    return lines + [f"... and {left_out} more"] * (left_out > 0)

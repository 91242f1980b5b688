"""Documents that a run continues: text and media in turn, each with its files, or all of their pictures in a grid."""

import io
import json
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch import decode, generate, pictures, preview
from launch.generate import Model
from mot.data import raw
from mot.errors import UserError
from mot.settings import Settings


class Request(NamedTuple):
    name: str  # as a message names it
    parts: tuple[raw.Part, ...]
    opens: str  # the modality that comes right after it; "" = the model decides
    text: int  # tokens of text that may follow,
    media: int  # and media


class Document(NamedTuple):
    """Modality and content (as `Codec.decode` gives it; None: nothing in it) of each part."""

    name: str
    given: int  # parts that were the prompt's
    parts: list[tuple[str, Any]]
    ended: bool


def encoded(model: Model, requests: Sequence[Request]) -> list[list[tuple[str, np.ndarray]]]:
    """The prompts in tokens; raises `UserError` that names each one's fault."""
    found, faults = [], []
    for request in dict.fromkeys(requests):
        try:
            found.append((request, decode.tokens(request.parts, model.codec)))
        except ValueError as error:
            faults.append(f"{request.name}: {error}")
    if faults:
        raise UserError("\n  ".join(["nothing was sampled:", *faults]) if len(faults) > 1 else faults[0])
    by_request = dict(found)
    return [by_request[request] for request in requests]


def samples(
    model: Model, requests: Sequence[Request], settings: Settings, length: int, seed: int, grid: bool
) -> tuple[dict[str, bytes], dict]:
    """Files by name, and the record, whose documents have their name, how many parts were given, and their content."""
    prompts = encoded(model, requests)
    found: list = [None] * len(requests)
    for how in dict.fromkeys((r.opens, r.text, r.media) for r in requests):
        opens, text, media = how
        mine = [i for i, r in enumerate(requests) if (r.opens, r.text, r.media) == how]
        rows = generate.rows(
            model,
            [generate.prompt(prompts[i], model.config) for i in mine],
            settings,
            "sampling",
            seed,
            text=text,
            media=media,
            opens=generate.stream_of(model.config, opens) if opens else "",
            length=length,
        )
        for i, row in zip(mine, rows, strict=True):
            found[i] = _document(model, f"document-{i}", prompts[i], row)
    files = _grid(found) if grid else _files(model, found)
    shown = [
        {"name": d.name, "prompt": r.name, "given": d.given, "ended": d.ended, "content": _content(d, files)}
        for d, r in zip(found, requests, strict=True)
    ]
    return files, {"documents": shown}


def _document(model: Model, name: str, prompt, row) -> Document:
    kinds = {stream: s.modality for stream, s in model.config.streams.items()}
    parts = [*prompt, *((kinds[part.stream], part.data) for part in row.parts)]
    content = [(kind, model.codec.decode(kind, data) if len(data) else None) for kind, data in parts]
    return Document(name, len(prompt), content, row.ended)


def _file(document: Document, number: int, kind: str) -> str:
    """What a part's content is kept in: what `--prompt-file` reads again, but for sound, whose phase is lost."""
    return f"{document.name}-{number}.{'npy' if kind in ('action', 'latents') else 'png'}"


def _content(document: Document, files: Container[str]) -> list[dict[str, str | None]]:
    """As `--prompt-file` reads it, but for what has no file: None."""
    file = lambda i, kind: name if (name := _file(document, i, kind)) in files else None
    return [{kind: x if kind == "text" else file(i, kind)} for i, (kind, x) in enumerate(document.parts, 1)]


def _files(model: Model, documents: Sequence[Document]) -> dict[str, bytes]:
    files = {}
    for d in documents:
        for number, (kind, content) in enumerate(d.parts, 1):
            if kind == "text" or content is None:
                continue
            name = _file(d, number, kind)
            if kind in ("action", "latents"):
                files[name] = _npy(_path(content) if kind == "action" else content)
            if kind != "latents":
                picture = content if kind == "image" else preview.picture(kind, content)
                files[name.replace(".npy", ".png")] = pictures.png(picture)
        content = _content(d, files)
        files[f"{d.name}.json"] = json.dumps(content, indent=1).encode()
        lines = [
            x if kind == "text" else f"\n[{kind}: {x or 'empty'}]\n" for part in content for kind, x in part.items()
        ]
        files[f"{d.name}.txt"] = (_printable("".join(lines)).replace("\n\n[", "\n[").strip("\n") + "\n").encode()
    title = f"{model.config.run.name}, step {model.step}: what was given, and what follows"
    page = io.BytesIO()
    preview.documents([(_title(d), [_shown(*part) for part in d.parts]) for d in documents], page, title)
    return files | {"documents.png": page.getvalue()}


def _printable(text: str) -> str:
    """Without what commands a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _grid(documents: Sequence[Document]) -> dict[str, bytes]:
    found = [part for d in documents for part in d.parts[d.given :] if part[0] != "text" and part[1] is not None]
    return {"grid.png": pictures.grid([preview.picture(*part) for part in found])} if found else {}


def _title(d: Document) -> str:
    return f"{d.name}: {d.given} part{'s' * (d.given != 1)} given{'' if d.ended else '; cut off at the room there was'}"


def _shown(kind: str, content) -> tuple[str, Any]:
    return (kind, content) if content is not None else ("text", f"[{kind}: empty]")


def _path(strokes: Sequence[np.ndarray]) -> np.ndarray:
    """`[n, 3]`: x, y, and 1 where the pen leaves the paper."""
    up = lambda n: (np.arange(n) == n - 1).astype(float)
    return np.concatenate([np.column_stack([stroke, up(len(stroke))]) for stroke in strokes])


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def summary(record: dict, most: int = 10) -> list[str]:
    """A line for each of the first documents."""
    lines = []
    for d in record["documents"][:most]:
        parts = [repr(x) if kind == "text" else f"[{kind}]" for part in d["content"] for kind, x in part.items()]
        line = " ".join(parts)
        lines.append(f"{d['name']}: {line if len(line) <= 200 else line[:196] + ' ...'}")
    left_out = len(record["documents"]) - len(lines)
    return lines + [f"... and {left_out} more"] * (left_out > 0)

"""Documents that a run continues: text and media in turn, each with its files, or all of their pictures in a grid."""

import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mot.config.modalities import TEXT, row_of
from mot.config.options import Settings
from mot.data import preview
from mot.errors import UserError
from mot.generate import opened, pictures, sounds
from mot.generate.codecs import Codec, open_networks, tokens
from mot.generate.opened import LoadedModel
from mot.prepare import codecs, inputs, raw

SHEET = 420  # pixels of the page of all documents, in width: a phone shows letters on a wider one too small


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


def encoded(model: LoadedModel, requests: Sequence[Request]) -> list[list[tuple[str, np.ndarray]]]:
    """The prompts in tokens; raises `UserError` that names each one's fault."""
    found, faults = {}, []
    for request in {id(request): request for request in requests}.values():  # arrays in them have no hash
        try:
            found[id(request)] = tokens(request.parts, model.codec)
        except ValueError as error:
            faults.append(f"{request.name}: {error}")
    if faults:
        raise UserError("\n  ".join(["nothing was sampled:", *faults]) if len(faults) > 1 else faults[0])
    return [found[id(request)] for request in requests]


def samples(
    model: LoadedModel,
    requests: Sequence[Request],
    settings: Settings,
    length: int,
    sizes: Mapping[str, tuple[int, ...]],
    seed: int,
    grid: bool,
) -> tuple[dict[str, bytes], dict]:
    """Files by name, and the record, whose documents have their name, how many parts were given, and their content."""
    open_networks(model.codec)
    prompts = encoded(model, requests)
    found: list = [None] * len(requests)
    for limits in dict.fromkeys((r.opens, r.text, r.media) for r in requests):
        opens, text, media = limits
        alike = [i for i, r in enumerate(requests) if (r.opens, r.text, r.media) == limits]
        rows = opened.rows(
            model,
            [opened.prompt(prompts[i], model.config) for i in alike],
            settings,
            "sampling",
            seed,
            text=text,
            media=media,
            opens=opened.stream_of(model.config, opens) if opens else "",
            length=length,
            sizes=sizes,
        )
        for i, row in zip(alike, rows, strict=True):
            found[i] = _document(model, f"document-{i}", prompts[i], row, requests[i])
    drawn = [_with_files(model.codec, document, seed) for document in found]
    files = _grid(model.codec, drawn) if grid else _files(model, drawn)
    record = [
        {
            "name": sample.document.name,
            "prompt": request.name,
            "given": sample.document.given,
            "ended": sample.document.ended,
            "limit": sample.document.limit,
            "content": _content(model.codec, sample, are_written=not grid),
        }
        for sample, request in zip(drawn, requests, strict=True)
    ]
    return files, {"documents": record}


def _document(model: LoadedModel, name: str, prompt, row, request: Request) -> Continuation:
    kinds = {stream: s.holds for stream, s in model.config.streams.items()}
    given = _given(prompt)
    parts = [*given, *((kinds[part.stream], part.data) for part in row.parts)]
    content = [(kind, model.codec.decode(kind, data) if len(data) else None) for kind, data in parts]
    return Continuation(name, len(given), content, row.ended, "" if row.ended else _limit(request))


def _given(prompt: Sequence[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    """A prompt's parts, each once: its other form, ids or vectors, is made of the same medium."""
    found: list[tuple[str, np.ndarray]] = []
    for kind, data in prompt:
        before = found[-1][0] if found else ""
        if kind == before or row_of(kind) != row_of(before):
            found.append((kind, data))
    return found


def _limit(request: Request) -> str:
    """Text alone has an end that is set: after media, too, it goes on until the model ends it, or there is enough."""
    if request.text:
        return f"ended by --max-text={request.text}"
    return f"as asked: no further text (--max-text=0), media {request.media} at most (--max-media={request.media})"


class _DocumentFiles(NamedTuple):
    """A document and the files of its parts."""

    document: Continuation
    files: dict[int, dict[str, bytes]]  # by the part's number, by suffix; the first is what `--prompt-file` reads again

    def name(self, number: int, suffix: str) -> str:
        return f"{self.document.name}-{number}.{suffix}"


def _with_files(codec: Codec, document: Continuation, seed: int) -> _DocumentFiles:
    """Of each part that is a medium and holds something."""
    return _DocumentFiles(
        document,
        {
            number: codecs.files(modality, codec.tokenizers.get(modality), content, seed)
            for number, (modality, content) in enumerate(document.parts, 1)
            if modality != TEXT and content is not None
        },
    )


def _content(codec: Codec, sample: _DocumentFiles, are_written: bool) -> list[dict[str, Any]]:
    """As `--prompt-file` reads it, but for what has no file: None. Ids of one's own stand there themselves."""
    found = []
    for number, (modality, content) in enumerate(sample.document.parts, 1):
        if modality == TEXT:
            found.append({TEXT: content})
        elif codec.is_given(modality) and content is not None:
            found.append({"ids": content.tolist(), "modality": modality})
        else:
            suffix = next(iter(sample.files.get(number, {})), None)
            found.append({row_of(modality): sample.name(number, suffix) if suffix and are_written else None})
    return found


def _files(model: LoadedModel, samples: Sequence[_DocumentFiles]) -> dict[str, bytes]:
    files = {}
    for sample in samples:
        for number, by_suffix in sample.files.items():
            files |= {sample.name(number, suffix): content for suffix, content in by_suffix.items()}
        content = _content(model.codec, sample, are_written=True)
        name = sample.document.name
        # A part a line: ids would take a line each.
        files[f"{name}.json"] = ("[\n " + ",\n ".join(map(json.dumps, content)) + "\n]").encode()
        lines = [x if kind == TEXT else f"\n[{kind}: {x}]\n" for kind, x in map(_in_words, content)]
        files[f"{name}.txt"] = (_printable("".join(lines)).replace("\n\n[", "\n[").strip("\n") + "\n").encode()
    title = f"{model.config.run.name}, step {model.step}: what was given, and what follows"
    page = io.BytesIO()
    documents = [sample.document for sample in samples]
    drawn = [(_title(d), [_drawn(model.codec, *part) for part in d.parts]) for d in documents]
    preview.documents(drawn, page, title, SHEET)
    return files | {"documents.png": page.getvalue()}


def _drawn(codec: Codec, modality: str, content: Any) -> preview.Draw:
    if content is None:
        modality, content = TEXT, f"[{modality}: empty]"
    return partial(codecs.box, modality, codec.tokenizers.get(modality), content)


def _in_words(part: dict[str, Any]) -> tuple[str, str]:
    """A part of `_content`: its modality, and its text, its file, or how many ids it has."""
    if "ids" in part:
        return part["modality"], f"{len(part['ids'])} ids"
    ((kind, x),) = part.items()
    return kind, x if kind == TEXT else x or "empty"


def _printable(text: str) -> str:
    """Without what commands a terminal; marks that join letters, or turn their direction, are text."""
    return inputs.COMMANDS.sub(lambda found: found[0] if found[0] in "\n\t" else "\ufffd", text)


def _grid(codec: Codec, samples: Sequence[_DocumentFiles]) -> dict[str, bytes]:
    """All that was drawn in one picture, and all that sounds in one WAV, in the picture's order."""
    drawn, heard = [], []
    for document, by_number in samples:
        for number, by_suffix in by_number.items():
            if number > document.given:
                modality, content = document.parts[number - 1]
                drawn.append(codecs.picture(modality, codec.tokenizers.get(modality), content, preview.Room()))
                heard += [by_suffix["wav"]] if "wav" in by_suffix else []
    files = {"grid.png": pictures.grid(drawn)} if drawn else {}
    return files | ({"grid.wav": sounds.joined(heard)} if heard else {})


def _title(d: Continuation) -> str:
    """Of a document: how many of its parts were given, and which limit ended it."""
    given = f": {d.given} part{'s' * (d.given != 1)} given" if d.given else ""
    return f"{d.name}{given}{d.limit and f'; {d.limit}'}"


def summary(record: dict, most: int = 10) -> list[str]:
    """A line for each of the first documents."""
    lines = []
    for d in record["documents"][:most]:
        parts = [repr(x) if kind == TEXT else f"[{kind}]" for kind, x in map(_in_words, d["content"])]
        line = " ".join(parts)
        lines.append(f"{d['name']}: {line if len(line) <= 200 else line[:196] + ' ...'}")
    left_out = len(record["documents"]) - len(lines)
    return lines + [f"... and {left_out} more"] * (left_out > 0)

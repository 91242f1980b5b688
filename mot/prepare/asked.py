"""The options of `mot data prepare`, judged before anything heavy is imported or a document is read."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from mot.config import modalities
from mot.config.allowed import meant
from mot.config.modalities import MAX_IDS, MODALITIES, TEXT, VECTORS
from mot.config.options import ANY
from mot.data.manifest import special_tokens
from mot.errors import UserError
from mot.prepare.templates import MODALITY, declared, parse, places

LEAST = dict(max_tokens=256, sample=1, shard=1)  # of options that are of no modality
MOST = 2**31
SEQIO = (
    "content",
    "separator",
    "like",
    "tokenizer",
    "ids",
    "join",
    "also",
    "vectors",
    "markers",
    *(option for row in MODALITIES.values() for option in row.networks.values()),
)  # options for files, of which a seqio task has its own


def judge(options) -> SimpleNamespace:
    """The options of `mot data prepare`, their `ids` and `separator` read; raises `UserError` where they are wrong."""
    read = SimpleNamespace(**vars(options))
    if read.seqio and (unfit := [flag for flag in SEQIO if getattr(read, flag)]):
        flag = f"--{unfit[0].replace('_', '-')}"
        raise UserError(f"{flag} is for files; --seqio={read.seqio} brings its own; give one of the two")
    counts = [_ids(given) for given in read.ids]
    told = [
        f"--ids {given}: write NAME=COUNT, as --ids depth=64: a modality whose ids are 0 to COUNT - 1"
        for given, count in zip(read.ids, counts, strict=True)
        if count is None
    ]
    read.ids = tuple(sorted(count for count in counts if count))
    read.separator = _separator(read)
    read.markers = tuple(name.strip() for name in read.markers.split(",") if name.strip())
    read.join = tuple(field.strip() for field in read.join.split(",") if field.strip())
    _fill_unsaid(read)
    if told := [*told, *faults(read, read.out, read.workers, read.max_skipped)]:
        raise UserError("nothing was prepared:\n  " + "\n  ".join(told))
    if not read.like:  # which may declare modalities
        parse(declared(read.content, dict(read.ids)))
    return read


def _fill_unsaid(read: SimpleNamespace) -> None:
    """What follows from other options where nobody says it."""
    for name, row in MODALITIES.items():
        forms = [form for form in row.networks if modalities.network_of(read, name, form)]
        if forms == [VECTORS] and f"{name}={VECTORS}" not in read.also:
            read.vectors = [*read.vectors, name]
        for option in row.options:
            if option.unsaid and not forms and not getattr(read, option.name):
                setattr(read, option.name, option.unsaid)
    if read.workers is None:  # a network takes all cores itself, or the accelerator
        read.workers = 1 if modalities.networks_of(read) else os.cpu_count() or 1


def _ids(given: str) -> tuple[str, int] | None:
    """`depth=64`; None where it is written otherwise."""
    name, _, count = given.partition("=")
    return (name, int(count)) if name and count.isdecimal() and len(count) <= 12 else None


def _separator(options) -> str:
    """What stands between two documents; "" where none was asked for."""
    written = options.separator
    if written is None:
        return ""
    if not written:
        raise UserError("--separator '': it is empty, and nothing ends there; leave it out: a file is one document")
    if options.format not in ("auto", "text"):
        raise UserError(f"--separator {written!r}: --format={options.format} has none; only text has; leave one out")
    separator = unescaped(written)
    try:
        separator.encode()
    except UnicodeEncodeError:
        raise UserError(f"--separator {written!r}: half a character; write a whole one") from None
    return separator


def unescaped(separator: str) -> str:
    """As it is written on a command line: `\\n`, `\\r`, `\\t`, `\\f`, `\\v`, `\\0`, `\\\\`, `\\x1e`, `\\u2028`."""
    codes = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0", "\\": "\\"}

    def one(match: re.Match) -> str:
        return codes[match[1]] if match[1] in codes else chr(int(match[1][1:], 16))

    return re.sub(r"\\([nrtfv0\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})", one, separator)


def faults(recipe, out: Path, workers: int, max_skipped: int) -> Iterator[str]:
    """What is wrong with a recipe, whatever the documents."""
    options = [x for row in MODALITIES.values() for x in row.options if not isinstance(x.default, str)]
    ranges = {option.name: (option.least, option.most) for option in options}
    ranges |= {name: (least, MOST) for name, least in LEAST.items()}
    for name, (least, most) in ranges.items():
        value = getattr(recipe, name)
        if value is not None and value < least:
            yield f"--{name.replace('_', '-')}={value}; must be {least} or more; raise it"
        elif value is not None and value > most:
            yield f"--{name.replace('_', '-')}={value}; at most {most}; lower it"
    if max_skipped < 0:
        yield f"--max-skipped={max_skipped}; must be 0 or more; raise it"
    try:
        str(out).encode()
    except UnicodeEncodeError:
        yield f"--out={str(out)!r}: a folder's name must be UTF-8; choose another"
    for given in map(Path, recipe.inputs):
        if given.is_dir() and out.resolve().is_relative_to(given.resolve()):
            yield f"--out={out} lies in the input {given}, and would be read as part of it; choose another"
    for row in MODALITIES.values():
        yield from row.faults(recipe)
    if not 0 <= recipe.held_out < 1:
        remedy = "raise it" if recipe.held_out < 0 else "lower it"
        yield f"--held-out={recipe.held_out}; must be a fraction, from 0 to below 1; {remedy}"
    if workers < 1:
        yield f"--workers={workers}; must be 1 or more; raise it"
    yield from _ids_faults(recipe)
    yield from _also_faults(recipe)
    yield from _join_faults(recipe)
    for name in recipe.markers:
        if name == TEXT or not MODALITY.fullmatch(name):
            yield (
                f"--markers={','.join(recipe.markers)}: {name!r} has no markers; name modalities other than text, as "
                f"{', '.join(modalities.media())}, or those of --ids of another dataset"
            )
    if recipe.markers and (recipe.like or recipe.tokenizer):
        other = f"--like={recipe.like}" if recipe.like else f"--tokenizer={recipe.tokenizer}"
        yield f"--markers={','.join(recipe.markers)}, {other}: the text tokenizer is not trained here; leave one out"
    if recipe.like and recipe.tokenizer:
        yield f"--like={recipe.like}, --tokenizer={recipe.tokenizer}: each says which tokenizer; give one"


def _also_faults(recipe):
    """`image=vectors`, `image=latents`; whether documents have them is seen later."""
    of: dict[str, str] = {}
    known = [*modalities.media(), *dict(recipe.ids)]
    for given in dict.fromkeys(recipe.also):
        base, _, form = given.partition("=")
        both = modalities.of_either_form()
        is_form = form in (modalities.IDS, modalities.VECTORS)
        if not MODALITY.fullmatch(base) or not MODALITY.fullmatch(form) or base in (TEXT, form) or form == TEXT:
            yield f"--also {given}: write MEDIUM=WHAT, as --also image=vectors, or --also image=latents"
        elif unknown := [name for name in (base, form)[: 1 if is_form else 2] if not recipe.like and name not in known]:
            near = meant(unknown[0], known) or "choose one, or declare it by --ids"
            yield f"--also {given}: {unknown[0]!r} is no modality; allowed: {', '.join(known)}; {near}"
        elif is_form and base not in both:
            yield f"--also {given}: {base} has one form; those of {', '.join(both)} are ids and vectors; leave it out"
        elif is_form and not recipe.like and form == modalities.form_of(base, recipe.vectors):
            yield f"--also {given}: {base} are {form} as it is; {_other(base, form)}"
        elif form in of:
            yield f"--also {given}: {form} are {of[form]}'s already; give it to one of them"
        elif not is_form:
            of[form] = base
    for form, base in of.items():
        if base in of:
            yield f"--also {base}={form}: {base} itself is another form of {of[base]}; write --also {of[base]}={form}"


def _other(base: str, form: str) -> str:
    """What to write where a modality has the form already that is asked for beside its own."""
    other = modalities.VECTORS if form == modalities.IDS else modalities.IDS
    return f"write --also {base}={other}, or leave it out"


def _ids_faults(recipe):
    reserved = {mark.strip("</>") for mark in special_tokens(())} | {TEXT, *modalities.given(), "ids", ANY}
    counts = [name for name, _ in recipe.ids]
    for name in (name for name in dict.fromkeys(counts) if counts.count(name) > 1):
        option = " ".join(f"--ids {name}={n}" for other, n in recipe.ids if other == name)
        yield f"{option}: --ids says {counts.count(name)} times how many {name} has; say it once"
    for name, n in recipe.ids:
        option = f"--ids {name}={n}"
        if not MODALITY.fullmatch(name) or len(name) > 40:
            yield f"{option}: a modality's name is lower-case letters, digits and _, 40 at most; rename it"
        elif name in reserved or "norm" in name:
            # optim.rules know norms' parameters by this word.
            yield f"{option}: {name!r} means something else here ({', '.join(sorted(reserved))}, *norm*); rename it"
        if not 1 <= n <= MAX_IDS:
            remedy = "raise it" if n < 1 else "lower it"
            yield f"{option}: must be from 1 to {MAX_IDS}, the ids being 0 to COUNT - 1; {remedy}"
        if name in recipe.vectors:
            yield f"{option}, --vectors={name}: each says what {name} is kept as; give one"


MOST_JOINED = 10**8  # documents: their numbers are held in memory


def _join_faults(recipe) -> Iterator[str]:
    """What is wrong with a recipe's `join`, whatever the documents."""
    said = f"--join={','.join(recipe.join)}"
    if not recipe.join:
        for option in ("join_documents", "join_seed"):
            if getattr(recipe, option):
                yield f"--{option.replace('_', '-')}={getattr(recipe, option)}: is for --join alone; leave it out"
        return
    inputs = len(recipe.inputs)
    if inputs < 2:
        yield f"{said}: {inputs} input; two or more are joined; name another, or leave --join out"
    if len(recipe.join) not in (1, inputs):
        yield f"{said}: {len(recipe.join)} fields of {inputs} inputs; name one field, or one for each input"
    if recipe.format == "text":
        yield f"{said}: plain text has no fields; leave one out"
    if not recipe.content:
        yield f"{said}: nothing says what documents hold; write --content, as 'image:images|audio:2.audio'"
    if not 0 <= recipe.join_documents <= MOST_JOINED:
        yield f"--join-documents={recipe.join_documents}; must be 0 (every row once) to {MOST_JOINED:,}; change it"
    if recipe.join_seed < 0:
        yield f"--join-seed={recipe.join_seed}; must be 0 or more; raise it"
    try:
        far = [place for place in places(parse(recipe.content)) if place.side >= inputs]
    except UserError as error:  # of a template, which is told where templates are judged
        if "several inputs" in str(error):
            yield str(error)
        return
    for place in far:
        yield f"--content {place.kind}:{place.side + 1}.{place.field}: there are {inputs} inputs; name one of them"

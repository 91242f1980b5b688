"""Prepares a dataset of records from files, or shows one: `mot data prepare`, `mot data inspect`."""

import contextlib
import itertools
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch import flags, preview, sounds
from launch.process import guarded, typed
from mot.batch import Batch
from mot.config import Config
from mot.data import budgets, embedded, export, pipeline, prepare, readers, seqio_bridge, sources, tokenise
from mot.data.about import SPLITS, read_json
from mot.data.inputs import listed
from mot.data.mixture import Sources
from mot.data.records import Dataset, Record
from mot.errors import UserError
from mot.files import replacing
from mot.tokenizers import text as texts

PREPARE = "mot data prepare photos/ --out data/photos"
INSPECT = "mot data inspect data/photos --document 3"
PAGE = 12  # documents of a preview
FORMATS = ("auto", "jsonl", "folder", "parquet", "webdataset", "text", "npz")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    commands = {"prepare": _prepare, "inspect": _inspect}
    if not argv or argv[0] not in commands:
        wanted = argv and argv[0] in ("-h", "--help")
        print(f"usage: mot data prepare|inspect ...\n\n{__doc__}\n\nexamples:\n  {PREPARE}\n  {INSPECT}")
        return 0 if wanted else 2
    return commands[argv[0]](argv[1:])


def _prepare(argv) -> int:
    p = flags.parser(
        "data prepare", "Tokenises documents into a dataset of records; goes on where it stopped.", PREPARE
    )
    p.add_argument("inputs", nargs="*", help="files or folders")
    p.add_argument("--out", type=Path, required=True, help="the dataset's folder")
    p.add_argument("--format", choices=FORMATS, default="auto", help="default %(default)s, by the files' names")
    p.add_argument(
        "--content",
        action="append",
        type=typed,
        default=[],
        help='what a row becomes, as "text:a drawing of {name}|image:image"; repeated, documents take turns',
    )
    p.add_argument(
        "--separator", type=typed, default="", help="of documents in a text file, as \\n\\n; default: a file is one"
    )
    _tokenizer_arguments(p)
    p.add_argument(
        "--missing",
        choices=(tokenise.DROP_DOCUMENT, tokenise.DROP_MEDIUM),
        default=tokenise.DROP_DOCUMENT,
        help="what a picture (a sound, ...) costs that is missing or cannot be read; default %(default)s",
    )
    _number(p, "--held-out", 0.01, "fraction of documents held out, one at least, where the files name no split")
    _number(p, "--longest", 8192, "tokens of a record; longer documents become several")
    _number(p, "--sample", 10000, "documents that the tokenizers learn from")
    _number(p, "--shard", 4096, "documents in a shard")
    _number(p, "--workers", os.cpu_count() or 1, "processes")
    _number(p, "--most-left-out", 100, "bad documents, before it stops")
    p.add_argument(
        "--seqio",
        default="",
        metavar="NAME",
        help="a seqio task or mixture in place of files; a mixture ends with its first task to end",
    )
    p.add_argument("--seqio-module", default="", help="what registers it, and is run: a module, or a FILE.py")
    p.add_argument("--seqio-split", default="train", help="of it; default %(default)s")
    p.add_argument("--seqio-features", default="", help="of it, as inputs,targets; default: all lists of ids")
    p.add_argument("--preview", action="store_true", help="also draw a page of documents, OUT/preview.png")
    options = vars(p.parse_args(argv))
    out, workers, most, wants = (options.pop(k) for k in ("out", "workers", "most_left_out", "preview"))
    seqio = {key: options.pop(key) for key in ("seqio", "seqio_module", "seqio_split", "seqio_features")}
    if bool(options["inputs"]) == bool(seqio["seqio"]):
        p.error("give files or folders, or --seqio=NAME")
    options |= {key: tuple(options[key]) for key in ("inputs", "content")}
    options["vectors"] = tuple(sorted(set(options["vectors"])))
    options["ids"] = tuple(sorted(map(_ids, options["ids"])))
    options["separator"] = readers.unescaped(options["separator"])
    if seqio["seqio"]:
        summary = _export(**seqio, options=options, out=out, most=most)
    else:
        summary = prepare.prepare(prepare.Recipe(**options), out, workers, most)
    if not summary.documents:
        print(f"{out} is already whole")
    _print_summary(out, summary.about)
    if wants:
        print(f"preview: {_preview(out, 'train')}")
    return 0


def _number(p, flag: str, default, text: str) -> None:
    p.add_argument(flag, type=type(default), default=default, help=f"{text}; default %(default)s")


def _tokenizer_arguments(p) -> None:
    """What modalities become in a dataset."""

    def usual(flag: str, kind: str, text: str) -> None:
        at_most = f"default {tokenise.USUAL[kind]}, or as many as the documents yield"
        p.add_argument(flag, type=int, help=f"{text}; {at_most}")

    p.add_argument(
        "--like", default="", help="a dataset whose tokenizers are used, whatever the options below say of those"
    )
    p.add_argument("--tokenizer", default="", help="a tokenizer.json for text; default: trained on these documents")
    p.add_argument(
        "--ids",
        action="append",
        default=[],
        metavar="NAME=COUNT",
        help='a modality whose ids 0 to COUNT - 1 come from a tokenizer of your own, as depth=64: {"ids": [3, 5], '
        '"modality": "depth"} in JSON lines, lists in other formats (--content "text:caption|depth:codes"); may be '
        "repeated",
    )
    usual("--text-ids", "text", "entries of a trained text tokenizer, at most")
    _number(p, "--image-side", 32, "pixels to which images are brought")
    _number(p, "--image-patch", 4, "pixels of a patch's side; a patch is a token, 1 is a pixel")
    usual("--image-ids", "image", "codes of patches")
    _number(p, "--audio-rate", 16000, "samples a second; a token is 20 ms")
    usual("--audio-ids", "audio", "codes of sounds")
    p.add_argument(
        "--vectors",
        choices=("image", "audio"),
        action="append",
        default=[],
        help="keeps these as vectors in place of ids: patches of pixels, log-mel frames; may be repeated",
    )
    _number(p, "--action-points", 64, "points to which a trajectory is brought; a point is a token")
    p.add_argument(
        "--action-as",
        choices=("positions", "offsets"),
        default="positions",
        help="what a point says; default %(default)s",
    )


def _ids(given: str) -> tuple[str, int]:
    """`depth=64`."""
    name, _, count = given.partition("=")
    if not name or not count.isdecimal() or len(count) > 12:
        raise UserError(f"--ids {given}: write NAME=COUNT, as --ids depth=64: a modality whose ids are 0 to COUNT - 1")
    return name, int(count)


def _export(seqio, seqio_module, seqio_split, seqio_features, options, out, most) -> prepare.Summary:
    if unfit := [flag for flag in ("content", "separator", "like", "tokenizer", "ids") if options[flag]]:
        raise UserError(f"--{unfit[0]} is for files; --seqio={seqio} brings its own; give one of the two")
    seqio_bridge.require()
    if seqio_module:
        try:  # the user's own code, as a configuration's file is
            runpy.run_path(seqio_module) if seqio_module.endswith(".py") else __import__(seqio_module)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"--seqio-module={seqio_module}: {error!r}; name a FILE.py, or a module that Python finds (PYTHONPATH)"
            ) from error
    features = tuple(key for key in seqio_features.split(",") if key)
    sizes = {key: options[key] for key in ("held_out", "longest", "shard")}
    return export.export(export.Recipe(seqio, seqio_split, features, **sizes), out, most)


def _print_summary(folder: Path, about: dict) -> None:
    console = Console(soft_wrap=True)
    table = Table("", *SPLITS, title=escape(str(folder)), title_justify="left")
    row = lambda name, value: table.add_row(name, *(f"{value(about['splits'][split]):,}" for split in SPLITS))
    row("documents", lambda split: split["documents"])
    for modality in about["modalities"]:
        row(f"{modality} tokens", lambda split, m=modality: split["tokens"][m])
        if modality != "text":
            row(f"{modality} spans", lambda split, m=modality: split["spans"].get(m, 0))
    row("shards", lambda split: len(split["shards"]))
    console.print(table)
    for modality, tokenizer in about["tokenizers"].items():
        own = " of one's own" * tokenise.is_ready(tokenizer)
        tokens = f"{own}, {tokenizer['tokens']} tokens each" if "tokens" in tokenizer else own
        of = f"{tokenizer['ids']} ids" if "ids" in tokenizer else f"vectors of {tokenizer['width']} features"
        console.print(f"{modality}: {of}{tokens}, tokenizer {tokenizer['digest']}")
    if lossy := about["tokenizers"]["text"].get("lossy"):
        console.print(f"warning: {texts.told(lossy)}", markup=False)
    for modality, n in about.get("missing", {}).items():
        why = "missing or cannot be read; their documents go without (left_out.jsonl lists them)"
        console.print(f"dropped: {n} {modality}, which are {why}", markup=False)
    for why, n in about["left_out"].items():
        console.print(f"left out: {n} because {why}", markup=False)
    if unpacked := about.get("unpacked"):
        console.print(f"unpacked: {listed(unpacked)}", markup=False)
    if not_read := about.get("not_read"):
        console.print(f"not read: {listed(not_read)}", markup=False)
    for line in about.get("warnings", ()):
        console.print(f"warning: {line}", markup=False)
    if not about["splits"]["held_out"]["documents"]:
        console.print("nothing is held out: evaluation needs another dataset that has some, or a larger --held-out")
    arch = "mot" if len(about["modalities"]) > 1 else "dense"
    console.print(f"train on it: mot train --config=configs/records.py:data={folder},arch={arch}", markup=False)


def _inspect(argv) -> int:
    p = flags.parser(
        "data inspect", "Shows a dataset, its documents, or the batches that a configuration makes.", INSPECT
    )
    p.add_argument("dataset", type=Path, nargs="?", help="a dataset's folder")
    p.add_argument("--split", choices=SPLITS, default="train", help="default %(default)s")
    p.add_argument("--document", type=int, action="append", default=[], help="which to show, may be repeated")
    p.add_argument("--config", help="FILE:arg: show a packed batch of this configuration instead")
    p.add_argument("--batch", type=int, default=0, help="which; default %(default)s")
    p.add_argument(
        "--out", type=Path, help="a PNG to draw, with a WAV beside it for each sound of --document; default: text alone"
    )
    p.add_argument_group("overrides", "--config.KEY=VALUE changes a value, as in --config.data.length=2048")
    options, overrides = flags.parse(p, argv)
    if (options.dataset is None) == (options.config is None):
        raise UserError("give a dataset's folder, or --config=FILE:arg for a packed batch")
    if options.config:
        return _inspect_batch(options, overrides)
    about = read_json(options.dataset)
    if not options.document:
        _print_summary(options.dataset, about)
    dataset, tools = _opened(options.dataset, options.split)
    for i in options.document:
        if not 0 <= i < dataset.count:
            has = f"documents 0 to {dataset.count - 1}" if dataset.count else "no documents"
            raise UserError(f"--document={i}; {options.split} has {has}")
        try:
            shown = _as_text(dataset[i], tools)
        except ValueError as error:
            raise UserError(
                f"--document={i}: it is damaged ({error}); copy the dataset again, or prepare it anew"
            ) from None
        print(shown)
    if options.out:
        print(f"picture: {_preview(options.dataset, options.split, options.document, options.out)}")
        for i in options.document:
            for file in _sounds(dataset[i], tools, options.out.with_name(f"{options.out.stem}-{i}")):
                print(f"sound: {file}")
    return 0


def _sounds(record: Record, tools: tokenise.Tools, stem: Path) -> list[Path]:
    """Writes what a document sounds like when its tokens are all that is left: STEM-PART.wav for each of its sounds."""
    found = []
    for number, (modality, data) in enumerate(record.spans, 1):
        spectrogram = tools.media[modality].decode(data) if modality == "audio" else None
        if spectrogram is not None and preview.shown_as(modality, spectrogram) == "audio":
            found.append(stem.with_name(f"{stem.name}-{number}.wav"))
            found[-1].write_bytes(sounds.wav(*sounds.of(tools.media[modality], spectrogram)))
    return found


def _opened(folder: Path, split: str) -> tuple[Dataset, tokenise.Tools]:
    dataset, tools = Dataset(folder, split), tokenise.load(folder / "tokenizers")
    if tools.modalities != dataset.modalities:
        raise UserError(
            f"{folder / 'tokenizers'} is for {', '.join(tools.modalities)}, and the dataset has "
            f"{', '.join(dataset.modalities)}; copy it again, or prepare the dataset anew"
        )
    return dataset, tools


def _as_text(record: Record, tools: tokenise.Tools) -> str:
    lines, wide = [f"document {record.id}"], max(8, *(1 + len(modality) for modality, _ in record.spans))
    for modality, data in record.spans:
        shown = repr(tools.text.decode(data.tolist())) if modality == "text" else f"{np.ravel(data)[:8]} ..."
        lines.append(f"  {modality:{wide}}{len(data):6} tokens  {shown}")
    return "\n".join(lines)


def _preview(folder: Path, split: str, documents=(), file: Path | None = None) -> Path:
    """A page of documents as the model will see them: what comes back from their tokens."""
    dataset, tools = _opened(folder, split)
    if not documents:  # anywhere: evenly spaced ones would all be of one template, where these take turns
        documents = np.sort(np.random.default_rng(0).permutation(dataset.count)[:PAGE]).tolist()

    def decoded(modality: str, data: np.ndarray):
        return tools.text.decode(data.tolist()) if modality == "text" else tools.media[modality].decode(data)

    rendered = []
    for i in documents:
        with contextlib.suppress(ValueError):  # a damaged one is left out
            record = dataset[i]
            rendered.append((record.id, [(modality, decoded(modality, data)) for modality, data in record.spans]))
    file, damaged = file or folder / "preview.png", len(documents) - len(rendered)
    left_out = f", but {damaged} damaged ones" * (damaged > 0)
    with replacing(file) as partial:
        preview.documents(
            rendered, partial, f"{folder.name}, {split}: documents as their tokens give them back{left_out}"
        )
    return file


def _runs(batch: Batch, b: int, of: Sources, decode) -> Iterator[str]:
    """A line for each document of a row and for each run of its tokens that are of one stream, unit and span."""
    fields = ("rank", "segment", "source", "doc_id", "unit", "span", "private", "noise", "token")
    every = {f: np.concatenate([getattr(tokens, f)[b] for tokens in batch.values()]) for f in fields}
    budgets = [tokens.rank.shape[1] for tokens in batch.values()]
    every |= {"stream": np.repeat(np.arange(len(batch)), budgets), "place": np.concatenate([*map(np.arange, budgets)])}
    order = np.argsort(every["rank"])[: int((every["segment"] > 0).sum())]
    every = {f: x[order] for f, x in every.items()}
    keys = np.stack([every[f] for f in ("segment", "stream", "unit", "span", "private")])
    begins = np.flatnonzero(np.append(True, (np.diff(keys) != 0).any(0)))[: len(order)]
    names, last = list(batch), 0
    for begin, end in itertools.pairwise([*begins, len(order)]):
        at = {f: x[begin] for f, x in every.items()}
        if at["segment"] != last:
            last = at["segment"]
            yield f"  document {last}: {of.names[at['source']]} {of.all[at['source']].name_of(int(at['doc_id']))}"
        marks = "".join(f", {f} {at[f]}" for f in ("unit", "span") if at[f])
        marks += ", private" * bool(at["private"]) + ", noised" * bool(at["noise"])
        name = names[at["stream"]]
        value = batch[name].value[b][every["place"][begin:end]]
        shown = decode(name, every["token"][begin:end])
        if value.size:
            shown = f"vectors of {value.shape[1]} features, {value.min():.2f} to {value.max():.2f}"
        yield f"    {end - begin:5} {name}{marks}: {_shown(shown)}"


def _decoder(config: Config):
    """Of tokens of a stream: text as it reads, where its tokenizer is at hand, other ids as they are."""
    address = next(iter(config.data.sources.values()))
    if sources.is_embedded(config):
        tokenizer = embedded.load_tokenizer()
    else:
        folder = None if seqio_bridge.is_address(address) else sources.local(address) / "tokenizers"
        tokenizer = tokenise.load(folder).text if folder and (folder / "text.json").exists() else None

    def decode(stream: str, ids: np.ndarray) -> str:
        if config.streams[stream].modality == "text" and tokenizer is not None:
            return repr(tokenizer.decode((ids - config.streams[stream].first_id).tolist(), skip_special_tokens=False))
        return " ".join(map(str, ids[:30]))

    return decode


def _shown(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[:most] + " ..."


def _inspect_batch(options, overrides) -> int:
    config = flags.build(flags.read(options.config, overrides))
    training, held_out = sources.open_(config)
    config = budgets.resolve(config, training)
    chosen = training if options.split == "train" else held_out
    if not 0 <= options.batch < config.run.steps:
        raise UserError(f"--batch={options.batch}; from 0 to run.steps less 1, here {config.run.steps - 1}")
    packed = pipeline.Batches(chosen, config, config.data.seed, options.batch + 1)[options.batch]
    fills, bounds = pipeline.fill(packed.batch), budgets.reachable(config, training)
    for name, stream in config.streams.items():
        bound = f", {100 * bounds[name]:.1f} % at most in the long run" if name in bounds else ""
        print(f"{name}: budget {stream.budget}, {100 * fills[name]:.1f} % filled in batch {options.batch}{bound}")
    for line in budgets.advice(config, training):
        print(f"warning: {line}")
    decode = _decoder(config)
    for b in range(config.data.batch):
        print(f"row {b}:")
        print("\n".join(_runs(packed.batch, b, chosen, decode)))
    for source, document, why in packed.left_out:
        print(f"left out: document {document} of {source}: {why}")
    if options.out:
        with replacing(options.out) as partial:
            preview.batch(packed.batch, partial, list(config.streams), f"{options.config}, batch {options.batch}")
        print(f"picture: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

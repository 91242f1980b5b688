"""Prepares a dataset of records from files, or shows one: `mot data prepare`, `mot data inspect`."""

import contextlib
import itertools
import runpy
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch import arguments, flags, refusals
from launch.process import guarded
from mot.batches import Batch
from mot.config import Config, load
from mot.config.modalities import TEXT
from mot.console import announce, phase
from mot.data import budgets, embedded, pipeline, preview, seqio_bridge, sources
from mot.data.manifest import SPLITS, read_json
from mot.data.mixture import Sources
from mot.data.records import Dataset, Record, count
from mot.errors import UserError
from mot.files import replacing
from mot.prepare import codecs, dataset_tokenizers, job, seqio_export
from mot.prepare.dataset_tokenizers import Tokenizers
from mot.prepare.inputs import listed
from mot.tokenizers import text

PAGE = 12  # documents of a preview


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    commands = {"prepare": _prepare, "inspect": _inspect}
    if (code := arguments.of_data(argv)) is not None:
        return code
    return commands[argv[0]](argv[1:])


def _prepare(argv) -> int:
    p = arguments.prepare()
    options = vars(arguments.judged_data(p, p.parse_args(argv)))
    out, workers, most, wants = (options.pop(k) for k in ("out", "workers", "max_skipped", "preview"))
    seqio = {key: options.pop(key) for key in ("seqio", "seqio_module", "seqio_split", "seqio_features")}
    options |= {key: tuple(options[key]) for key in ("inputs", "content")}
    options["vectors"] = tuple(sorted(set(options["vectors"])))
    options["also"] = tuple(dict.fromkeys(options["also"]))
    announce(f"preparing {out}: first the tokenizers, then the documents")
    if seqio["seqio"]:
        summary = _export(**seqio, options=options, out=out, most=most)
    else:
        summary = job.prepare(job.Recipe(**options), out, workers, most)
    if not summary.documents:
        print(f"{out} is already whole")
    _print_summary(out, summary.about)
    print(f"look at it: {flags.command('data', 'inspect', str(out), '--document', '0')}")
    if wants:
        print(f"preview: {_preview(out, 'train')}")
    return 0


def _export(seqio, seqio_module, seqio_split, seqio_features, options, out, most) -> job.Summary:
    seqio_bridge.require()
    if seqio_module:
        try:  # the user's own code, as a configuration's file is
            runpy.run_path(seqio_module) if seqio_module.endswith(".py") else __import__(seqio_module)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"--seqio-module={seqio_module}: {error!r}; name a FILE.py, or a module that Python finds (PYTHONPATH)"
            ) from error
    features = tuple(key for key in seqio_features.split(",") if key)
    sizes = {key: options[key] for key in ("held_out", "max_tokens", "shard")}
    return seqio_export.export(seqio_export.SeqioRecipe(seqio, seqio_split, features, **sizes), out, most)


def _print_summary(folder: Path, about: dict) -> None:
    console = Console(soft_wrap=True)
    table = Table("", *SPLITS, title=escape(str(folder)), title_justify="left")

    def row(name, value):
        return table.add_row(name, *(f"{value(about['splits'][split]):,}" for split in SPLITS))

    row("documents", lambda split: split["documents"])
    for modality in about["modalities"]:
        row(f"{modality} tokens", lambda split, m=modality: split["tokens"][m])
        if modality != TEXT:
            row(f"{modality} spans", lambda split, m=modality: split["spans"].get(m, 0))
    row("shards", lambda split: len(split["shards"]))
    console.print(table)
    for modality, tokenizer in about["tokenizers"].items():
        own = " of one's own" * dataset_tokenizers.is_ready(tokenizer)
        tokens = f"{own}, {tokenizer['tokens']} tokens each" if "tokens" in tokenizer else own
        of = f"{tokenizer['ids']} ids" if "ids" in tokenizer else f"vectors of {tokenizer['width']} features"
        console.print(f"{modality}: {of}{tokens}, tokenizer {tokenizer['digest']}")
    if lossy := about["tokenizers"]["text"].get("lossy"):
        console.print(f"warning: {text.told(lossy)}", markup=False)
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
    if separating := [c for c in ",+@" if c in str(folder)]:
        console.print(
            f"to train on it, rename the folder: {separating[0]} separates datasets in data=...", markup=False
        )
        return
    told = flags.command("train", f"--config=configs/records.py:data={folder},arch={arch}")
    console.print(f"train on it: {told}", markup=False)


def _inspect(argv) -> int:
    p = arguments.inspect()
    options, overrides = flags.parse(p, argv)
    refusals.inspection(options)
    if options.config:
        return _inspect_batch(options, overrides)
    about = read_json(options.dataset)
    if not options.document:
        _print_summary(options.dataset, about)
    dataset, tokenizers = _opened(options.dataset, options.split)
    for i in options.document:
        refusals.documents(i, dataset.count, options.split)
        try:
            shown = _as_text(dataset[i], tokenizers)
        except ValueError as error:
            raise UserError(
                f"--document={i}: it is damaged ({error}); copy the dataset again, or prepare it anew"
            ) from None
        print(shown)
    if options.out:
        print(f"picture: {_preview(options.dataset, options.split, options.document, options.out)}")
        for i in options.document:
            for file in _sounds(dataset[i], tokenizers, options.out.with_name(f"{options.out.stem}-{i}")):
                print(f"sound: {file}")
    return 0


def _sounds(record: Record, tokenizers: Tokenizers, stem: Path) -> list[Path]:
    """Writes what a document sounds like when its tokens are all that is left: STEM-PART.wav for each of its sounds."""
    written = []
    for number, (modality, data) in enumerate(record.spans, 1):
        if modality != TEXT:
            content = tokenizers.decode(modality, data)
            files = codecs.files(modality, tokenizers.of(modality), content, seed=0)
            if "wav" in files:
                written.append(stem.with_name(f"{stem.name}-{number}.wav"))
                written[-1].write_bytes(files["wav"])
    return written


def _opened(folder: Path, split: str) -> tuple[Dataset, Tokenizers]:
    dataset = Dataset(folder, split)
    tokenizers = dataset_tokenizers.load(folder / "tokenizers")
    if tokenizers.modalities != dataset.modalities:
        raise UserError(
            f"{folder / 'tokenizers'} is for {', '.join(tokenizers.modalities)}, and the dataset has "
            f"{', '.join(dataset.modalities)}; copy it again, or prepare the dataset anew"
        )
    return dataset, tokenizers


def _as_text(record: Record, tokenizers: Tokenizers) -> str:
    lines = [f"document {record.id}"]
    wide = max(8, *(1 + len(modality) for modality, _ in record.spans))
    for modality, data in record.spans:
        shown = repr(tokenizers.decode(modality, data)) if modality == TEXT else f"{np.ravel(data)[:8]} ..."
        lines.append(f"  {modality:{wide}}{count(data):6} tokens  {shown}")
    return "\n".join(lines)


def _preview(folder: Path, split: str, documents=(), file: Path | None = None) -> Path:
    """A page of documents as the model will see them: what comes back from their tokens."""
    dataset, tokenizers = _opened(folder, split)
    if not documents:  # anywhere: evenly spaced ones would all be of one template, where these take turns
        documents = np.sort(np.random.default_rng(0).permutation(dataset.count)[:PAGE]).tolist()

    def drawn(modality: str, data: np.ndarray) -> preview.Draw:
        return partial(codecs.box, modality, tokenizers.of(modality), tokenizers.decode(modality, data))

    rendered = []
    for i in documents:
        with contextlib.suppress(ValueError):  # a damaged one is left out
            record = dataset[i]
            rendered.append((record.id, [drawn(modality, data) for modality, data in record.spans]))
    file = file or folder / "preview.png"
    damaged = len(documents) - len(rendered)
    left_out = f", but {damaged} damaged ones" * (damaged > 0)
    title = f"{folder.name}, {split}: documents as their tokens give them back{left_out}"
    with replacing(file) as half_written:
        preview.documents(rendered, half_written, title)
    return file


def _runs(batch: Batch, b: int, of: Sources, decode) -> Iterator[str]:
    """A line for each document of a row and for each run of its tokens that are of one stream, unit and span."""
    fields = ("position", "segment", "source", "doc_id", "unit", "span", "private", "noise", "token")
    every = {f: np.concatenate([getattr(tokens, f)[b] for tokens in batch.values()]) for f in fields}
    budgets = [tokens.position.shape[1] for tokens in batch.values()]
    every |= {"stream": np.repeat(np.arange(len(batch)), budgets), "place": np.concatenate([*map(np.arange, budgets)])}
    order = np.argsort(every["position"])[: int((every["segment"] > 0).sum())]
    every = {f: x[order] for f, x in every.items()}
    keys = np.stack([every[f] for f in ("segment", "stream", "unit", "span", "private")])
    begins = np.flatnonzero(np.append(True, (np.diff(keys) != 0).any(0)))[: len(order)]
    names = list(batch)
    last = 0
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
        tokenizer = dataset_tokenizers.load(folder).text if folder and (folder / "text.json").exists() else None

    def decode(stream: str, ids: np.ndarray) -> str:
        if config.streams[stream].modality == TEXT and tokenizer is not None:
            return repr(tokenizer.decode((ids - config.streams[stream].first_id).tolist(), skip_special_tokens=False))
        return " ".join(map(str, ids[:30]))

    return decode


def _shown(line: str, longest: int = 80) -> str:
    return line if len(line) <= longest else line[:longest] + " ..."


def _inspect_batch(options, overrides) -> int:
    config = flags.build(load.read(options.config, overrides))
    with phase("opening the data"):
        training, held_out = sources.open_(config)
    config = budgets.resolve(config, training)
    chosen = training if options.split == "train" else held_out
    if not 0 <= options.batch < config.run.steps:
        raise UserError(f"--batch={options.batch}; from 0 to run.steps less 1, here {config.run.steps - 1}")
    packed = pipeline.Batches(chosen, config, config.data.seed, options.batch + 1)[options.batch]
    fills = pipeline.fill(packed.batch)
    bounds = budgets.reachable(config, training)
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
        with replacing(options.out) as half_written:
            preview.batch(packed.batch, half_written, list(config.streams), f"{options.config}, batch {options.batch}")
        print(f"picture: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

"""A seqio task or mixture to a dataset of records: what `mot data prepare --seqio` writes.

One process reads it in seqio's own order, without shuffling, once; a mixture ends where seqio ends it, with its first
task to end. A restart begins anew, and ends with the same bytes.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from mot.config.options import DROP_DOCUMENT
from mot.data import seqio_bridge
from mot.data.manifest import BYTES, SPLITS, read_json
from mot.data.seqio_bridge import Read, SeqioMixture
from mot.errors import UserError
from mot.files import replacing, write_atomically
from mot.prepare import dataset_tokenizers, encode, job
from mot.prepare.left_out import Bad
from mot.prepare.raw import Part, Raw
from mot.prepare.sides import Sides, held_out_below, is_held_out
from mot.prepare.templates import READY


@dataclass(frozen=True)
class SeqioRecipe:
    """All that decides a dataset's bytes, beside the task's own."""

    name: str
    split: str
    features: tuple[str, ...]  # () = all lists of ids
    held_out: float  # fraction of the documents, by their content, where there is no validation split
    max_tokens: int  # tokens of a record; longer documents become several
    shard: int  # documents of a block


def export(recipe: SeqioRecipe, out: Path, max_skipped: int) -> job.Summary:
    """Writes the dataset to the folder `out`; its held-out documents are the validation split, if there is one.

    Raises `UserError` where the folder holds something else, and where more than `max_skipped` documents are bad.
    """
    if faults := list(_faults(recipe)):
        raise UserError("nothing was prepared:\n  " + "\n  ".join(faults))
    mixture = seqio_bridge.open_(recipe.name, recipe.features)
    digest = mixture.vocabulary.digest
    source = {"inputs": [seqio_bridge.PREFIX + mixture.name]} | asdict(recipe) | {"features": mixture.features}
    with job.claimed(out, json.loads(json.dumps(source | {"tokenizer": digest}))):
        if (out / "dataset.json").exists():
            return job.Summary(read_json(out), 0)
        for begun in (".work", "tokenizers", *SPLITS):
            shutil.rmtree(out / begun, ignore_errors=True)
        (out / ".work").mkdir()
        _write_tokenizer(mixture, out / "tokenizers")
        about = job.finish(source, out, _written(mixture, recipe, out, max_skipped))
    return job.Summary(about, sum(split["documents"] for split in about["splits"].values()))


def _written(mixture, recipe, out, max_skipped) -> list[job.Written]:
    """Every block, on disk, in order."""
    written, bad = [], 0
    raws = (_raw(read, held_out) for held_out, reads in _blocks(mixture, recipe) for read in reads)
    sides = Sides(held_out_below(raws, recipe.held_out, DROP_DOCUMENT, {}))
    for block, (held_out, reads) in enumerate(_blocks(mixture, recipe)):
        records = {split: [] for split in SPLITS}
        left_out = []
        for read in reads:
            if read.why:
                left_out.append(Bad(read.record.id, read.why))
                continue
            side = "held_out" if is_held_out(_raw(read, held_out), sides) else "train"
            records[side] += encode.cut(read.record, read.cuts, seqio_bridge.MODALITIES, recipe.max_tokens)
        written.append(job.write_block(out, block, records, left_out, seqio_bridge.MODALITIES))
        if (bad := bad + len(left_out)) > max_skipped:
            raise UserError(
                f"{bad} documents are bad, the last {left_out[-1].id}: {left_out[-1].why}; --max-skipped allows "
                f"{max_skipped}; mend them, or raise it"
            )
    return written


def _faults(recipe: SeqioRecipe) -> Iterator[str]:
    for key, least in dict(max_tokens=256, shard=1).items():
        if getattr(recipe, key) < least:
            yield f"--{key.replace('_', '-')}={getattr(recipe, key)}; must be {least} or more; raise it"
    if not 0 <= recipe.held_out < 1:
        yield f"--held-out={recipe.held_out}; a fraction, from 0 to below 1"


def _blocks(mixture: SeqioMixture, recipe: SeqioRecipe) -> Iterator[tuple[bool | None, list[Read]]]:
    """Documents, and on which side they are; None: their content decides."""
    validation = recipe.split != "validation" and "validation" in mixture.splits
    splits = {recipe.split: False, "validation": True} if validation else {recipe.split: None}
    for split, held_out in splits.items():
        reads = track(seqio_bridge.documents(mixture, split), f"{mixture.name}, {split}")
        while block := list(itertools.islice(reads, recipe.shard)):
            yield held_out, block


def _raw(read: Read, held_out: bool | None) -> Raw:
    """What tells which side a document is on: its ids."""
    parts = tuple(Part(span.modality + READY, span.data) for span in read.record.spans)
    return Raw(read.record.id, parts, held_out, read.why)


def _write_tokenizer(mixture: SeqioMixture, folder: Path) -> None:
    """As `fit.choose` leaves it."""
    vocabulary = mixture.vocabulary
    folder.mkdir()
    write_atomically(folder / "text.json", vocabulary.tokenizer.to_str())
    with replacing(folder / BYTES) as partial, open(partial, "wb") as file:
        np.save(file, vocabulary.byte_lengths, allow_pickle=False)
    chosen = {"modalities": seqio_bridge.MODALITIES, "latents": 0, "encodes": vocabulary.encodes}
    write_atomically(folder / dataset_tokenizers.CHOSEN, json.dumps(chosen))

"""Documents in the formats that people have, to a dataset of records (records.py): tokenised by parallel processes, in
blocks, each a shard of its own. What is finished stays finished: the same command goes on where it was interrupted, and
ends with the same bytes."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits

from mot.console import unheard_by_workers
from mot.data.manifest import FORMAT, SPLITS, file_digest, read_json
from mot.data.records import Record, Shard, lengths, write_shard
from mot.errors import UserError
from mot.files import replacing, write_atomically
from mot.prepare import asked, readers, tokenise
from mot.prepare.inputs import Notes, unread, warnings
from mot.prepare.raw import Raw
from mot.prepare.tokenise import Bad, Tools, weight_of

HEAVIEST = 64 << 20  # bytes of media that a block carries at most, as what is in flight lies in memory
FEW = 5  # documents by which the held-out part may be another than was asked for, untold
COUNTED = 4 << 30  # bytes of input that are read twice, for the sake of the time left


@dataclass(frozen=True)
class Recipe:
    """All that decides a dataset's bytes, beside the inputs' own."""

    inputs: tuple[str, ...]
    format: str
    content: tuple[str, ...]
    separator: str
    like: str  # a dataset whose tokenizers are taken; "" = none
    tokenizer: str  # a tokenizer.json; "" = trained on the first documents
    ids: tuple[tuple[str, int], ...]  # modalities whose ids are ready, and how many ids each has
    text_ids: int | None  # None: the usual number, or what the documents yield
    image_side: int  # pixels
    image_patch: int  # pixels
    image_ids: int | None
    audio_rate: int  # samples a second
    audio_ids: int | None
    vectors: tuple[str, ...]  # of image and audio, what is kept as vectors in place of ids
    action_points: int  # of a trajectory
    action_as: str  # positions, or offsets from point to point
    held_out: float  # fraction of the documents, by their content, where the input does not say
    missing: str  # drop-document, or drop-medium: what a picture (a sound, ...) costs that cannot be had
    max_tokens: int  # tokens of a record; longer documents become several
    sample: int  # documents from which tokenizers learn
    shard: int  # documents of a block


class Summary(NamedTuple):
    about: dict  # dataset.json
    documents: int  # written just now; 0 where all was there


def prepare(recipe: Recipe, out: Path, workers: int, max_skipped: int) -> Summary:
    """Writes the dataset to the folder `out`, or goes on with it.

    Raises `UserError` where the folder holds something else, and where more than `max_skipped` documents are bad.
    """
    if faults := list(asked.faults(recipe, out, workers, max_skipped)):
        raise UserError("nothing was prepared:\n  " + "\n  ".join(faults))
    ids = tokenise.declared(recipe)
    inputs = [Path(p) for p in recipe.inputs]
    content = list(recipe.content)

    def read(notes: Notes | None = None) -> Iterator[Raw]:
        return readers.read(inputs, recipe.format, content, recipe.separator, ids, notes)

    next(read(), None)  # what is wrong with the inputs as a whole is told before anything is written
    found = dataclasses.asdict(recipe) | {"files": _listing(recipe)}
    with claimed(out, json.loads(json.dumps(found))):
        if (out / "dataset.json").exists():
            return Summary(read_json(out), 0)
        (out / ".work").mkdir(exist_ok=True)
        sides = _sides(recipe, out, read, ids)
        tokenise.choose(recipe, out / "tokenizers", read, sides)
        notes = Notes()
        written = _blocks(recipe, sides, out, read, notes, workers, max_skipped)
        told = [*_warned_of_sides(recipe.held_out, sides, out, written), *_warned_of_pictures(written)]
        about = finish(dataclasses.asdict(recipe), out, written, _noted(recipe, out, notes, told))
    return Summary(about, sum(split["documents"] for split in about["splits"].values()))


def _noted(recipe, out: Path, notes: Notes, more: Sequence[str]) -> dict:
    """What `dataset.json` says of the inputs' files that were not read, and what is to be told loudly."""
    not_read = unread(map(Path, recipe.inputs), notes)
    modalities = tokenise.load(out / "tokenizers").modalities
    told = warnings(notes, not_read, recipe.separator, modalities)
    return {"unpacked": dict(sorted(notes.packed.items())), "not_read": not_read, "warnings": [*told, *more]}


def _warned_of_sides(fraction: float, sides: tokenise.Sides, out: Path, written: Sequence["Written"]) -> Iterator[str]:
    """Where equal documents, which stay on one side, make of the held-out part another than was asked for."""
    parts = [np.load(out / ".work" / f"block-{w.block:05d}.hashes", allow_pickle=False) for w in written]
    hashes = np.concatenate([np.zeros(0, np.uint64), *parts])
    other = np.isin(hashes, np.array(sorted(sides.other), np.uint64))
    n = len(hashes)
    held_out = int(((hashes < np.uint64(sides.below)) != other).sum())
    asked = fraction * n
    if not asked / 2 <= held_out <= 2 * asked and abs(held_out - asked) > FEW:
        yield (
            f"{len(np.unique(hashes)):,} distinct documents of {n:,}; {100 * held_out / n:.0f} % are held out, "
            f"{100 * fraction:g} % were asked for: equal documents are on one side"
        )


def _warned_of_pictures(written: Sequence["Written"]) -> Iterator[str]:
    """Where a tokenizer has seen a part of what pictures show."""
    seen = sum((Counter(w.seen) for w in written), Counter())
    of = f"of {seen['images']:,} images"
    if cropped := seen["cropped"]:
        yield f"{cropped:,} {of} are not square: the square in the middle is kept, and their edges are lost"
    if animated := seen["animated"]:
        yield f"{animated:,} {of} have several frames: the first is kept, and the others are lost"


def _sides(recipe, out, read, ids) -> tokenise.Sides:
    """As `tokenise.sides_of` finds them; kept, since an interrupted preparation goes on with the same."""
    file = out / ".work" / "held_out.json"
    try:
        below, other = json.loads(file.read_text(encoding="utf-8"))
        return tokenise.Sides(int(below), frozenset(map(int, other)))
    except (OSError, ValueError, TypeError):
        sides = tokenise.sides_of(recipe, read, ids)
        write_atomically(file, json.dumps([sides.below, sorted(sides.other)]))
        return sides


def _listing(recipe) -> list:
    """Every file that is named, with its size and time: a dataset is not gone on with from changed inputs.

    The media beside a JSON-lines file are not looked at.
    """
    found = []
    like = [Path(recipe.like) / "tokenizers"] if recipe.like else []
    for given in [*map(Path, recipe.inputs), *like, *([Path(recipe.tokenizer)] if recipe.tokenizer else [])]:
        files = sorted(p for p in given.rglob("*") if p.is_file()) if given.is_dir() else [given]
        found += [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files if p.exists()]
    # One digest: a folder may hold millions.
    return [len(found), sum(size for _, size, _ in found), hashlib.sha256(json.dumps(found).encode()).hexdigest()]


@contextlib.contextmanager
def claimed(out: Path, recipe: dict) -> Iterator[None]:
    """The folder of this recipe, made or gone on with, and no other process in it while this lasts.

    Raises `UserError` where it holds something else, was begun by another recipe that has come to something, or is
    being prepared by another process. The lock ends with its process, however that ends.
    """
    with _out_told(out):
        known = _known(out)
    if known:
        different = [key for key in recipe if known.get(key) != recipe[key]]
        if different and any(out.glob("*/shard-*")):
            listed = ", ".join(f"{key} {known.get(key)!r} -> {recipe[key]!r}" for key in different)
            raise UserError(
                f"{out} was begun otherwise ({listed}); nothing was overwritten; choose another --out, or remove it"
            )
    with _out_told(out):
        out.mkdir(parents=True, exist_ok=True)
        opened = open(out / ".lock", "w", encoding="utf-8")  # noqa: SIM115 - closed below
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{out} is being prepared by another process; wait for it, or choose another --out"
            ) from None
        for half_written in out.glob("*/.*.partial"):
            half_written.unlink()
        if known != recipe:
            for left in (out / "tokenizers", out / ".work"):
                shutil.rmtree(left, ignore_errors=True)
            write_atomically(out / "recipe.json", json.dumps(recipe, indent=1))
        yield
        (out / ".lock").unlink()


@contextlib.contextmanager
def _out_told(out: Path) -> Iterator[None]:
    """What the system says against the folder, as a `UserError`, unless it is that a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"--out={out}: {error.strerror}; choose a folder that can be made and written") from None


def _known(out: Path) -> dict:
    """The recipe by which a folder was begun; empty where there is nothing yet."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; nothing was overwritten; choose another --out")
    if not out.exists() or (out.is_dir() and not set(os.listdir(out)) - {".lock"}):
        return {}
    try:
        known = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
        if "inputs" not in known:
            raise ValueError
        return known
    except (OSError, ValueError, TypeError):
        raise UserError(f"{out} holds something else; nothing was overwritten; choose another --out") from None


class Written(NamedTuple):
    """What a worker tells of a block; its arrays lie in `.work`."""

    block: int
    shards: dict[str, Shard | None]  # by split
    left_out: list[Bad]
    seen: dict[str, int]  # as `tokenise.Made` has them


def _blocks(recipe, sides, out, read, notes, workers, max_skipped) -> list[Written]:
    """Every block, tokenised and on disk, in order; what the reading finds beside documents goes to `notes`."""
    size = sum(p.stat().st_size for p in map(Path, recipe.inputs) if p.is_file())
    total = sum(1 for _ in read()) if size < COUNTED else None
    console = Console(stderr=True)
    columns = (SpinnerColumn(tokenise.spinner(console)), TextColumn("{task.description}"), BarColumn(bar_width=30))
    written: list[Written] = []
    columns += (MofNCompleteColumn(), TextColumn("documents"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(escape(out.name), total=total)
        for documents, block in _in_order(recipe, sides, out, _blocks_of(read(notes), recipe.shard), workers):
            written.append(block)
            progress.update(task, advance=documents)
            left_out = [bad for w in written for bad in w.left_out if not bad.medium]
            if (bad := len(left_out)) > max_skipped:
                _tell_left_out(out, written)
                raise UserError(
                    f"{bad} documents are bad, --max-skipped allows {max_skipped}; mend them, or raise it; what is "
                    f"done stays done{tokenise.first_of(left_out, out / 'left_out.jsonl')}"
                )
    return written


def _in_order(recipe, sides, out, blocks, workers) -> Iterator[tuple[int, Written]]:
    """What workers tell of each block, and its documents; few blocks are in flight at a time."""
    if workers == 1:  # here
        _begin(recipe, sides, out)
        for number, raws in enumerate(blocks):
            yield len(raws), _block(number, raws)
        return
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(recipe, sides, out))
    waiting: deque[tuple[int, Future]] = deque()

    def first():
        return (waiting[0][0], waiting.popleft()[1].result())

    try:
        for number, raws in enumerate(blocks):
            with unheard_by_workers():
                waiting.append((len(raws), pool.submit(_block, number, raws)))
            if len(waiting) > 2 * workers:
                yield first()
        while waiting:
            yield first()
    except BrokenProcessPool:
        raise UserError(
            "a worker died, perhaps for want of memory; run the same command again, with fewer --workers than "
            f"{workers}: it goes on where it was"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _blocks_of(raws: Iterator[Raw], most: int) -> Iterator[list[Raw]]:
    block, weight = [], 0
    for raw in raws:
        block.append(raw)
        weight += sum(weight_of(part) for part in (*raw.parts, *raw.rest))
        if len(block) >= most or weight >= HEAVIEST:
            yield block
            block, weight = [], 0
    if block:
        yield block


_worker: tuple[Recipe, tokenise.Sides, Path, Tools] | None = None  # of this worker process, set once by `_begin`


def _begin(recipe: Recipe, sides: tokenise.Sides, out: Path) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process, one core
    if parent := multiprocessing.parent_process():
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # nobody is left to work for
    threadpool_limits(1)  # small products on two threads take up to a hundred times as long
    _worker = recipe, sides, out, tokenise.load(out / "tokenizers")


def _block(block: int, raws: Sequence[Raw]) -> Written:
    """Tokenises a block and writes its shards, if an earlier process has not done so."""
    recipe, sides, out, tools = _worker
    done = out / ".work" / f"block-{block:05d}"
    if (known := _done(out, block, done)) is not None:
        return known
    records = {split: [] for split in SPLITS}
    left_out = []
    seen = Counter()
    hashes = []
    for raw in raws:
        try:
            made = tokenise.records(raw, tools, recipe.max_tokens, recipe.missing)
            held_out, hash_ = tokenise.decided(raw, sides, recipe.missing)
            records["held_out" if held_out else "train"] += made.records
            left_out += made.missing
            seen += made.seen
            hashes += [] if hash_ is None else [hash_]
        except ValueError as error:
            left_out.append(Bad(raw.id, str(error)))
    _save(done.with_suffix(".hashes"), np.array(hashes, np.uint64))
    return write_block(out, block, records, left_out, tools.modalities, seen)


def write_block(
    out: Path,
    block: int,
    records: dict[str, list[tuple[Record, np.ndarray]]],
    left_out: list[Bad],
    modalities: Sequence[str],
    seen: Mapping[str, int] | None = None,
) -> Written:
    """Writes the shards of a block and what the index needs of them; `records`, with their atoms, by split."""
    done = out / ".work" / f"block-{block:05d}"
    shards = {}
    for split, made in records.items():
        (out / split).mkdir(exist_ok=True)
        shards[split] = None
        if made:
            shards[split] = write_shard(out / split / _shard_name(block), [record for record, _ in made])
        atoms = [atoms for _, atoms in made]
        sizes = np.array([len(a) for a in atoms], np.int64)
        tokens = np.array([lengths(a, len(modalities)) for a in atoms], np.int32)
        _save(done.with_suffix(f".{split}.lengths"), tokens.reshape(-1, len(modalities)))
        _save(done.with_suffix(f".{split}.atoms"), np.concatenate([np.zeros((0, 2), np.int32), *atoms]))
        _save(done.with_suffix(f".{split}.sizes"), sizes)
    told = {split: shard and shard._asdict() for split, shard in shards.items()}
    write_atomically(done.with_suffix(".json"), json.dumps({"shards": told, "left_out": left_out, "seen": seen or {}}))
    return Written(block, shards, left_out, dict(seen or {}))


def _shard_name(block: int) -> str:
    return f"shard-{block:05d}.array_record"


def _done(out: Path, block: int, done: Path) -> Written | None:
    """What an earlier process has written of a block, where that is whole."""
    try:
        told = json.loads(done.with_suffix(".json").read_text(encoding="utf-8"))
        shards = {split: Shard(**shard) if shard else None for split, shard in told["shards"].items()}
        for split, shard in shards.items():
            if shard and file_digest(out / split / shard.file) != shard.digest:
                return None
        return Written(block, shards, [Bad(*bad) for bad in told["left_out"]], told["seen"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, array, allow_pickle=False)


def finish(source: dict, out: Path, written: Sequence[Written], noted: dict | None = None) -> dict:
    """The index of all blocks and `dataset.json`, with what was `noted`; the folder is a dataset from here on."""
    tools = tokenise.load(out / "tokenizers")
    splits, lengths_of = {}, {}
    for split in SPLITS:
        (out / split).mkdir(exist_ok=True)
        for shard in (w.shards[split] for w in written if w.shards[split]):
            if (size := (out / split / shard.file).stat().st_size) != shard.bytes:
                raise UserError(f"{out / split / shard.file} has {size} bytes, {shard.bytes} were written; try again")

        def parts(kind, split=split):
            return [np.load(out / ".work" / f"block-{w.block:05d}.{split}.{kind}", allow_pickle=False) for w in written]

        tokens = np.concatenate([np.zeros((0, len(tools.modalities)), np.int32), *parts("lengths")])
        atoms = np.concatenate([np.zeros((0, 2), np.int32), *parts("atoms")])
        firsts = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *parts("sizes")]))])
        index = {"lengths.npy": tokens, "atoms.npy": atoms, "firsts.npy": firsts.astype(np.int64)}
        for name, array in index.items():
            _save(out / split / name, array)
        media = Counter(tools.modalities[m] for m in atoms[:, 0][atoms[:, 0] != 0].tolist())
        for m, modality in enumerate(tools.modalities):
            lengths_of.setdefault(modality, set()).update(np.unique(atoms[:, 1][atoms[:, 0] == m]).tolist())
        splits[split] = {
            "documents": len(tokens),
            "tokens": dict(zip(tools.modalities, tokens.sum(0, dtype=np.int64).tolist(), strict=True)),
            "spans": dict(sorted(media.items())),
            "shards": [w.shards[split]._asdict() for w in written if w.shards[split]],
            "index": [_about_file(out / split / name) for name in index],
        }
    left_out = _tell_left_out(out, written)
    if not splits["train"]["documents"]:
        bad = [x for x in left_out if not x.medium]
        held_out = splits["held_out"]["documents"]
        raise UserError(
            f"no document is left to train on ({len(bad)} were bad, {held_out} are held out)"
            f"{tokenise.first_of(bad, out / 'left_out.jsonl')}"
        )
    about = {
        "format": FORMAT,
        "source": source,
        "modalities": list(tools.modalities),
        "tokenizers": _with_lengths(tokenise.about(out / "tokenizers"), lengths_of),
        "splits": splits,
        "left_out": dict(sorted(Counter(bad.why for bad in left_out if not bad.medium).items())),
        "missing": dict(sorted(Counter(bad.medium for bad in left_out if bad.medium).items())),
    } | (noted or {})
    write_atomically(out / "dataset.json", json.dumps(about, indent=1))
    shutil.rmtree(out / ".work")
    return about


def _with_lengths(tokenizers: dict, lengths_of: Mapping[str, set[int]]) -> dict:
    """Tokenizers' entries, with the `tokens` of a unit of ready ids where all units have one length."""
    for modality, known in tokenizers.items():
        if tokenise.is_ready(known) and len(lengths_of[modality]) == 1:
            (known["tokens"],) = lengths_of[modality]
    return tokenizers


def _tell_left_out(out: Path, written: Sequence[Written]) -> list[Bad]:
    left_out = [bad for w in written for bad in w.left_out]
    tokenise.write_left_out(out / "left_out.jsonl", left_out)
    return left_out


def _about_file(path: Path) -> dict:
    return {"file": path.name, "bytes": path.stat().st_size, "digest": file_digest(path)}

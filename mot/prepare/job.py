"""Prepares a dataset of records (records.py): parallel processes tokenise blocks of documents, a shard each.

A finished block stays finished: the same command goes on where it was interrupted, and ends with the same bytes.
"""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits

from mot.config import modalities
from mot.config.allowed import nearest
from mot.config.modalities import Option
from mot.console import unheard_by_workers
from mot.data.manifest import FORMAT, INDEX, SPLITS, file_digest, read_json
from mot.data.records import Record, Shard, lengths, write_shard
from mot.errors import UserError
from mot.files import replacing, write_atomically
from mot.prepare import asked, dataset_tokenizers, encode, fit, joined, left_out, readers, rendered, reordered
from mot.prepare.dataset_tokenizers import Tokenizers
from mot.prepare.inputs import Notes, unread, warnings
from mot.prepare.left_out import Bad, first_of
from mot.prepare.raw import Raw, weight_of
from mot.prepare.sides import Sides, decided, sides_of

HEAVIEST = 64 << 20  # bytes of media that a block carries at most, as what is in flight lies in memory
FEW = 5  # documents by which the held-out part may be another than was asked for, untold
COUNTED = 4 << 30  # bytes of input that are read twice, for the sake of the time left


def _option(option: Option) -> tuple[str, Any]:
    """As a field of the recipe."""
    if option.default is None:
        return option.name, int | None  # None: the usual number of ids, or what the documents yield
    return option.name, type(option.default)


# All that decides a dataset's bytes, beside the inputs' own. Options of modalities are those of their rows.
Recipe = make_dataclass(
    "Recipe",
    [
        ("inputs", tuple[str, ...]),
        ("format", str),
        ("content", tuple[str, ...]),
        ("separator", str),
        ("like", str),  # a dataset whose tokenizers are taken; "" = none
        ("tokenizer", str),  # a tokenizer.json; "" = trained on the first documents
        ("ids", tuple[tuple[str, int], ...]),  # modalities whose ids are ready, and how many ids each has
        *(_option(option) for option, _ in modalities.options(of_vectors_alone=False)),
        ("vectors", tuple[str, ...]),  # of modalities that may be either, those kept as vectors in place of ids
        ("also", tuple[str, ...]),  # image=vectors, image=latents: what a unit is kept as beside its first form
        *(_option(option) for option, _ in modalities.options(of_vectors_alone=True)),
        ("held_out", float),  # fraction of the documents, by their content, where the input does not say
        ("missing", str),  # drop-document, or drop-medium: what a picture (a sound, ...) costs that cannot be had
        ("max_tokens", int),  # of a record; longer documents become several
        ("sample", int),  # documents from which tokenizers learn
        ("shard", int),  # documents of a block
        ("join", tuple[str, ...]),  # fields by which rows of several inputs are one document; () = each input alone
        ("join_documents", int),  # how many these are; 0 = as many as use every row once
        ("join_seed", int),  # of who is paired with whom
        ("markers", tuple[str, ...]),  # modalities of other datasets, whose markers the text tokenizer has, too
    ],
    frozen=True,
    namespace={"__module__": __name__},  # by which other processes find it
)


# Options that came later, and what a dataset without them did: it is written as it was, to the bit.
ADDED = {"also": (), "audio_layers": 1, "video_frames": 4, "video_side": 32, "video_patch": 8, "video_ids": None}
ADDED |= {"join": (), "join_documents": 0, "join_seed": 0, "markers": ()}
ADDED |= {"image_aspect": "square", "image_render": 0, "video_order": "ordered"}
ADDED |= {"fast_points": 0, "fast_scale": 10, "fast_ids": None}
ADDED |= {"image_tokens": "", "image_latents": "", "audio_tokens": "", "audio_order": modalities.LAYERS}


def told(recipe) -> dict:
    """A recipe as a dataset keeps it."""
    return {key: value for key, value in dataclasses.asdict(recipe).items() if key not in ADDED or value != ADDED[key]}


class Summary(NamedTuple):
    about: dict  # dataset.json
    documents: int  # written just now; 0 where all was there


def prepare(recipe: Recipe, out: Path, workers: int, max_skipped: int) -> Summary:
    """Writes the dataset to the folder `out`, or goes on with it.

    Raises `UserError` where the folder holds something else, and where more than `max_skipped` documents are bad.
    """
    if faults := list(asked.faults(recipe, out, workers, max_skipped)):
        raise UserError("nothing was prepared:\n  " + "\n  ".join(faults))
    ids = fit.declared(recipe)
    inputs = [Path(p) for p in recipe.inputs]
    content = list(recipe.content)

    def read(notes: Notes | None = None) -> Iterator[Raw]:
        if recipe.join:
            raws = joined.read(recipe, ids, notes)
        else:
            raws = readers.read(inputs, recipe.format, content, recipe.separator, ids, notes)
        return reordered.documents(rendered.documents(raws, recipe.image_render), recipe.video_order)

    next(read(), None)  # what is wrong with the inputs as a whole is told before anything is written
    claim = told(recipe) | {"files": _listing(recipe)}
    with claimed(out, json.loads(json.dumps(claim))):
        if (out / "dataset.json").exists():
            return Summary(read_json(out), 0)
        (out / ".work").mkdir(exist_ok=True)
        with _cleared_where_refused(out):  # documents that yield no tokenizers
            sides = _sides(recipe, out, read, ids)
            fit.choose(recipe, out / "tokenizers", read, sides)
        notes = Notes()
        written = _blocks(Worker(recipe, sides, out), read, notes, workers, max_skipped)
        lines = [*_warned_of_sides(recipe.held_out, sides, out, written), *_warned_of_media(written)]
        lines += _warned_of_markers(recipe)
        about = finish(told(recipe), out, written, _noted(recipe, out, notes, lines))
    return Summary(about, sum(split["documents"] for split in about["splits"].values()))


def _noted(recipe, out: Path, notes: Notes, more: Sequence[str]) -> dict:
    """What `dataset.json` says of files that were not read, and its warnings."""
    not_read = unread(map(Path, recipe.inputs), notes)
    present = dataset_tokenizers.load(out / "tokenizers").modalities
    lines = warnings(notes, not_read, recipe.separator, present)
    return {"unpacked": dict(sorted(notes.packed.items())), "not_read": not_read, "warnings": [*lines, *more]}


def _warned_of_sides(fraction: float, sides: Sides, out: Path, written: Sequence["Written"]) -> Iterator[str]:
    """Warns where equal documents, which stay on one side, change the held-out fraction a lot."""
    parts = [np.load(_done_file(out, w.block, "hashes"), allow_pickle=False) for w in written]
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


def _warned_of_markers(recipe) -> Iterator[str]:
    """Warns where a name is that of no modality here: another dataset's of --ids, or misspelt."""
    for name in recipe.markers:
        if name not in modalities.media() and (near := nearest(name, modalities.media())):
            yield f"--markers={name} is no modality of mot's own; if {near} was meant, prepare it again with that"


def _warned_of_media(written: Sequence["Written"]) -> Iterator[str]:
    """Warns where tokenizers have seen only a part of what media hold."""
    seen = sum((Counter(w.seen) for w in written), Counter())
    for key in sorted(seen):
        modality, colon, remark = key.partition(": ")
        if colon:
            yield f"{seen[key]:,} of {seen[modality]:,} {remark}"


def _sides(recipe, out, read, ids) -> Sides:
    """As `sides_of` finds them; kept, since an interrupted preparation goes on with the same."""
    file = out / ".work" / "held_out.json"
    try:
        below, other = json.loads(file.read_text(encoding="utf-8"))
        return Sides(int(below), frozenset(map(int, other)))
    except (OSError, ValueError, TypeError):
        sides = sides_of(recipe, read, ids)
        write_atomically(file, json.dumps([sides.below, sorted(sides.other)]))
        return sides


def _listing(recipe) -> list:
    """Every file that is named, with its size and time: a dataset is not gone on with from changed inputs.

    The media beside a JSON-lines file are not looked at.
    """
    listed = []
    like = [Path(recipe.like) / "tokenizers"] if recipe.like else []
    named = [recipe.tokenizer] if recipe.tokenizer else []
    for given in [*map(Path, recipe.inputs), *like, *map(Path, [*named, *modalities.networks_of(recipe)])]:
        files = sorted(p for p in given.rglob("*") if p.is_file()) if given.is_dir() else [given]
        listed += [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files if p.exists()]
    # One digest: a folder may hold millions.
    return [len(listed), sum(size for _, size, _ in listed), hashlib.sha256(json.dumps(listed).encode()).hexdigest()]


@contextlib.contextmanager
def claimed(out: Path, recipe: dict) -> Iterator[None]:
    """The folder of this recipe, made or gone on with, and no other process in it while this lasts.

    Raises `UserError` where it holds something else, was begun by another recipe that has come to something, or is
    being prepared by another process. The lock ends with its process, however that ends.
    """
    with _out_told(out):
        known = _known(out)
    if known:
        different = [key for key in known | recipe if known.get(key) != recipe.get(key)]
        if different and any(out.glob("*/shard-*")):
            listed = ", ".join(f"{key} {known.get(key)!r} -> {recipe.get(key)!r}" for key in different)
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
def _cleared_where_refused(out: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        _clear(out)
        raise


def _clear(out: Path) -> None:
    """Leaves nothing of what was begun in a folder but the list of bad documents, if there is one."""
    for name in ("tokenizers", ".work", *SPLITS):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("recipe.json", ".lock"):
        (out / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds the list
        out.rmdir()


@contextlib.contextmanager
def _out_told(out: Path) -> Iterator[None]:
    """Raises `UserError` where the system refuses the folder, but for a full disk."""
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
    if not out.exists() or (out.is_dir() and not set(os.listdir(out)) - {".lock", left_out.NAME}):
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
    seen: dict[str, int]  # as `encode.Made` has them


class Worker(NamedTuple):
    """What makes shards of blocks of documents, in this process or in one of several."""

    recipe: Recipe
    sides: Sides
    out: Path

    def work(
        self, block: int, raws: Sequence[Raw], tokenizers: Tokenizers, told: Callable[[int], None] = lambda n: None
    ) -> Written:
        """Tokenises a block and writes its shards, if an earlier process has not done so; `told` of documents done."""
        if (known := _done(self.out, block)) is not None:
            told(len(raws))
            return known
        records = {split: [] for split in SPLITS}
        bad = []
        seen = Counter()
        hashes = []
        for raw, begun in encode.begun(raws, tokenizers, self.recipe.missing):
            told(1)
            try:
                if isinstance(begun, ValueError):
                    raise begun
                made = encode.ended(begun, tokenizers, self.recipe.max_tokens)
                held_out, hash_ = decided(raw, self.sides, self.recipe.missing)
                records["held_out" if held_out else "train"] += made.records
                bad += made.missing
                seen += made.seen
                hashes += [] if hash_ is None else [hash_]
            except ValueError as error:
                bad.append(Bad(raw.id, str(error)))
        _save(_done_file(self.out, block, "hashes"), np.array(hashes, np.uint64))
        return write_block(self.out, block, records, bad, tokenizers.modalities, seen, tokenizers.further)


def _blocks(
    worker: Worker, read: Callable[..., Iterator[Raw]], notes: Notes, processes: int, max_skipped: int
) -> list[Written]:
    """Every block, tokenised and on disk, in order; what the reading finds beside documents goes to `notes`."""
    recipe, out = worker.recipe, worker.out
    size = sum(p.stat().st_size for p in map(Path, recipe.inputs) if p.is_file())
    total = sum(1 for _ in read()) if size < COUNTED else None
    console = Console(stderr=True)
    columns = (SpinnerColumn(fit.spinner(console)), TextColumn("{task.description}"), BarColumn(bar_width=30))
    columns += (MofNCompleteColumn(), TextColumn("documents"), TimeRemainingColumn())
    written: list[Written] = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(escape(out.name), total=total)
        blocks = _blocks_of(read(notes), recipe.shard)
        for block in _in_order(worker, blocks, processes, lambda n: progress.advance(task, n)):
            written.append(block)
            bad = [one for w in written for one in w.left_out if not one.medium]
            if len(bad) > max_skipped:
                _tell_left_out(out, written)
                raise UserError(
                    f"{len(bad)} documents are bad, --max-skipped allows {max_skipped}; mend them, or raise it; what "
                    f"is done stays done{first_of(bad, out / left_out.NAME)}"
                )
    return written


def _in_order(
    worker: Worker, blocks: Iterator[list[Raw]], processes: int, told: Callable[[int], None]
) -> Iterator[Written]:
    """What becomes of each block, few of which are in flight at a time; `told` of documents done."""
    if processes == 1:  # here
        tokenizers = _alone(worker)
        for number, raws in enumerate(blocks):
            yield worker.work(number, raws, tokenizers, told)
        return
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(worker, processes))
    waiting: deque[tuple[int, Future]] = deque()

    def first():
        documents, future = waiting.popleft()
        written = future.result()
        told(documents)
        return written

    try:
        for number, raws in enumerate(blocks):
            with unheard_by_workers():
                waiting.append((len(raws), pool.submit(_work, number, raws)))
            if len(waiting) > 2 * processes:
                yield first()
        while waiting:
            yield first()
    except BrokenProcessPool:
        raise UserError(
            "a worker died, perhaps for want of memory; run the same command again, with fewer --workers than "
            f"{processes}: it goes on where it was"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# Of a process of the pool, which hands its tasks nothing but their arguments.
_process: tuple[Worker, Tokenizers] | None = None


def _begin(worker: Worker, processes: int) -> None:
    global _process
    # Read where torch is first imported: its processes together take all cores, once.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # nobody is left to work for
    _process = worker, _alone(worker)


def _work(block: int, raws: Sequence[Raw]) -> Written:
    worker, tokenizers = _process
    return worker.work(block, raws, tokenizers)


def _alone(worker: Worker) -> Tokenizers:
    """The dataset's tokenizers, in a process that keeps to one core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Small products on two threads take up to a hundred times as long. A network has threads of its own.
    threadpool_limits(1, user_api="blas")
    return dataset_tokenizers.load(worker.out / "tokenizers")


def _blocks_of(raws: Iterator[Raw], documents: int) -> Iterator[list[Raw]]:
    block, weight = [], 0
    for raw in raws:
        block.append(raw)
        weight += sum(weight_of(part) for part in (*raw.parts, *raw.rest))
        if len(block) >= documents or weight >= HEAVIEST:
            yield block
            block, weight = [], 0
    if block:
        yield block


def write_block(
    out: Path,
    block: int,
    records: dict[str, list[tuple[Record, np.ndarray]]],
    bad: list[Bad],
    present: Sequence[str],
    seen: Mapping[str, int] | None = None,
    of: Mapping[str, str] | None = None,
) -> Written:
    """Writes the shards of a block and what the index needs of them; `records`, with their atoms, by split, and the
    modalities that are `present` in the dataset, some further representations `of` others."""
    further = [present.index(modality) for modality in of or ()]
    shards = {}
    for split, made in records.items():
        (out / split).mkdir(exist_ok=True)
        shards[split] = None
        if made:
            shards[split] = write_shard(out / split / _shard_name(block), [record for record, _ in made])
        atoms = [atoms for _, atoms in made]
        sizes = np.array([len(a) for a in atoms], np.int64)
        tokens = np.array([lengths(a, len(present), further) for a in atoms], np.int32)
        _save(_done_file(out, block, f"{split}.lengths"), tokens.reshape(-1, len(present)))
        _save(_done_file(out, block, f"{split}.atoms"), np.concatenate([np.zeros((0, 2), np.int32), *atoms]))
        _save(_done_file(out, block, f"{split}.sizes"), sizes)
    about_shards = {split: shard and shard._asdict() for split, shard in shards.items()}
    about = {"shards": about_shards, "left_out": bad, "seen": seen or {}}
    write_atomically(_done_file(out, block, "json"), json.dumps(about))
    return Written(block, shards, bad, dict(seen or {}))


def _done_file(out: Path, block: int, what: str) -> Path:
    return out / ".work" / f"block-{block:05d}.{what}"


def _shard_name(block: int) -> str:
    return f"shard-{block:05d}.array_record"


def _done(out: Path, block: int) -> Written | None:
    """What an earlier process has written of a block, where that is whole."""
    try:
        about = json.loads(_done_file(out, block, "json").read_text(encoding="utf-8"))
        shards = {split: Shard(**shard) if shard else None for split, shard in about["shards"].items()}
        for split, shard in shards.items():
            if shard and file_digest(out / split / shard.file) != shard.digest:
                return None
        return Written(block, shards, [Bad(*bad) for bad in about["left_out"]], about["seen"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, array, allow_pickle=False)


def finish(source: dict, out: Path, written: Sequence[Written], noted: dict | None = None) -> dict:
    """The index of all blocks and `dataset.json`, with what was `noted`; the folder is a dataset from here on."""
    present = dataset_tokenizers.load(out / "tokenizers").modalities
    lengths_of: dict[str, set[int]] = {modality: set() for modality in present}
    splits = {}
    for split in SPLITS:
        tokens, atoms = _write_index(out, split, written, present)
        for m, modality in enumerate(present):
            lengths_of[modality] |= set(np.unique(atoms[:, 1][atoms[:, 0] == m]).tolist())
        media = Counter(present[m] for m in atoms[:, 0][atoms[:, 0] != 0].tolist())
        splits[split] = {
            "documents": len(tokens),
            "tokens": dict(zip(present, tokens.sum(0, dtype=np.int64).tolist(), strict=True)),
            "spans": dict(sorted(media.items())),
            "shards": [w.shards[split]._asdict() for w in written if w.shards[split]],
            "index": [_about_file(out / split / name) for name in INDEX],
        }
    bad = _tell_left_out(out, written)
    if not splits["train"]["documents"]:
        documents = [one for one in bad if not one.medium]
        held_out = splits["held_out"]["documents"]
        _clear(out)
        raise UserError(
            f"no document is left to train on ({len(documents)} were bad, {held_out} are held out)"
            f"{first_of(documents, out / left_out.NAME)}"
        )
    about = {
        "format": FORMAT,
        "source": source,
        "modalities": list(present),
        "tokenizers": _with_lengths(dataset_tokenizers.about(out / "tokenizers"), lengths_of),
        "splits": splits,
        "left_out": dict(sorted(Counter(one.why for one in bad if not one.medium).items())),
        "missing": dict(sorted(Counter(one.medium for one in bad if one.medium).items())),
    } | (noted or {})
    write_atomically(out / "dataset.json", json.dumps(about, indent=1))
    shutil.rmtree(out / ".work")
    return about


def _write_index(
    out: Path, split: str, written: Sequence[Written], present: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Writes the index of a split; its documents' lengths and atoms. Raises `UserError` where a shard is not whole."""
    (out / split).mkdir(exist_ok=True)
    for shard in (w.shards[split] for w in written if w.shards[split]):
        if (size := (out / split / shard.file).stat().st_size) != shard.bytes:
            raise UserError(f"{out / split / shard.file} has {size} bytes, {shard.bytes} were written; try again")

    def of_blocks(what: str) -> list[np.ndarray]:
        return [np.load(_done_file(out, w.block, f"{split}.{what}"), allow_pickle=False) for w in written]

    tokens = np.concatenate([np.zeros((0, len(present)), np.int32), *of_blocks("lengths")])
    atoms = np.concatenate([np.zeros((0, 2), np.int32), *of_blocks("atoms")])
    ends = np.cumsum(np.concatenate([np.zeros(0, np.int64), *of_blocks("sizes")]))
    firsts = np.concatenate([[0], ends]).astype(np.int64)
    for name, array in zip(INDEX, (tokens, atoms, firsts), strict=True):
        _save(out / split / name, array)
    return tokens, atoms


def _with_lengths(tokenizers: dict, lengths_of: Mapping[str, set[int]]) -> dict:
    """Tokenizers' entries, with the `tokens` of a unit of ready ids where all units have one length."""
    for modality, known in tokenizers.items():
        if dataset_tokenizers.is_ready(known) and len(lengths_of[modality]) == 1:
            (known["tokens"],) = lengths_of[modality]
    return tokenizers


def _tell_left_out(out: Path, written: Sequence[Written]) -> list[Bad]:
    bad = [one for w in written for one in w.left_out]
    left_out.write(out / left_out.NAME, bad)
    return bad


def _about_file(path: Path) -> dict:
    return {"file": path.name, "bytes": path.stat().st_size, "digest": file_digest(path)}

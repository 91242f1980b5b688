"""From a run to a folder in Hugging Face's layout: config.json, safetensors, the tokenizer, a model card."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from tokenizers import Tokenizer

from mot.checkpoint import Position, made_by
from mot.config import Config
from mot.console import phase
from mot.errors import UserError
from mot.files import whole_folder
from mot.interop import aside as kept
from mot.interop import families, prompt, shards
from mot.interop.families import Piece
from mot.interop.transforms import TRANSFORMS
from mot.model import params
from mot.prepare import dataset_tokenizers
from mot.runs import rundir
from mot.train import restore

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
OF_IDS = ("embed/tokens", "head/out")  # parameters that have a row or a column for each id


class Exported(NamedTuple):
    """What became of an export."""

    family: str
    step: int
    files: int
    told: list[str]


def run(path: Path, step: int | None, out: Path, most: int, dtype: str = "float32") -> Exported:
    """Writes `out`, whole or not at all; files of weights have at most so many bytes. `dtype` is one of DTYPES.

    Raises `UserError` where the run is of no family, and where `out` exists.
    """
    config = rundir.config_of(path)
    name = families.of_ours(config, str(path))
    shards.refuse_taken(out)
    tokenizer = _tokenizer(config)
    aside = kept.of_run(path, name, families.needs_aside(name)) if families.keeps_aside(name) else None
    said = kept.said(aside, name) if aside else None
    with phase("reading the checkpoint"):
        config, position, weights = restore.load(path, step)
    refuse_unequal(params.paths(weights), families.copies(name, config), name, path)
    config, training, _ = restore.open_data(config)
    restore.refuse_other_data(path, position, training)
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32"))
    stored = prompt.read(path) if position.step == 0 else {}
    beyond = _beyond(path, stored, config)
    with whole_folder(out) as partial:
        rows = families.rows_of(name, config)
        vocab = config.vocab + max(map(len, beyond.values()), default=0)
        pieces = families.pieces(rows, config, vocab)
        outside = kept.tensors(aside, families.rows_aside(name), vocab) if aside else {}
        order = families.order_of_ids(said, config, config.vocab) if said else None
        shapes = {theirs: families.shape_of(own) for theirs, own in pieces.items()}
        shapes |= {theirs: x.shape for theirs, x in outside.items()}
        number = np.dtype(DTYPES[dtype])
        tensor = _tensors(_on_host(weights), pieces, beyond, outside, order, number)
        plan = shards.planned(shapes, most, number.itemsize, families.stem(name))
        shards.write(partial, plan, tensor, shapes)
        _read_back(partial, tensor, shapes)
        told = []
        with phase("the logits of a prompt"):
            if stored:
                apart = prompt.compare(path, stored, weights, plain)
                told.append(f"the logits are those that the import stored (apart: {apart:.1g})")
            weights = jax.tree.map(lambda x: np.asarray(x).astype(number).astype(np.float32), weights)
            ids = stored["ids"] if stored else prompt.ids_of(tokenizer)
            prompt.write(partial, ids, prompt.of_theirs(prompt.logits(weights, plain, ids), order))
        _write_rest(partial, path, name, config, position, tokenizer, vocab, dtype, aside)
    return Exported(name, position.step, len(plan), told)


def refuse_unequal(arrays: Mapping[str, Any], copies: Mapping[str, str], name: str, path: Path) -> None:
    """`UserError` where what a family has once is not the same in both towers of ours."""
    for one, other in copies.items():
        if not np.array_equal(arrays[one], arrays[other]):
            raise UserError(
                f"{path}: {one} is not {other}; a {name} has one for both, and training moved them apart; freeze both "
                "in a run to export (a rule of optim.rules with lr=0.0)"
            )


def _beyond(path: Path, stored: Mapping[str, np.ndarray], config: Config) -> dict[str, np.ndarray]:
    """Rows `[n, D]` of theirs that belong to no id, by the path of the parameter, as an import stored them."""
    beyond = {key.replace(".", "/"): rest for key, rest in stored.items() if key not in ("ids", "logits")}
    for name, rest in beyond.items():
        if name not in OF_IDS or rest.dtype != np.float32 or rest.shape[1:] != (config.streams["text"].width,):
            raise UserError(
                f"{path / prompt.NAME}: {name} is {rest.dtype} {list(rest.shape)}; must be float32 rows of "
                f"{' or '.join(OF_IDS)}; import the model again"
            )
    return beyond


def _tokenizer(config: Config) -> Tokenizer:
    """That of the run's datasets, which are tokenised alike."""
    address = next(iter(config.data.sources.values()))
    if not (Path(address) / "dataset.json").is_file():
        raise UserError(
            f"data.sources: {address!r}; the tokenizer is taken from a prepared dataset of this machine, and there is "
            "none; copy it there"
        )
    return dataset_tokenizers.load_text(Path(address) / "tokenizers")


def _on_host(weights: dict) -> dict[str, np.ndarray]:
    return {path: np.asarray(x) for path, x in params.paths(weights).items()}  # on a CPU without a copy


def _tensors(
    arrays: Mapping[str, np.ndarray],
    pieces: Mapping[str, list[Piece]],
    beyond: Mapping[str, np.ndarray],
    outside: Mapping[str, np.ndarray],
    order: np.ndarray | None,
    number: np.dtype,
) -> Callable[[str], np.ndarray]:
    """A function that makes a tensor of theirs by its name; `order` is that of `families.order_of_ids`."""

    def part(piece: Piece) -> np.ndarray:
        x = TRANSFORMS[piece.transform].to_theirs(arrays[piece.ours][piece.index])
        if order is not None and piece.ours in OF_IDS:
            x = x[np.argsort(order)]
        return np.concatenate([x, beyond[piece.ours]]) if piece.ours in beyond else x

    def tensor(name: str) -> np.ndarray:
        if name in outside:
            return outside[name].astype(number, copy=False)
        return families.joined([part(piece) for piece in pieces[name]], pieces[name]).astype(number, copy=False)

    return tensor


def _read_back(folder: Path, tensor: Callable[[str], np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `UserError` where the files do not give back what was written, bit for bit."""
    found = shards.headers(folder)
    wrong = found.keys() ^ shapes.keys()
    wrong |= {name for name, x in shards.tensors(found, "reading it back") if not np.array_equal(x, tensor(name))}
    if wrong:
        raise UserError(f"{folder}: {sorted(wrong)[0]} came back changed; nothing was exported; look at the disk")


def _write_rest(
    folder: Path,
    path: Path,
    name: str,
    config: Config,
    position: Position,
    tokenizer: Tokenizer,
    rows: int,
    dtype: str,
    aside: Path | None,
) -> None:
    special = dataset_tokenizers.special(tokenizer)
    about = families.about_theirs(name, config, rows, special, dtype)
    if not aside:
        about |= families.about_alone(name, config)
    else:
        about = families.merged(kept.about(aside), about)
        kept.copy_processors(aside, folder)
    marks = {f"{mark}_token": f"<{mark}>" for mark in ("bos", "eos", "pad") if f"<{mark}>" in special}
    as_theirs = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.length} | marks
    for file, content in (("config.json", about), ("tokenizer_config.json", as_theirs)):
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "README.md").write_text(card(path, name, config, position), encoding="utf-8")


def card(path: Path, name: str, config: Config, position: Position) -> str:
    """The model card: what it is, what it was trained on, and its held-out figures."""
    rows = [row for row in rundir.read_metrics(path) if row["kind"] == "eval" and row["step"] <= position.step]
    newest = max(rows, key=lambda row: row["step"], default={})
    figures = {key: x for key, x in newest.items() if key.startswith(("loss", "bits_per_byte")) and type(x) is float}
    tokens = sum(position.tokens.values())
    averaged = f", averaged with decay {config.optim.ema:g}" if config.optim.ema else ""
    begun = f"\nIt began with the weights of `{Path(config.init.run).name}`." if config.init.run else ""
    count = f"{params.count(params.table(config)):,}"
    lines = [
        f"---\n{families.card(name)}tags: [mot, {name}]\n---\n",
        f"# {config.run.name}\n",
        f"A {name} of {count} parameters: step {position.step} of a run of mot{averaged}.{begun}",
        "\n| | |\n|---|---|",
        *(f"| data | {source} ({config.data.shares.get(source, 0):g}) |" for source in config.data.sources),
        f"| digest of the data | {position.data} |",
        f"| tokens trained on | {tokens:,} |",
        f"| model FLOPs | {position.flops:.4g} |",
    ]
    if figures:
        lines += [f"\nHeld out, at step {newest['step']}:\n", "| figure | value |", "|---|---|"]
        lines += [f"| {key} | {value:.4f} |" for key, value in sorted(figures.items())]
    else:
        lines.append("\nThe run has no held-out evaluation of this step or an earlier one.")
    made = made_by(path / "checkpoints" / str(position.step))
    of = f", commit {made['commit'][:12]}" if made.get("commit") else ""  # and no name of a machine
    lines.append(f"\nThe checkpoint was made {made.get('time')} by mot {made.get('version')}{of}.")
    lines.append(f"`{prompt.NAME}` has the logits of a fixed prompt: `ids` [T], `logits` [T, V], float32.\n")
    return "\n".join(lines)

"""From a folder in Hugging Face's layout to a run directory whose checkpoint of step 0 has the weights.

All is judged before anything is written: the configuration, the names, shapes and dtypes of tensors, the tokenizer.
"""

import dataclasses
import math
import os
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from mot import checkpoint, optim, sharding
from mot.checkpoint import Position
from mot.config import Config, load
from mot.console import phase
from mot.data import sources
from mot.data.manifest import read_json as read_dataset
from mot.data.manifest import special_tokens
from mot.errors import UserError, reason
from mot.files import whole_folder, write_atomically
from mot.interop import aside as kept
from mot.interop import families, prompt, shards
from mot.interop.families import Piece, Row, Said
from mot.interop.shards import Header
from mot.interop.transforms import TRANSFORMS
from mot.model import flops, params
from mot.prepare.dataset_tokenizers import is_ready
from mot.runs import provenance, rundir, written
from mot.tokenizers import safetensors, text
from mot.train import restore, upcycle
from mot.train.state import state_of, trees

LENGTH = 1024  # tokens of a row, at most: the run's own configuration says so; one that begins from it has its own
BLOCK = 2**16  # numbers that are copied at once
THREADS = min(os.cpu_count() or 1, 4)
DEEP = 12  # layers that compile faster as a loop
CONFIG = "records.py"  # of configs: what an imported run is a run of
# No optimiser's moments lie in an imported checkpoint: in its own configuration norms alone train. A run that begins
# from it by init.run trains what its own configuration says.
FROZEN = ("attn", "ffn")  # of every stream; of ids also embedding and head


class Imported(NamedTuple):
    """What became of an import."""

    path: Path
    family: str
    arch: str
    parameters: int
    writes: bool  # does it go on with text?
    told: list[str]


def run(folder: Path, data: str, out: Path, arch: str = "") -> Imported:
    """Imports as `arch`, or as the family's own; raises `UserError`, with nothing written, where something is unfit."""
    about = safetensors.read_json(folder / "config.json")
    name, said = families.of_theirs(about, str(folder / "config.json"))
    tokenizer, ids = _tokenizer(folder, data)
    found = shards.renamed(shards.headers(folder), families.aliases(name))
    _refuse_lacking(data, said, name)
    own = _config(data, said.arch, said, about, out)
    _refuse_other_codes(data, said, name)
    _refuse_more_experts(found, own, folder)
    vocab = _rows_of_embedding(found, families.rows_of(name, own))
    pieces = families.pieces(families.rows_of(name, own), own, vocab)
    outside = sorted(tensor for tensor in found if tensor.startswith(said.outside))
    aside = {tensor: found.pop(tensor) for tensor in outside}
    _check(found, pieces, own, folder)
    if ids > vocab:
        raise UserError(
            f"{folder / 'tokenizer.json'} has ids up to {ids - 1}, and the embedding has {vocab} rows; must have a row "
            "for each id; take the tokenizer that belongs to the weights"
        )
    order = families.order_of_ids(said, own, vocab)
    stored = prompt.of_ours(prompt.read(folder), order)
    shards.refuse_taken(out)
    target = _config(data, arch or said.arch, said, about, out)
    weights, beyond = _read(found, pieces, own, order)
    for path, other in families.copies(name, own).items():
        weights[path][...] = weights[other]
    told = _told(own, vocab, said) + _told_of_aside(aside, said)
    if target != own:
        weights = params.paths(upcycle.weights(own, params.nest(weights), target))
        told += upcycle.told(own, target)
    with whole_folder(out) as partial:
        if families.keeps_aside(name):
            kept.write(partial, folder, about, aside)
        told += _write(partial, target, weights, tokenizer, stored, beyond, folder)
    return Imported(out, name, arch or said.arch, params.count(params.table(target)), _writes(target), told)


def _writes(config: Config) -> bool:
    return config.streams["text"].objective == "next_token"


def _tokenizer(folder: Path, data: str) -> tuple[Tokenizer, int]:
    """The text tokenizer of the dataset, which must be the folder's with mot's special tokens, and the folder's ids."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"{folder} has no tokenizer.json; save it there: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
        )
    about = read_dataset(Path(data))["tokenizers"]
    if "text" not in about:
        raise UserError(f"--data {data}: it has {', '.join(about)}, and no text; name a dataset that has")
    try:
        content = file.read_text(encoding="utf-8")
        theirs = Tokenizer.from_str(content)
    except Exception as error:  # of no type of its own
        raise UserError(f"{file} is no tokenizer of the tokenizers library ({reason(error)}); copy it again") from None
    ids = 1 + max(theirs.get_vocab(with_added_tokens=True).values(), default=-1)
    added = [token for token, i in about["text"]["special"].items() if i >= ids]
    ours = text.load(content, list(dict.fromkeys([*special_tokens(("text",)), *added])))
    if text.digest(ours) != about["text"]["digest"]:
        raise UserError(
            f"--data {data}: its text tokenizer is another one ({about['text']['digest']}) than that of {folder} "
            f"({text.digest(ours)}); prepare it with --tokenizer {file}"
        )
    return ours, ids


def _refuse_lacking(data: str, said: Said, name: str) -> None:
    """`UserError` where the data lack vectors that a family reads or makes, or have others."""
    known = read_dataset(Path(data))["tokenizers"]
    there = {stream: entry.get("width", 0) for stream, entry in known.items() if stream in said.needs}
    if there != dict(said.needs):
        needed = ", ".join(f"{stream} of {width} features" for stream, width in said.needs.items())
        has = ", ".join(f"{stream} of {width}" for stream, width in there.items()) or "none of these"
        raise UserError(
            f"--data {data}: a {name} has text, {needed}, and these data have {has}; prepare data that have them, as "
            f"--content {'|'.join(f'{stream}:{stream}' for stream in (*said.needs, 'text'))}"
        )


def _refuse_other_codes(data: str, said: Said, name: str) -> None:
    """`UserError` where ids of the data, which a family has codes for, are not those codes."""
    for stream, ids in said.ids.items():
        entry = read_dataset(Path(data))["tokenizers"].get(stream)
        if entry is not None and (entry.get("ids") != len(ids) or not is_ready(entry)):
            raise UserError(
                f"--data {data}: its {stream} has not the {len(ids)} codes of a {name}'s own {stream} tokenizer, but "
                f"{entry.get('ids', 0)} ids of another one; make them with that, and prepare them with --ids "
                f"{stream}={len(ids)}"
            )


def _config(data: str, arch: str, said: Said, about: Mapping[str, Any], out: Path) -> Config:
    """That of an architecture on the data, with the sizes and the block of a family.

    Its rows are no longer than a window of the family's attention, which then changes nothing.
    """
    values = said.values
    sizes = load.run(load.SHIPPED / "sizes.py", "sizes.py")["LAPTOP"]["small"]
    keys = dict(width="streams.text.width", ffn="streams.text.ffn", layers="model.layers", heads="model.heads")
    sizes = sizes | {key: values[dotted] for key, dotted in keys.items()}
    longest = about.get("max_position_embeddings")
    length = min(n for n in (longest, said.window, LENGTH) if type(n) is int and n > 0)
    try:
        tree = load.run(load.SHIPPED / CONFIG, CONFIG)["build"](data, arch, "small", sizes, str(length))
    except ValueError as error:
        raise UserError(str(error)) from None
    tree.model.scan = sizes["layers"] >= DEEP
    values = _named(said.values, tree.streams, data)
    absent = {key for key in values if key.startswith("streams.") and key.split(".")[1] not in tree.streams}
    tree.update_from_flattened_dict({key: x for key, x in values.items() if key not in absent})
    tree.run.update(root=str(out.parent), name=out.name)
    of_ids = ("embed",) if tree.model.tied else ("embed", "head")
    frozen = {name: FROZEN + (() if stream.latent else of_ids) for name, stream in tree.streams.items()}
    tree.optim.freeze = ",".join(f"{stream}.{part}" for stream, parts in frozen.items() for part in parts)
    return flops.resolve_with_steps(tree, sources.faults, optim.uncovered)


def _refuse_more_experts(found: Mapping[str, Header], config: Config, folder: Path) -> None:
    """`UserError` where there are more experts than tensors, before a name is made for each of theirs."""
    most = max(experts.experts for experts in config.ffn.values())
    if (count := most * sum(config.sparse)) > len(found):
        raise UserError(
            f"{folder}: config.json describes {count:,} experts in {sum(config.sparse)} layers, and the files have "
            f"{len(found)} tensors; name a whole model of one version"
        )


def _named(values: Mapping[str, Any], streams: Mapping[str, Any], data: str) -> dict[str, Any]:
    """The keys with the name of the data's stream of vectors, where they are of one."""
    if not any("{vectors}" in key for key in values):
        return dict(values)
    found = [name for name, stream in streams.items() if stream.latent]
    if len(found) != 1:
        raise UserError(
            f"--data {data}: its vectors are {', '.join(found) or 'none'}; this model draws pictures as vectors of one "
            "kind; prepare text with latents, as the autoencoder of its pictures makes them (docs/howto/own-data.md)"
        )
    if streams[found[0]].latent != (width := values.get("streams.{vectors}.latent", streams[found[0]].latent)):
        raise UserError(
            f"--data {data}: its {found[0]} have {streams[found[0]].latent} features, and this model's {width}; "
            "prepare latents of the autoencoder that belongs to it, cut into tokens as it does"
        )
    return {key.format(vectors=found[0]): value for key, value in values.items()}


def _rows_of_embedding(found: dict[str, Header], rows: Sequence[Row]) -> int:
    name = next(row.theirs for row in rows if row.ours == "embed/tokens")
    return found[name].shape[0] if name in found and found[name].shape else 0


def _check(found: dict[str, Header], pieces: Mapping[str, list[Piece]], config: Config, folder: Path) -> None:
    """`UserError` where names or shapes are not the family's."""
    # Old checkpoints have RoPE's wavelengths, and tied ones a second copy of the embedding.
    idle = {
        name
        for name in found
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.model.tied)
    }
    wanted = {name: families.shape_of(own) for name, own in pieces.items()}
    faults = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{name} is in no table of this family" for name in found.keys() - wanted.keys() - idle]
    faults += [
        f"{name} has shape {[*found[name].shape]}; must be {[*shape]}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    if faults:
        more = [f"and {len(faults) - 5} more"] if len(faults) > 5 else []
        raise UserError(
            f"{folder}: its tensors are not those that its config.json describes:\n  "
            + "\n  ".join([*sorted(faults)[:5], *more])
            + "\nname a whole model of one version"
        )
    for name in idle:
        del found[name]


def _read(
    found: dict[str, Header], pieces: Mapping[str, list[Piece]], config: Config, order: np.ndarray | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The parameters by path, and rows of theirs for which the tokenizer has no id, by path as well.

    What the family does not have, as the ends of another modality, begins as always. `order` is that of
    `families.order_of_ids`. Some tensors are in memory beside them, one for each thread that turns them.
    """
    specs = params.table(config)
    text_ids = config.streams["text"].ids
    weights = _begun(specs, {piece.ours for own in pieces.values() for piece in own}, text_ids, config.model.seed)
    beyond: dict[str, np.ndarray] = {}

    def place(name: str, whole: np.ndarray) -> None:
        own = pieces[name]
        for piece, x in zip(own, families.parts(whole, own), strict=True):
            target = weights[piece.ours][piece.index]
            if "vocab" in (axes := specs[piece.ours].axes):
                x, rest = _of_ids(x if order is None else x[order], text_ids)
                beyond.update({piece.ours: rest} if len(rest) else {})
                target = target[(slice(None),) * axes.index("vocab") + (slice(text_ids),)]
            _copy(TRANSFORMS[piece.transform].to_ours(x, target.shape), target)
        _refuse_changed(name, whole, own, weights)

    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(THREADS) as threads:  # numpy copies without Python's lock
        for name, whole in shards.tensors(found, "reading the weights"):
            waiting.append(threads.submit(place, name, whole))
            if len(waiting) > THREADS:
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()
    return weights, beyond


def _refuse_changed(name: str, whole: np.ndarray, own: list[Piece], weights: Mapping[str, np.ndarray]) -> None:
    """`UserError` where a tensor is not the sum that its family says it is."""
    if not TRANSFORMS[own[0].transform].is_added:
        return
    read = [TRANSFORMS[piece.transform].to_theirs(weights[piece.ours][piece.index]) for piece in own]
    if not np.array_equal(families.joined(read, own), whole.astype(np.float32)):
        raise UserError(
            f"{name} is no table whose first half of features is the column's and whose second half is the row's; it "
            "was trained, or is of another model"
        )


def _copy(x: np.ndarray, target: np.ndarray) -> None:
    """`target[...] = x`, in blocks that a cache holds: of a matrix that is turned four times as fast."""
    slowest = int(np.argmax(x.strides)) if x.ndim else 0
    x, target = np.moveaxis(np.atleast_1d(x), slowest, 0), np.moveaxis(np.atleast_1d(target), slowest, 0)
    n = max(BLOCK * len(x) // max(x.size, 1), 1)
    for first in range(0, len(x), n):
        target[first : first + n] = x[first : first + n].astype(np.float32)


def _begun(specs: params.Table, given: Collection[str], text_ids: int, seed: int) -> dict[str, np.ndarray]:
    """Room for what will be read, and initial values of what a family does not have, ids of other modalities too."""
    read = {path for path in given if "vocab" not in specs[path].axes or text_ids in specs[path].shape}
    others = {path: spec for path, spec in specs.items() if path not in read}
    fresh = params.paths(jax.jit(lambda: params.init(others, seed))()) if others else {}
    return {path: np.array(fresh[path]) if path in fresh else _room(specs[path].shape) for path in specs}


def _room(shape: Sequence[int]) -> np.ndarray:
    """A float32 array that JAX takes on a CPU as it lies, and does not copy: at a multiple of its 64 bytes."""
    held = np.empty(4 * math.prod(shape) + 64, np.uint8)
    first = -held.ctypes.data % 64
    return held[first : first + 4 * math.prod(shape)].view(np.float32).reshape(shape)


def _of_ids(x_VD: np.ndarray, ids: int) -> tuple[np.ndarray, np.ndarray]:
    """A row for each of our ids, new ones the mean of theirs, and those that are left."""
    if ids <= len(x_VD):
        return x_VD[:ids], x_VD[ids:]
    mean = x_VD.mean(0, dtype=np.float32)
    new = np.broadcast_to(mean, (ids - len(x_VD), x_VD.shape[1]))
    return np.concatenate([x_VD, new]), x_VD[:0]


def _told(config: Config, vocab: int, said: Said) -> list[str]:
    text_ids = config.streams["text"].ids
    told = []
    if said.window:
        told.append(
            f"its attention looks back {said.window} tokens; rows of {config.data.length} are no longer, so this run "
            "has no window and computes the same; longer rows would not"
        )
    if text_ids < vocab:
        told.append(
            f"{vocab - text_ids} rows of the embedding belong to no id of the tokenizer; an export of this run has them"
        )
    if text_ids > vocab:
        told.append(f"{text_ids - vocab} special tokens of mot's are new; their rows begin as the mean of all others")
    if others := config.vocab - text_ids:
        told.append(f"{others} ids of other modalities are new; their rows begin at random")
    return told


def _told_of_aside(aside: Mapping[str, Header], said: Said) -> list[str]:
    if not aside:
        return []
    numbers = sum(math.prod(header.shape) for header in aside.values())
    parts = [start.rstrip(".") for start in said.outside if any(name.startswith(start) for name in aside)]
    return [
        f"{len(aside)} tensors of {numbers:,} numbers are outside of this model ({', '.join(parts)}); they are kept "
        "for an export"
    ]


def _write(
    out: Path,
    config: Config,
    weights: dict[str, np.ndarray],
    tokenizer: Tokenizer,
    stored: dict[str, np.ndarray],
    beyond: dict[str, np.ndarray],
    folder: Path,
) -> list[str]:
    """Writes the run; its config.json, which makes it one, comes last. Gives what is to be told."""
    one = sharding.one_device()
    config, training, _ = restore.open_data(config)  # with the budgets of its rows
    position = Position(data=training.digest, tokenizers=dict(training.tokenizers))
    told = []
    with phase("the logits of a prompt"), jax.set_mesh(one):
        arrays = {path: jax.device_put(weights.pop(path), sharding.replicated(one)) for path in list(weights)}
        state = state_of(params.nest(arrays), config)
        if stored:
            apart = prompt.compare(folder, stored, state.params, config)
            told.append(f"the logits stored beside the weights are those of the run's (apart: {apart:.1g})")
        ids = prompt.ids_of(tokenizer)
        named = {path.replace("/", "."): rest for path, rest in beyond.items()}
        prompt.write(out, ids, prompt.logits(state.params, config, ids), **named)
    with phase("writing the checkpoint"), jax.set_mesh(one):
        checkpoint.save(out / "checkpoints", 0, trees(state), dataclasses.asdict(position), 1, provenance.made_by())
    write_atomically(out / "config.json", written.sealed(rundir.anchored(rundir.plain(config))))
    return told

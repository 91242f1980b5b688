"""From a folder in Hugging Face's layout to a run directory whose checkpoint of step 0 has the weights.

All is judged before anything is written: the configuration, the names, shapes and dtypes of tensors, the tokenizer.
"""

import dataclasses
from collections.abc import Mapping
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
from mot.files import make_folder, remove, write_atomically
from mot.interop import prompt, shards
from mot.interop.families import FAMILIES, Row, of_theirs, rows_of
from mot.interop.shards import Header
from mot.interop.transforms import TRANSFORMS
from mot.model import flops, params
from mot.runs import provenance, rundir, written
from mot.tokenizers import text
from mot.train import restore
from mot.train.state import state_of, trees

LENGTH = (
    1024  # tokens of a row, at most: the run's own configuration says so, and a run that begins from it has its own
)
# No optimiser's moments lie in an imported checkpoint: in its own configuration norms alone train. A run that begins
# from it by init.run trains what its own configuration says.
FROZEN = ("text.attn", "text.ffn", "text.embed", "text.head")


class Imported(NamedTuple):
    """What became of an import."""

    path: Path
    family: str
    parameters: int
    overrides: dict[str, str]  # of configs/records.py, with which a run can begin from this one
    config_file: str
    told: list[str]


def run(folder: Path, data: str, out: Path) -> Imported:
    """Raises `UserError`, with nothing written, where something does not fit."""
    about = shards.read_json(folder / "config.json")
    name, values = of_theirs(about, str(folder / "config.json"))
    tokenizer, ids = _tokenizer(folder, data)
    found = shards.headers(folder)
    file, overrides = _asked(data, values, about)
    config = _config(file, overrides, out)
    rows = rows_of(FAMILIES[name], config)
    vocab = _check(found, rows, config, folder)
    if ids > vocab:
        raise UserError(
            f"{folder / 'tokenizer.json'} has ids up to {ids - 1}, and the embedding has {vocab} rows; must have a row "
            "for each id; take the tokenizer that belongs to the weights"
        )
    stored = prompt.read(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists; nothing was overwritten; name a new folder")
    weights, beyond = _read(found, rows, config)
    told = _told(config.vocab, vocab)
    make_folder(out)
    try:
        count = params.count(params.table(config))
        told += _write(out, config, weights, tokenizer, stored, beyond, folder)
    except BaseException:
        remove(out)
        raise
    return Imported(out, name, count, overrides, file, told)


def _tokenizer(folder: Path, data: str) -> tuple[Tokenizer, int]:
    """The dataset's tokenizer, which must be the folder's with mot's special tokens, and the ids of the folder's."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"{folder} has no tokenizer.json; save it there: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
        )
    about = read_dataset(Path(data))["tokenizers"]
    if list(about) != ["text"]:
        raise UserError(
            f"--data {data}: it has {', '.join(about)}; an imported model has text alone; name a dataset of text, and "
            "let a run on the other one begin from the imported run (init.run)"
        )
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


def _asked(data: str, values: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The configuration's file with its arguments, and what is changed of it."""
    longest = about.get("max_position_embeddings")
    length = min(longest, LENGTH) if type(longest) is int and longest > 0 else LENGTH
    file = f"configs/records.py:data={data},arch=dense,size=small,length={length}"
    return file, {key: str(value) for key, value in values.items()}


def _config(file: str, overrides: dict[str, str], out: Path) -> Config:
    tree = load.read(file, overrides)
    tree.run.update(root=str(out.parent), name=out.name)
    tree.optim.freeze = ",".join(part for part in FROZEN if not (part == "text.head" and tree.model.tied))
    return flops.resolve_with_steps(tree, sources.faults, optim.uncovered)


def _names(row: Row, config: Config) -> list[str]:
    """The names of a row's tensors: one, or one of each layer."""
    layers = range(config.model.layers) if "{layer}" in row.theirs else (0,)
    return [row.theirs.format(layer=layer) for layer in layers]


def _check(found: dict[str, Header], rows: Mapping[str, Row], config: Config, folder: Path) -> int:
    """The rows of the embedding; `UserError` where names or shapes are not the family's."""
    specs = params.table(config)
    embedding = found.get(rows["embed/tokens"].theirs)
    vocab = embedding.shape[0] if embedding and embedding.shape else 0
    wanted: dict[str, tuple[int, ...]] = {}
    for path, row in rows.items():
        spec = specs[path]
        ours = tuple(vocab if axis == "vocab" else n for axis, n in zip(spec.axes, spec.shape, strict=True))
        ours = ours[1:] if "{layer}" in row.theirs else ours
        wanted |= dict.fromkeys(_names(row, config), TRANSFORMS[row.transform].shape(ours))
    # Old checkpoints have RoPE's wavelengths, and tied ones a second copy of the embedding.
    idle = {
        name
        for name in found
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.model.tied)
    }
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
    return vocab


def _read(
    found: dict[str, Header], rows: Mapping[str, Row], config: Config
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The parameters by path, and rows of theirs for which the tokenizer has no id, by path as well.

    A tensor is in memory beside them at a time.
    """
    specs = params.table(config)
    weights = {path: np.empty(specs[path].shape, np.float32) for path in rows}
    place = {
        name: (path, row, layer if "{layer}" in row.theirs else None)
        for path, row in rows.items()
        for layer, name in enumerate(_names(row, config))
    }
    beyond: dict[str, np.ndarray] = {}
    for name, x in shards.tensors(found, "reading the weights"):
        path, row, layer = place[name]
        if "vocab" in specs[path].axes:
            x, rest = _of_ids(x, config.vocab)
            beyond |= {path: rest} if len(rest) else {}
        target = weights[path] if layer is None else weights[path][layer]
        target[...] = TRANSFORMS[row.transform].to_ours(x, target.shape)
    return weights, beyond


def _of_ids(x_VD: np.ndarray, ids: int) -> tuple[np.ndarray, np.ndarray]:
    """A row for each of our ids, new ones the mean of theirs, and those that are left."""
    if ids <= len(x_VD):
        return x_VD[:ids], x_VD[ids:]
    new = np.broadcast_to(x_VD.mean(0), (ids - len(x_VD), x_VD.shape[1]))
    return np.concatenate([x_VD, new]), x_VD[:0]


def _told(ids: int, vocab: int) -> list[str]:
    if ids < vocab:
        return [f"{vocab - ids} rows of the embedding belong to no id of the tokenizer; they are kept for an export"]
    if ids > vocab:
        return [f"{ids - vocab} special tokens of mot's are new; their rows begin as the mean of all others"]
    return []


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
    with phase("writing the checkpoint"), jax.set_mesh(one):
        arrays = {}
        for path in list(weights):
            arrays[path] = jax.device_put(weights.pop(path), sharding.replicated(one))
        state = state_of(params.nest(arrays), config)
        del arrays
        checkpoint.save(out / "checkpoints", 0, trees(state), dataclasses.asdict(position), 1, provenance.made_by())
        del state
    with phase("reading it back, and the logits of a prompt"):
        state, _ = restore.start(config, out, one)
        told = []
        if stored:
            apart = prompt.compare(folder, stored, state.params, config)
            told.append(f"the logits stored beside the weights are those of the run's (apart: {apart:.1g})")
        ids = prompt.ids_of(tokenizer)
        named = {path.replace("/", "."): rest for path, rest in beyond.items()}
        prompt.write(out, ids, prompt.logits(state.params, config, ids), **named)
    write_atomically(out / "config.json", written.sealed(rundir.anchored(rundir.plain(config))))
    return told

"""A model from another's weights: MoE or MoT from dense, MoT x MoE from MoT, by a map of paths (2212.05055)."""

import difflib
import math
import re
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mot.config import Config
from mot.errors import UserError
from mot.model import params

TRANSFER = ("transfer", "base_width", "base_head_size", "base_layers")  # keys of optim that decide on multipliers


class _Source(NamedTuple):
    """The run that the weights come from."""

    config: Config
    arrays: dict  # trained, by path
    specs: params.Table


class _Unfit(Exception):
    """A parameter cannot be copied; the message says which and why."""


def weights(source: Config, trained: dict, target: Config) -> dict:
    """Initial parameters of `target`: what `source`'s `trained` ones have, copied to where they are needed.

    Each layer comes from the same layer, each tower from the one that serves its first stream, each expert from the
    source's FFN (or QKV and O), or from its slice of it in turn where experts are narrower. What the source lacks, as a
    router, begins as always, and so do causal routers, and ids that come after all of the source's. `init.noise` times
    a matrix's own root mean square is added to every copy but the first. Where `init.match` names some parameters, the
    others begin as always.
    Raises `UserError` where shapes, the block's options or the multipliers of a transfer do not fit, and where nothing
    matches, or nothing that matches is in the source.
    """
    _refuse_other_block(source, target)
    origin = _Source(source, params.paths(trained), params.table(source))
    specs = params.table(target)
    chosen = _chosen(specs, target.init.match)
    fresh = params.paths(jax.jit(lambda: params.init(specs, target.model.seed))())
    result, faults = {}, []
    for path, spec in specs.items():
        if path not in chosen:
            result[path] = fresh[path]
            continue
        in_block = bool(params.parse(path).stack)
        if in_block and target.model.layers != source.model.layers:
            faults.append(
                f"model.layers: {target.model.layers}, the source has {source.model.layers} (init.deeper adds some)"
            )
            break
        copy = _in_block if in_block else _outside
        try:
            result[path] = copy(path, spec, fresh[path], origin, target)
        except _Unfit as error:
            faults.append(str(error))
    if faults:
        raise UserError(
            f"init.run: the model of {target.init.run} does not fit this one; name a run of this one's sizes, or "
            "match by init.match what fits:\n  " + "\n  ".join(dict.fromkeys(faults))
        )
    if all(result[path] is fresh[path] for path in chosen):
        raise UserError(
            f"init.match: {target.init.match!r} matches {', '.join(chosen[:3])}, and {target.init.run} has no such "
            f"parameter; it has {', '.join([*origin.arrays][:3])}, ...; match others, or write ''"
        )
    return params.nest(result)


BLOCK = ("activation", "norm_offset", "embed_scale")  # keys of model that say what a block makes of its weights


def _refuse_other_block(source: Config, target: Config) -> None:
    """`UserError` where weights would mean something else here."""
    pairs = {key: (getattr(source.model, key), getattr(target.model, key)) for key in BLOCK}
    if unlike := [
        f"model.{key}: {ours!r}, there it is {theirs!r}" for key, (theirs, ours) in pairs.items() if ours != theirs
    ]:
        raise UserError(f"init.run: the weights there mean something else here: {'; '.join(unlike)}; write the same")


def _chosen(specs: params.Table, match: str) -> list[str]:
    """The parameters that come from the source; `UserError` where none matches."""
    if chosen := [path for path in specs if re.search(match, path)]:
        return chosen
    near = difflib.get_close_matches(match, specs, 3, cutoff=0.3) or [*specs][:3]
    raise UserError(
        f"init.match: {match!r} matches no parameter; this model's are {', '.join(near)}, ...; `mot config` names its "
        "towers; mend it, or write '' to take all"
    )


def _outside(path: str, spec: params.Spec, fresh: jax.Array, source: _Source, target: Config) -> jax.Array:
    """A parameter outside the blocks: the source's, or fresh where it has none."""
    origin = _outer(path, source.config)
    if origin not in source.arrays:
        return fresh
    value = source.arrays[origin]
    _refuse_other_multiplier(spec, source.specs[origin], source.config, target)
    if value.shape == spec.shape:
        return value
    if "vocab" not in spec.axes or not _keeps_ids(source.config, target):
        raise _Unfit(f"{path}: {spec.shape}, but the source's {origin} is {value.shape}")
    return _of_ids(value, fresh, spec.axes.index("vocab"), path, origin)


def _keeps_ids(source: Config, target: Config) -> bool:
    """Do the ids of all streams of both stand for the same? Then one vocabulary is the other with more at its end."""
    both = [(source.streams[name], stream) for name, stream in target.streams.items() if name in source.streams]
    return all((a.first_id, a.ids) == (b.first_id, b.ids) for a, b in both)


def _of_ids(value: jax.Array, fresh: jax.Array, axis: int, path: str, origin: str) -> jax.Array:
    """A parameter of another vocabulary: ids that both have are the source's, those that are new begin as always."""
    kept = [slice(None)] * fresh.ndim
    kept[axis] = slice(min(value.shape[axis], fresh.shape[axis]))
    part = value[tuple(kept)]
    if part.shape != fresh[tuple(kept)].shape:
        raise _Unfit(f"{path}: {fresh.shape}, but the source's {origin} is {value.shape}")
    return fresh.at[tuple(kept)].set(part)


def _outer(path: str, source: Config) -> str:
    """The path that a parameter outside the blocks has in the source."""
    if not path.startswith("final_norm/"):
        return path
    tower = params.parse(path).tower
    return f"final_norm/{source.last_norms.get(tower, tower)}/scale"


def _in_block(path: str, spec: params.Spec, fresh: jax.Array, source: _Source, target: Config) -> jax.Array:
    """A parameter of a stack of layers `[L, ...]`, each layer's from the source's same layer."""
    origins = _origins(path, source, target)
    if not any(origin in source.arrays for origin in origins.values()):
        return fresh
    stacks = source.config.stacks
    tower = params.parse(path).tower
    layers = []
    for n, (layer, origin) in enumerate(origins.items()):
        if origin not in source.arrays:
            layers.append(fresh[n])
            continue
        value = np.asarray(source.arrays[origin][_layers(source.config, stacks[layer]).index(layer)])
        copied = _fit(value, spec.axes[1:], spec.shape[1:], "expert" in source.specs[origin].axes)
        if copied is None:
            raise _Unfit(f"{path}: {spec.shape[1:]}, which {origin}, {value.shape}, cannot be copied to")
        _refuse_other_multiplier(spec, source.specs[origin], source.config, target)
        size = math.prod(spec.shape[2:] if "expert" in spec.axes else spec.shape[1:])
        # Copies that hold the source's numbers once.
        kept = value.size // size if params.parse(origin).tower == tower else 0
        layers.append(_noisy(copied, spec, kept, path, layer, target))
    return jnp.stack(layers)


def _origins(path: str, source: _Source, target: Config) -> dict[int, str]:
    """Where each layer of a parameter in a block comes from, if the source has it: the path there, by layer."""
    stack, component, tower, weight = params.parse(path)
    if tower not in source.config.streams or params.is_causal(path):
        return {}
    stacks, of_source = source.config.stacks, source.config.component(component)
    return {
        layer: f"blocks/{stacks[layer]}/{component}/{of_source.at(layer)[tower]}/{weight}"
        for layer in _layers(target, stack)
    }


def told(source: Config, target: Config) -> list[str]:
    """What of a run's weights another one begins with: what it has and was not given, and what was not taken of it.

    By `component/tower`, with the range of layers where only some of them are meant.
    """
    specs = params.table(source)
    origin = _Source(source, dict.fromkeys(specs), specs)
    wanted = params.table(target)
    chosen = set(_chosen(wanted, target.init.match))
    new: dict[str, set[int | None]] = {}
    taken: set[tuple[str, int | None]] = set()
    for path in wanted:
        found = _origins(path, origin, target) if params.parse(path).stack else {None: _outer(path, source)}
        for layer in _layers(target, params.parse(path).stack) or [None]:
            if path in chosen and found.get(layer) in specs:
                taken.add((found[layer], layer))
            else:
                new.setdefault(_part(path), set()).add(layer)
    left: dict[str, set[int | None]] = {}
    for path in specs:
        for layer in _layers(source, params.parse(path).stack) or [None]:
            if (path, layer) not in taken:
                left.setdefault(_part(path), set()).add(layer)
    lines = [("init.run gives nothing for", new, target), ("not taken from init.run:", left, source)]
    return [f"{words} {', '.join(_where(*item, of) for item in parts.items())}" for words, parts, of in lines if parts]


def _part(path: str) -> str:
    """`ffn/text` of its matrices, `ffn/text/router` of its router: what can be new or left by itself."""
    parsed = params.parse(path)
    if not parsed.stack:
        return path.rpartition("/")[0]  # embed, head, final_norm/text, latent/image
    name = f"{parsed.component}/{parsed.tower}"
    apart = parsed.weight.startswith(("router", params.CAUSAL, "shared_")) or params.is_modulation(path)
    return f"{name}/{parsed.weight}" if apart else name


def _where(part: str, layers: set[int | None], config: Config) -> str:
    """`attn/image in layers 0:2 5:6`; the part alone where it is meant in all layers."""
    if None in layers or len(layers) == config.model.layers:
        return part
    ordered = sorted(layers)
    firsts = [layer for layer in ordered if layer - 1 not in layers]
    ends = [layer + 1 for layer in ordered if layer + 1 not in layers]
    return f"{part} in layers {' '.join(f'{first}:{end}' for first, end in zip(firsts, ends, strict=True))}"


def _refuse_other_multiplier(spec: params.Spec, of_source: params.Spec, source: Config, target: Config) -> None:
    """`_Unfit` where a parameter would mean something else: what it gives is multiplied by another number here.

    The message is the same for all parameters, as the transfer is.
    """
    if math.isclose(spec.multiplier, of_source.multiplier):
        return
    theirs, ours = (
        ", ".join(f"{key}={getattr(config.optim, key)!r}" for key in TRANSFER) for config in (source, target)
    )
    raise _Unfit(
        f"optim: the model there was trained with {theirs}, and its weights are multiplied otherwise than here, with "
        f"{ours}; give this run the same"
    )


def _layers(config: Config, stack: str) -> list[int]:
    """Which layers of the model a stack holds."""
    return [i for i, name in enumerate(config.stacks) if name == stack]


def _fit(value: np.ndarray, axes: tuple[str, ...], shape: tuple[int, ...], has_experts: bool) -> np.ndarray | None:
    """A layer's matrix as the target's shape: itself, copies of it, or its slices in turn; None if neither fits."""
    if value.shape == shape:
        return value
    if "expert" not in axes or has_experts or len(value.shape) != len(shape) - 1:
        return None
    E, *of_expert = shape
    if value.shape == tuple(of_expert):
        return np.broadcast_to(value, shape)
    narrower = [i for i, (whole, part) in enumerate(zip(value.shape, of_expert, strict=True)) if whole != part]
    if len(narrower) != 1:
        return None
    axis = narrower[0]
    if axes[1 + axis] != "mlp" or value.shape[axis] % of_expert[axis]:
        return None
    slices = np.split(value, value.shape[axis] // of_expert[axis], axis=axis)
    return np.stack([slices[e % len(slices)] for e in range(E)])


def _noisy(value: np.ndarray, spec: params.Spec, kept: int, path: str, layer: int, target: Config) -> jax.Array:
    """Noise on copies, so that they can part; the first `kept` experts, or a matrix if it is kept, stay as they are."""
    if not target.init.noise or spec.std is None:
        return jnp.asarray(value)
    key = jax.random.fold_in(jax.random.key(target.model.seed), zlib.crc32(f"{path}/{layer}/noise".encode()))
    noise = jax.random.normal(key, (value.size,)).reshape(value.shape) * np.sqrt(np.mean(value**2))
    number = np.arange(value.shape[0] if "expert" in spec.axes else 1)
    moved = (number >= kept).reshape(-1, *(1,) * (value.ndim - 1))
    return value + target.init.noise * jnp.where(jnp.broadcast_to(moved, value.shape), noise, 0)

"""A model from another's weights: MoE or MoT from dense, MoT x MoE from MoT, by a map of paths (2212.05055)."""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from mot.config import Config
from mot.errors import UserError
from mot.model import params


def weights(source: Config, trained: dict, target: Config) -> dict:
    """Initial parameters of `target`: what `source`'s `trained` ones have, copied to where they are needed.

    Each layer comes from the same layer, each tower from the one that serves its first stream, each expert from the
    source's FFN (or QKV and O), or from its slice of it in turn where experts are narrower. What the source lacks, as a
    router, begins as always, and so do causal routers. `init.noise` times a matrix's own root mean square is added to
    every copy but the first.
    Raises `UserError` where shapes do not fit.
    """
    specs = params.table(target)
    old = params.paths(trained)
    fresh = params.paths(jax.jit(lambda: params.init(specs, target.model.seed))())
    known = params.table(source)
    places = {stack: _layers(target, stack) for stack in target.stacks}
    result, faults = {}, []
    for path, spec in specs.items():
        if not path.startswith("blocks/"):
            origin = _outside(path, source)
            found = old.get(origin)
            if found is not None and found.shape != spec.shape:
                faults.append(f"{path}: {spec.shape}, but the source's {origin} is {found.shape}")
            result[path] = fresh[path] if found is None else found
            continue
        _, stack, component, tower, weight = path.split("/")
        if target.model.layers != source.model.layers:
            faults.append(f"model.layers: {target.model.layers}, the source has {source.model.layers}")
            break
        if tower not in source.streams:
            result[path] = fresh[path]
            continue
        before = getattr(source.towers, component)[tower]
        layers = []
        for n, i in enumerate(places[stack]):
            origin = f"blocks/{source.stacks[i]}/{component}/{before}/{weight}"
            if origin not in old or params.is_causal(path):
                layers.append(fresh[path][n])
                continue
            value = np.asarray(old[origin][_layers(source, source.stacks[i]).index(i)])
            copied = _fit(value, spec.axes[1:], spec.shape[1:], "expert" in known[origin].axes)
            if copied is None:
                faults.append(f"{path}: {spec.shape[1:]}, which {origin}, {value.shape}, cannot be copied to")
                break
            size = math.prod(spec.shape[1:]) if "expert" not in spec.axes else math.prod(spec.shape[2:])
            layers.append(_noisy(copied, spec, (before == tower) * (value.size // size), path, i, target))
        else:
            result[path] = jnp.stack(layers)
    if faults:
        raise UserError("init.run: the model there does not fit this one:\n  " + "\n  ".join(dict.fromkeys(faults)))
    return params.nest(result)


def _layers(config, stack) -> list[int]:
    """Which layers of the model a stack holds."""
    return [i for i, name in enumerate(config.stacks) if name == stack]


def _outside(path, source) -> str:
    """The source's path of a parameter outside the blocks."""
    if not path.startswith("final_norm/"):
        return path
    tower = path.split("/")[1]
    return f"final_norm/{source.towers.norm.get(tower, tower)}/scale"


def _fit(value, axes, shape, has_experts):
    """A layer's matrix as the target's shape: itself, copies of it, or its slices in turn; None if neither fits."""
    if value.shape == shape:
        return value
    if "expert" not in axes or has_experts or len(value.shape) != len(shape) - 1:
        return None
    E, one = shape[0], shape[1:]
    if value.shape == one:
        return np.broadcast_to(value, shape)
    cut = [i for i, (a, b) in enumerate(zip(value.shape, one, strict=True)) if a != b]
    if len(cut) != 1 or axes[1 + cut[0]] != "mlp" or value.shape[cut[0]] % one[cut[0]]:
        return None
    slices = np.split(value, value.shape[cut[0]] // one[cut[0]], axis=cut[0])
    return np.stack([slices[e % len(slices)] for e in range(E)])


def _noisy(value, spec, kept, path, layer, target):
    """Noise on copies, so that they can part; the first `kept` experts, or a matrix if it is kept, stay as they are."""
    if not target.init.noise or spec.std is None:
        return jnp.asarray(value)
    key = jax.random.fold_in(jax.random.key(target.model.seed), zlib.crc32(f"{path}/{layer}/noise".encode()))
    noise = jax.random.normal(key, (value.size,)).reshape(value.shape) * np.sqrt(np.mean(value**2))
    number = np.arange(value.shape[0] if "expert" in spec.axes else 1)
    moved = (number >= kept).reshape(-1, *(1,) * (value.ndim - 1))
    return value + target.init.noise * jnp.where(jnp.broadcast_to(moved, value.shape), noise, 0)

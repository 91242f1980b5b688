"""A trained model made deeper or wider by a published rule, before its weights go to another architecture.

Deeper, `init.deeper`:
* stack: the layers once more on top of themselves (G_stack, 2405.15319); the model is another one at first.
* identity: after each group of layers a copy of its last one, whose branches end in zeros (LLaMA Pro, 2401.02415).

Wider, `init.wider`:
* clone: widths, heads and hidden units a whole number of times as many, each as the ones before, and matrices divided
  by how often their inputs are there (HyperCloning, 2409.12903).

What identity and clone give computes what the source did.
"""

import math
from dataclasses import replace

import numpy as np

from mot.config import Config
from mot.errors import UserError
from mot.model import params

ENDS = ("wo", "w2", "shared_w2")  # what a branch ends in


def grown(source: Config, trained: dict, target: Config) -> tuple[Config, dict]:
    """A source of the target's depth and width, and its parameters, both as they were where nothing is to grow.

    Raises `UserError` where a rule cannot make what the target needs.
    """
    arrays = params.paths(trained)
    if target.init.deeper:
        source, arrays = _deeper(source, arrays, target)
    if target.init.wider:
        source, arrays = _wider(source, arrays, target)
    return source, params.nest(arrays)


def _deeper(source: Config, arrays: dict, target: Config) -> tuple[Config, dict]:
    rule, now, then = target.init.deeper, source.model.layers, target.model.layers
    said = f"init.deeper: {rule!r}, from {now} layers to {then}"
    if len(set(source.stacks)) > 1 or source.crossed or any(s.predicts for s in source.streams.values()):
        raise UserError(f"{said}: only where all layers are alike; begin from another run, or write ''")
    if then <= now or (then % now if rule == "stack" else now % (then - now)):
        allowed = f"a multiple of {now}" if rule == "stack" else f"{now} and a divisor of it"
        raise UserError(f"{said}: more are needed, {allowed}; change model.layers")
    each = now if rule == "stack" else now // (then - now)  # layers of the source, before one is new
    origin = [i % now for i in range(then)]
    if rule == "identity":
        origin = [i - i // (each + 1) - (i % (each + 1) == each) for i in range(then)]
    copies = [i for i in range(then) if rule == "identity" and i % (each + 1) == each]
    found = {}
    for path, x in arrays.items():
        parsed = params.parse(path)
        found[path] = np.asarray(x)[origin] if parsed.stack else x
        if parsed.stack and parsed.weight in ENDS:
            found[path][copies] = 0
    return replace(source, model=replace(source.model, layers=then)), found


def _wider(source: Config, arrays: dict, target: Config) -> tuple[Config, dict]:
    config = _widened(source, target)
    before, after = params.table(source), params.table(config)
    found = {path: _cloned(path, np.asarray(x), before[path], after[path], target) for path, x in arrays.items()}
    first = next(iter(source.streams))
    n = config.streams[first].width // source.streams[first].width
    if source.model.tied:  # an embedding has no inputs, and a head has
        found["head/out"] = np.tile(np.asarray(arrays["embed/tokens"]).T, (n, 1)) / n
    if source.model.embed_scale:
        found["embed/tokens"] = found["embed/tokens"] * n**-0.5
    return config, found


def _widened(source: Config, target: Config) -> Config:
    """The source's configuration with the target's sizes; raises `UserError` unless these are multiples of its own."""
    heads = ("heads", "kv_heads")
    streams = {name: target.streams.get(name, s) for name, s in source.streams.items()}
    pairs = [
        (f"streams.{name}.{key}", getattr(source.streams[name], key), getattr(s, key))
        for name, s in streams.items()
        for key in ("width", "ffn")
    ]
    pairs += [(f"model.{key}", getattr(source.model, key), getattr(target.model, key)) for key in heads]
    faults = [f"{key}: {now}, the source has {then}; must be a multiple" for key, then, now in pairs if now % then]
    if source.model.head_size != target.model.head_size:
        faults.append(
            f"model.head_size: {target.model.head_size}, the source has {source.model.head_size}; must be the same"
        )
    if source.model.heads * target.model.kv_heads != source.model.kv_heads * target.model.heads:
        faults.append("model.heads, kv_heads: must grow alike")
    if target.model.tied:
        faults.append("model.tied: True; a head divides by what an embedding does not; write False")
    if faults:
        raise UserError("init.wider: 'clone' does not fit:\n  " + "\n  ".join(faults))
    widths = {
        name: replace(source.streams[name], width=stream.width, ffn=stream.ffn) for name, stream in streams.items()
    }
    model = replace(source.model, **{key: getattr(target.model, key) for key in heads}, tied=False)
    return replace(source, streams=widths, model=model)


def _cloned(path: str, x: np.ndarray, before: params.Spec, after: params.Spec, target: Config) -> np.ndarray:
    """A parameter, each wide axis as often as it grows; noise on all but the first copy (`init.noise`)."""
    shape, grown_shape = before.shape, after.shape
    halves = 2 if params.is_modulation(path) else 1  # scales, then shifts
    if halves == 2:
        x = x.reshape(*shape[:-1], 2, shape[-1] // 2)
        shape, grown_shape = x.shape, (*grown_shape[:-1], 2, grown_shape[-1] // 2)
    times = [new // old for old, new in zip(shape, grown_shape, strict=True)]
    is_matrix = before.std is not None and len(params.sides(before)[1]) > 0
    inputs = params.sides(before)[0] if is_matrix else ()
    cloned = np.tile(x, times) / math.prod(times[i] for i in inputs if before.axes[i] in params.WIDE)
    if target.init.noise and is_matrix and max(times) > 1:
        rng = np.random.default_rng([target.model.seed, len(path), *path.encode()])
        noise = rng.standard_normal(cloned.shape) * np.sqrt(np.mean(cloned**2)) * target.init.noise
        noise[tuple(slice(n) for n in shape)] = 0
        cloned = cloned + noise
    return cloned.reshape(after.shape).astype(np.float32)

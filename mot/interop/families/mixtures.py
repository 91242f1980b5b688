"""Mixtures of transformers by role: a tower of text and of what is read, another one of latents that flow draws.

What these have in common; each has a module of its own. In a `config.json`'s words the stream that is drawn is
{vectors}: the data name it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mot.config import Config
from mot.interop.families.fields import value_at
from mot.interop.families.rows import Row
from mot.model import params

BLOCK = "blocks/main"
# The weights of a layer: where they lie, and how theirs is turned.
WEIGHTS = {
    "wq": ("attn", "split_heads"),
    "wk": ("attn", "split_heads"),
    "wv": ("attn", "split_heads"),
    "wo": ("attn", "join_heads"),
    "q_norm": ("attn", "same"),
    "k_norm": ("attn", "same"),
    "w1": ("ffn", "transpose"),
    "w3": ("ffn", "transpose"),
    "w2": ("ffn", "transpose"),
    "attn": ("norm", "same"),
    "ffn": ("norm", "same"),
}
# Keys of ours that make such a model.
MODEL = dict(norm="pre", qk_norm="rms", activation="swiglu", norm_offset=False, embed_scale=False, tied=False)
DRAWN = {
    "objective": "flow",
    "entry.kind": "linear",
    "entry.bias": True,
    "diffusion.time": "add",
    "diffusion.time_features": "dit",
}


def tower(stream: str, at: str, names: Mapping[str, str]) -> Iterator[Row]:
    """The matrices and norms of a tower's layers; `at` has {layer}, and `names` theirs by our weight."""
    for weight, theirs in names.items():
        component, transform = WEIGHTS[weight]
        yield Row(f"{at}.{theirs}.weight", f"{BLOCK}/{component}/{stream}/{weight}", transform)


def biases(stream: str, at: str, names: Mapping[str, str]) -> Iterator[Row]:
    """Those of queries, keys and values."""
    for x in "qkv":
        yield Row(f"{at}.{names[f'w{x}']}.bias", f"{BLOCK}/attn/{stream}/{x}_bias", "split_bias")


def ends(stream: str, names: Mapping[str, str]) -> Iterator[Row]:
    """How latents and their noise level enter, and how what is predicted leaves; `names` are theirs by our weight."""
    for weight, theirs in names.items():
        yield Row(f"{theirs}.weight", f"latent/{stream}/{weight}", "transpose")
        yield Row(f"{theirs}.bias", f"latent/{stream}/{weight}_bias", "same")


def dotted(model: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of `model` and of the stream that is drawn, as `Said` has them."""
    values = {f"model.{key}": x for key, x in model.items()}
    return values | {f"streams.{{vectors}}.{key}": x for key, x in drawn.items()}


def drawn(config: Config) -> str:
    """The stream of latents that flow draws; "" where there is none, or several."""
    found = [name for name, stream in config.streams.items() if stream.diffuses]
    return found[0] if len(found) == 1 else ""


def faults(config: Config, values: Mapping[str, Any]) -> Iterator[str]:
    """Why a configuration is no such model; `values` are those it must have, by dotted key with {vectors}."""
    name = drawn(config)
    if not name or "text" not in config.streams:
        kinds = ", ".join(f"{name} ({s.objective})" for name, s in config.streams.items())
        yield f"streams: {kinds}; it must have text, and one stream of vectors with objective 'flow'"
        return
    for component in ("attn", "ffn", "norm"):
        towers = config.component(component)
        if any(found != (name if stream == name else "text") for stream, found in towers.written.items()):
            yield f"towers.{component}: {towers.written}; {name} must have its own, all others text's"
        if any(experts.experts for experts in towers.experts.values()):
            yield f"{component}: a tower has experts; must be 0"
    if config.streams["text"].objective != "next_token":
        yield f"streams.text.objective: {config.streams['text'].objective!r}; must be 'next_token'"
    if (width := config.streams[name].width) != config.streams["text"].width:
        yield f"streams.{name}.width: {width}; must be that of text, {config.streams['text'].width}"
    if (ffn := config.streams[name].ffn) != config.streams["text"].ffn:
        yield f"streams.{name}.ffn: {ffn}; must be that of text, {config.streams['text'].ffn}"
    for key, wanted in values.items():
        if (found := value_at(config, key.format(vectors=name))) != wanted:
            yield f"{key.format(vectors=name)}: {found!r}; must be {wanted!r}"
    if config.data.blocks != "units":
        yield f"data.blocks: {config.data.blocks!r}; must be 'units'"
    if any(spec.multiplier != 1 for spec in params.table(config).values()):
        yield f"optim.transfer: {config.optim.transfer!r}; it multiplies what matrices give, which no family does"

"""Chameleon (2405.09818) and Anole (2407.06135): text and images' codes as ids of one vocabulary, in one tower.

Queries and keys have a LayerNorm whose scales and biases are a head's own. The 34B norms what attention and FFN give
(`swin_norm`), the 7B what they read. The codes have names in `vocabulary_map`, `IMGIMG` and the digits of the code as
letters, from A for 0, with Z at the end. Their ids lie together amid those of text, in an order of their own; ours are
in the order of codes. The image tokenizer (`model.vqmodel`) is outside of our model.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mot.config import Config
from mot.errors import UserError
from mot.interop.families import rope, text
from mot.interop.families.fields import flat, refuse, typed, unsaid
from mot.interop.families.rows import Row, Said

NORM_EPS = 1e-5  # of the LayerNorms, whatever the file says of the others
MODEL = dict(qk_norm="layer", activation="swiglu", norm_offset=False, embed_scale=False, qkv_bias=False)
USUAL = dict(rms_norm_eps=NORM_EPS, rope_theta=10_000.0, tie_word_embeddings=False, swin_norm=False)
ONLY = text.ONLY | {"hidden_act": ("silu",), "rms_norm_eps": (NORM_EPS,), "swin_norm": (False, True)}
KNOWN = {field.theirs for field in text.FIELDS} - {"rms_norm_eps"}
# That of shards is of how it was trained; the others are of images as pixels.
IGNORED = {"model_parallel_size", "vq_config", "vocabulary_map", "image_token_id"}
OUTSIDE = ("model.vqmodel.",)
NAME = "IMGIMG"
NORMS = tuple(
    Row(f"model.layers.{{layer}}.self_attn.{x}_norm.{theirs}", f"blocks/main/attn/text/{x}_norm{ours}", "same")
    for x in "qk"
    for theirs, ours in (("weight", ""), ("bias", "_bias"))
)


def said(name: str, about: Mapping[str, Any], where: str) -> Said:
    given = flat(about)
    stretched, faults = rope.said(given.pop("rope_scaling", None))
    refuse(faults + unsaid(given, KNOWN | IGNORED, ONLY), where)
    given = USUAL | {key: value for key, value in given.items() if value is not None}
    given.setdefault("num_key_value_heads", given.get("num_attention_heads"))
    if all(type(given.get(k)) is int for k in ("hidden_size", "num_attention_heads")):
        size = given["hidden_size"] // max(given["num_attention_heads"], 1)
        refuse(
            [f"head_dim: {given['head_dim']!r}; allowed: {size}"] if given.get("head_dim", size) != size else [], where
        )
        given["head_dim"] = size
    values = {field.ours: typed(field, given.get(field.theirs), where) for field in text.FIELDS}
    values |= stretched | {f"model.{key}": value for key, value in MODEL.items()}
    values["model.norm"] = "post" if given["swin_norm"] else "pre"
    codes = _codes(about.get("vocabulary_map"), where)
    values |= {f"streams.image.{key}": values[f"streams.text.{key}"] for key in ("width", "ffn")}
    values["streams.image.first_id"] = min(codes)
    return Said("dense", values, OUTSIDE, ids={"image": codes})


def _codes(vocabulary: Any, where: str) -> tuple[int, ...]:
    """The id of each code of an image; raises `UserError` unless all codes have one, and these lie together."""
    if not isinstance(vocabulary, Mapping) or not all(type(i) is int for i in vocabulary.values()):
        raise UserError(f"{where}: vocabulary_map must give each token its id, as that of Chameleon does; repair it")
    found = {}
    for token, i in vocabulary.items():
        digits = [str(ord(c) - ord("A")) for c in token[len(NAME) : -1]] if token.startswith(NAME) else []
        if digits and all(len(digit) == 1 for digit in digits):
            found[int("".join(digits))] = i
    codes = tuple(found[code] for code in sorted(found))
    if not codes or sorted(found) != [*range(len(found))]:
        raise UserError(f"{where}: vocabulary_map names {len(found)} codes of images, and must name all from 0 on")
    if sorted(codes) != [*range(min(codes), min(codes) + len(codes))] or not min(codes):
        raise UserError(
            f"{where}: in vocabulary_map the ids of images' codes are {min(codes)} to {max(codes)}, {len(codes)} of "
            "them; they must lie together, after some other id"
        )
    return codes


def rows(name: str, config: Config) -> tuple[Row, ...]:
    return (*text.rows("llama", config), *NORMS)


def faults(name: str, config: Config) -> Iterator[str]:
    streams = list(config.streams)
    if streams not in (["text"], ["text", "image"]) or config.vocab != config.streams["text"].ids:
        yield f"streams: {', '.join(streams)}; it must have text, and nothing else or image, with ids amid text's"
        return
    for stream, s in config.streams.items():
        if s.objective not in ("next_token", "none"):
            yield f"streams.{stream}.objective: {s.objective!r}; must be 'next_token' or 'none'"
    m, width = config.model, config.streams["text"].width
    if m.norm_eps != NORM_EPS:
        yield f"model.norm_eps: {m.norm_eps!r}; must be {NORM_EPS!r}"
    if m.head_size * m.heads != width:
        yield f"model.head_size: {m.head_size}; must be the width over the heads, {width} / {m.heads}"
    yield from text.unlike(config, MODEL)


def about(name: str, config: Config) -> dict[str, Any]:
    found = text.fields_of(config) | {"architectures": ["ChameleonForConditionalGeneration"], "hidden_act": "silu"}
    del found["head_dim"]  # it is the width over the heads
    return found | {"swin_norm": config.model.norm == "post"}

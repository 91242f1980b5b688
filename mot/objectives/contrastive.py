"""Contrasts the parts of documents: those of one document against those of all others in the global batch.

A part is what a document has in one stream; the packer keeps both in one row and lets neither see the other
(`roles.apart`). InfoNCE is CLIP's loss (2103.00020, figure 3), sigmoid SigLIP's (2303.15343, algorithm 1). With one
stream a pair is one part in two passes that differ in dropout (2104.08821).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mot import sharding
from mot.batches import Batch, Tokens
from mot.config import Config
from mot.model import ops
from mot.model.transformer import Output

LARGEST_SCALE = math.log(100)  # 2103.00020, section 2.5
LEAST = 1e-12  # of a squared length
FAR = -1e30  # the logit of what is not compared: finite, so that no gradient is NaN


class Sides(NamedTuple):
    """I = B * X places for pairs, X in a row; `there_I` says which hold one. Their embeddings have length 1."""

    query_IY: jax.Array  # float32, of the part in the first stream
    key_IY: jax.Array  # float32, of the part in the last
    there_I: jax.Array
    texts: tuple[jax.Array, jax.Array]  # uint32 [I], a hash of the ids of each part; of vectors one of the document
    left_out: jax.Array  # how many parts have no partner, or are more than a row has places for


class OfPairs(NamedTuple):
    """What is told of a batch, as sums over its pairs, so that batches add up."""

    pairs: jax.Array
    left_out: jax.Array  # parts
    sums: dict[str, jax.Array]  # by name in metrics, before it is divided by `pairs`


def sides(params: dict, outputs: tuple[Output, Output], batch: Batch, config: Config) -> Sides:
    """The pairs of some rows. `outputs` are of the pass for the first part and for the last; mostly they are one.

    Ids of the batch are those of its documents, also where they are hidden from the model: by them a token stands for
    its part, and parts are equal.
    """
    pools = config.objective.contrastive.pools
    names = [*pools] * (3 - len(pools))  # one stream is both
    X = config.contrasted_pairs
    documents = _documents(batch[names[-1]], X)
    of_sides = [
        _embedded(params, output.states[name], batch[name], documents, name, config)
        for name, output in zip(names, outputs, strict=True)
    ]
    (query_BXY, has_query_BX), (key_BXY, has_key_BX) = of_sides
    there_I = (has_query_BX & has_key_BX).reshape(-1)
    parts = sum(_begins(batch[name]).sum() for name in names)
    texts = tuple(_hashed(batch[name], documents, config.streams[name].latent > 0) for name in names)
    flat = [x_BXY.reshape(-1, x_BXY.shape[-1]) for x_BXY in (query_BXY, key_BXY)]
    return Sides(*flat, there_I, texts, parts - 2 * there_I.sum())


class _Documents(NamedTuple):
    """The first X documents of each row that have a part in one stream."""

    source_BX: jax.Array
    doc_id_BX: jax.Array
    there_BX: jax.Array


def _begins(tokens: Tokens) -> jax.Array:
    """`[B, C]`: is it the first token that is seen of its document in the stream?"""
    return _first(tokens.segment != 0, tokens.source, tokens.doc_id)


def _first(real_BC, source_BC, doc_id_BC) -> jax.Array:
    """`[B, C]`: is it the first real token of its document? What is hidden amid it is padding that has its number."""

    def differs(x_BC):
        return jnp.pad(x_BC[:, 1:] != x_BC[:, :-1], ((0, 0), (1, 0)), constant_values=True)

    before_BC = jnp.cumsum(real_BC, axis=1) - real_BC  # real tokens
    of_others_BC = lax.cummax(jnp.where(differs(source_BC) | differs(doc_id_BC), before_BC, 0), axis=1)
    return real_BC & (before_BC == of_others_BC)


def _documents(tokens: Tokens, X: int) -> _Documents:
    begins_BC = _begins(tokens)
    number_BC = jnp.cumsum(begins_BC, axis=1) - 1
    first_BCX = begins_BC[..., None] & (number_BC[..., None] == jnp.arange(X)[None, None])
    source_BX, doc_id_BX = ((first_BCX * x_BC[..., None]).sum(1) for x_BC in (tokens.source, tokens.doc_id))
    return _Documents(source_BX, doc_id_BX, first_BCX.any(1))


def _members(tokens: Tokens, documents: _Documents) -> jax.Array:
    """`[B, C, X]`: is the token of this document?"""
    same_BCX = tokens.source[..., None] == documents.source_BX[:, None]
    same_BCX &= tokens.doc_id[..., None] == documents.doc_id_BX[:, None]
    return same_BCX & (tokens.segment != 0)[..., None] & documents.there_BX[:, None]


def _embedded(
    params: dict, h_BCD, tokens: Tokens, documents: _Documents, stream: str, config: Config
) -> tuple[jax.Array, jax.Array]:
    """The embeddings `[B, X, Y]` of documents' parts in a stream, 0 where there is none; and where there is one."""
    x_BXD, there_BX = _mean(h_BCD, _standing(tokens, documents, config.objective.contrastive.pools[stream]))
    return _projected(params, x_BXD, stream, config), there_BX


def by_number(params: dict, h_BCD, tokens: Tokens, count: int, stream: str, pool: str, config: Config) -> jax.Array:
    """The embeddings `[X, Y]` of documents 0 to `count` - 1, which carry their number as `doc_id` and are each in one
    row; 0 of those that have no part here. Without a term of the stream they are its pooled states."""
    number_BX = jnp.arange(count)[None]
    documents = _Documents(jnp.zeros_like(number_BX), number_BX, jnp.ones_like(number_BX, bool))
    x_BXD, _ = _mean(h_BCD, _standing(tokens, documents, pool))
    return _projected(params, x_BXD.sum(0, keepdims=True), stream, config)[0]


def _standing(tokens: Tokens, documents: _Documents, pool: str) -> jax.Array:
    """`[B, C, X]`: does the token stand for its part of this document?"""
    return _members(tokens, documents) & _pooled(tokens, pool)[..., None]


def _pooled(tokens: Tokens, pool: str) -> jax.Array:
    """`[B, C]`: does this token stand for its part? A noised copy never does."""
    real_BC = (tokens.segment != 0) & ~tokens.private
    if pool == "mean":
        return real_BC
    if pool == "last":
        backwards = (x_BC[:, ::-1] for x_BC in (real_BC, tokens.source, tokens.doc_id))
        return _first(*backwards)[:, ::-1]
    return real_BC & (tokens.token == int(pool))


def _mean(h_BCD, member_BCX) -> tuple[jax.Array, jax.Array]:
    """The mean states `[B, X, D]` of groups of tokens, float32, 0 of an empty group; and which hold any."""
    h_BCD = jnp.where(member_BCX.any(-1, keepdims=True), h_BCD.astype(jnp.float32), 0)  # 0 * NaN is NaN
    sum_BXD = jnp.einsum("BCX,BCD->BXD", member_BCX.astype(jnp.float32), h_BCD, precision=lax.Precision.HIGHEST)
    count_BX = member_BCX.sum(1)
    return sum_BXD / jnp.maximum(count_BX, 1)[..., None], count_BX > 0


def _projected(params: dict, x_BXD, stream: str, config: Config) -> jax.Array:
    """Pooled states as embeddings of length 1, `[B, X, Y]`, by the stream's own projection if there is one."""
    B, X, D = x_BXD.shape
    y_RY = x_RD = x_BXD.reshape(B * X, D)
    projection = params.get("contrast", {}).get(stream)
    if projection:
        y_RY = ops.linear(x_RD, projection["out"])
    y_RY = y_RY * lax.rsqrt(jnp.maximum(jnp.square(y_RY).sum(-1, keepdims=True), LEAST))
    return y_RY.reshape(B, X, -1)


def _hashed(tokens: Tokens, documents: _Documents, of_vectors: bool) -> jax.Array:
    """uint32 `[I]`: equal for parts of equal ids, in the same order, and (but for one in 4e9) for no others.

    Vectors are not compared: they are equal where it is the same document.
    """
    if of_vectors:
        source_BX, doc_id_BX = (x_BX.astype(jnp.uint32) for x_BX in (documents.source_BX, documents.doc_id_BX))
        return _mixed(doc_id_BX + _mixed(source_BX)).reshape(-1)
    B, C = tokens.token.shape
    n_BC = jnp.broadcast_to(jnp.arange(C), (B, C))
    place_BC = n_BC - lax.cummax(jnp.where(_begins(tokens), n_BC, 0), axis=1)
    mixed_BC = _mixed(tokens.token.astype(jnp.uint32) + _mixed(place_BC.astype(jnp.uint32)))
    return jnp.where(_members(tokens, documents), mixed_BC[..., None], 0).sum(1, dtype=jnp.uint32).reshape(-1)


def _mixed(x):
    """MurmurHash3's last step: every bit of the result follows from all of x."""
    x = (x ^ (x >> 16) ^ jnp.uint32(0x9E3779B9)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def judge(heads: dict, sides: Sides, config: Config) -> tuple[jax.Array, OfPairs]:
    """The term of the loss, its weight in it, and what is told of it.

    `heads` are `params["contrast"]`. A batch of one pair has nothing to be told apart: its InfoNCE is 0.
    """
    term = config.objective.contrastive
    key_JY = sharding.constrain(sides.key_IY, (None, None), config.mesh.rules)  # each device meets all of them
    scale = jnp.exp(heads["scale"][0])
    cosine_IJ = jnp.einsum("IY,JY->IJ", sides.query_IY, key_JY, precision=lax.Precision.HIGHEST)
    is_pair_IJ = jnp.eye(len(key_JY), dtype=bool)
    compared_IJ = sides.there_I[:, None] & sides.there_I[None]
    if term.skip_equal:
        compared_IJ &= is_pair_IJ | ~_equal(sides.texts)
    logits_IJ = scale * cosine_IJ
    if term.kind == "infonce":
        total = _infonce(logits_IJ, compared_IJ, sides.there_I)
    else:
        total = _sigmoid(logits_IJ + heads["bias"][0], compared_IJ, is_pair_IJ)
    pairs = sides.there_I.sum().astype(jnp.float32)
    means = {"temperature": 1 / scale} | ({"bias": heads["bias"][0]} if term.kind == "sigmoid" else {})
    means["gap"] = _gap(sides)
    streams = list(term.pools)
    sums = {"loss": total} | {name: pairs * x for name, x in means.items()}
    sums[f"accuracy/{streams[0]}/{streams[-1]}"] = _right(cosine_IJ, compared_IJ, sides.there_I)
    if len(streams) > 1:
        sums[f"accuracy/{streams[-1]}/{streams[0]}"] = _right(cosine_IJ.T, compared_IJ.T, sides.there_I)
    told = OfPairs(pairs, sides.left_out.astype(jnp.float32), sums)
    return term.weight * total / jnp.maximum(pairs, 1), jax.tree.map(lax.stop_gradient, told)


def ahead(heads: dict, parts: Sides, config: Config) -> tuple[jax.Array, OfPairs, dict, Sides]:
    """The term of a whole batch that is passed in microbatches: embeddings of all of them come first (2101.06983).

    `parts` have a leading axis of microbatches. Returns the term, what is told of it, its gradients by `heads`, and
    those by the embeddings of each microbatch.
    """
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts._replace(left_out=()))
    whole = flat._replace(left_out=parts.left_out.sum())

    def term(heads, query_IY, key_IY):
        return judge(heads, whole._replace(query_IY=query_IY, key_IY=key_IY), config)

    value_and_grad = jax.value_and_grad(term, (0, 1, 2), has_aux=True)
    (value, told), (of_heads, *slopes) = value_and_grad(heads, whole.query_IY, whole.key_IY)
    by_query, by_key = (x.reshape(parts.query_IY.shape) for x in slopes)
    return value, told, of_heads, parts._replace(query_IY=by_query, key_IY=by_key)


def pulled(sides: Sides, slopes: Sides) -> jax.Array:
    """0, whose gradient is that of the whole batch's term through these pairs, of which `slopes` are the gradients."""
    total = (sides.query_IY * slopes.query_IY).sum() + (sides.key_IY * slopes.key_IY).sum()
    return total - lax.stop_gradient(total)


def _equal(texts: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`[I, J]`: have two pairs the same ids in one of the streams?"""
    a_IJ, b_IJ = (text_I[:, None] == text_I[None] for text_I in texts)
    return a_IJ | b_IJ


def _infonce(logits_IJ, compared_IJ, there_I) -> jax.Array:
    """The sum over pairs of both ways' mean cross-entropy, nats."""
    logits_IJ = jnp.where(compared_IJ, logits_IJ, FAR)
    right_I = jnp.diagonal(logits_IJ)
    nats_I = (jax.nn.logsumexp(logits_IJ, axis=1) + jax.nn.logsumexp(logits_IJ, axis=0)) / 2 - right_I
    return jnp.where(there_I, nats_I, 0).sum()


def _sigmoid(logits_IJ, compared_IJ, is_pair_IJ) -> jax.Array:
    """The sum over all that are compared of the binary cross-entropy: do they belong together?  Nats."""
    nats_IJ = -jax.nn.log_sigmoid(jnp.where(is_pair_IJ, logits_IJ, -logits_IJ))
    return jnp.where(compared_IJ, nats_IJ, 0).sum()


def _right(cosine_IJ, compared_IJ, there_I) -> jax.Array:
    """How many have their own partner nearest; a guess among those that are as near."""
    right_I1 = jnp.diagonal(cosine_IJ)[:, None]
    nearer_I = (compared_IJ & (cosine_IJ > right_I1)).sum(1)
    as_near_I = (compared_IJ & (cosine_IJ == right_I1)).sum(1)
    return jnp.where(there_I & (nearer_I == 0), 1 / jnp.maximum(as_near_I, 1), 0).sum()


def _gap(sides: Sides) -> jax.Array:
    """The distance of both sides' centroids (2203.02053, section 3)."""
    apart_IY = jnp.where(sides.there_I[:, None], sides.query_IY - sides.key_IY, 0)
    return jnp.linalg.norm(apart_IY.sum(0) / jnp.maximum(sides.there_I.sum(), 1))


def clamped(weights: dict, config: Config) -> dict:
    """The weights after an update, with cosines multiplied by 100 at most."""
    if not config.objective.contrastive.kind:
        return weights
    contrast = weights["contrast"]
    return weights | {"contrast": contrast | {"scale": jnp.minimum(contrast["scale"], LARGEST_SCALE)}}

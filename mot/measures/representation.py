"""How far apart modalities lie in the residual, layer by layer: gap, linear probe, principal components and CKA.

Residuals are what leaves a layer, of held-out batches. Modalities whose streams have other widths lie in no common
space: between them CKA alone is told. Of a modality's streams only those count that are as wide as its first.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mot import sharding
from mot.batches import Batch
from mot.config import Config
from mot.measures import states
from mot.model.context import Context

TOKENS = 1024  # of a modality, of all batches together, that probe and components look at
DOCUMENTS = 512  # of a batch, that are compared as pairs
PAIRS = 8  # the fewest of which CKA is told
SHOWN = 256  # of a modality, in a picture
DRAW = 0  # seed of which tokens and documents are looked at: the same whatever the parameters are


def residuals(params: dict, batch: Batch, config: Config) -> list[jax.Array]:
    """What leaves each block, `[L, R, D]` for each group of streams; padding's rows are 0."""

    def watch(context: Context) -> states.Watch:
        def see(layer: states.Layer) -> list[jax.Array]:
            return [
                jnp.where(group.tokens.segment.reshape(-1, 1) != 0, x_RD, 0)
                for x_RD, group in zip(layer.after, context.groups, strict=True)
            ]

        return states.Watch(see, lambda found, _: found)

    return states.look(params, batch, config, {"residuals": watch})["residuals"]


# --- on the device: what is needed of all tokens, and a sample of them ------------------------------------------------


class Cloud(NamedTuple):
    """A modality's states in one batch; R counts sampled tokens, and P documents that several modalities are in."""

    unit_LD: jax.Array  # the sum of all its states, each of length 1
    count: jax.Array  # of all its tokens
    x_LRD: jax.Array  # sampled tokens
    document_R: jax.Array  # the document of each; -1 = there were fewer tokens
    sum_LPD: jax.Array  # of its states in each document
    count_P: jax.Array


class _Rows(NamedTuple):
    """The tokens of some groups, laid flat."""

    modality_R: jax.Array
    real_R: jax.Array
    document_R: jax.Array  # row and segment as one number
    slot_R: jax.Array  # which of the documents of several modalities it is; their number = none


def watch(context: Context, tokens: int) -> states.Watch:
    """Finds the clouds of all modalities in a batch, with so many sampled tokens each at most."""
    rows, documents = _rows(context)
    modalities = range(len(context.config.modalities))
    groups = [_groups(m, context) for m in modalities]  # of each modality
    own = [_joined([rows[i] for i in groups[m]]) for m in modalities]
    mine = [own[m].real_R & (own[m].modality_R == m) for m in modalities]
    sampled = [_sample(mine[m], m, tokens) for m in modalities]

    def of_documents(x, m: int) -> jax.Array:
        return jnp.zeros((documents + 1, *x.shape[1:])).at[own[m].slot_R].add(x)[:-1]

    def of_modality(m: int, layer: states.Layer) -> tuple[jax.Array, ...]:
        x_RD = jnp.concatenate([layer.after[i] for i in groups[m]]).astype(jnp.float32)
        x_RD = jnp.where(mine[m][:, None], x_RD, 0)
        length_R1 = jnp.linalg.norm(x_RD, axis=-1, keepdims=True)
        unit_D = (x_RD / jnp.where(length_R1 > 0, length_R1, 1)).sum(0)
        return unit_D, x_RD[sampled[m][0]], of_documents(x_RD, m)

    def see(layer: states.Layer) -> list[tuple[jax.Array, ...]]:
        return [of_modality(m, layer) for m in modalities]

    def tell(found: list[tuple[jax.Array, ...]], _) -> list[Cloud]:
        clouds = []
        for m, (unit_LD, x_LRD, sum_LPD) in enumerate(found):
            place_R, is_there_R = sampled[m]
            document_R = jnp.where(is_there_R, own[m].document_R[place_R], -1)
            count_P = of_documents(mine[m].astype(jnp.float32), m)
            clouds.append(Cloud(unit_LD, mine[m].sum(), x_LRD, document_R, sum_LPD, count_P))
        return clouds

    return states.Watch(see, tell)


def _groups(m: int, context: Context) -> list[int]:
    """The groups with streams of a modality that are as wide as its first one."""
    streams = context.config.streams
    own = [name for name, stream in streams.items() if stream.modality == context.config.modalities[m]]
    width = streams[own[0]].width
    found = [i for i, group in enumerate(context.groups) if any(name in group.streams for name in own)]
    return [i for i in found if streams[context.groups[i].streams[0]].width == width]


def _rows(context: Context) -> tuple[list[_Rows], int]:
    """Each group's tokens as its residual has them; and P, how many documents of several modalities there may be.

    With `context` parts of rows come first.
    """
    parts = sharding.shard_count(("length",), context.config.mesh.rules)
    B = context.row.q.position.shape[0] // parts
    T = context.row.q.position.size // B
    rows = []
    for group in context.groups:
        segment_BC = group.tokens.segment
        row_B1 = jnp.arange(segment_BC.shape[0])[:, None] % B
        document_R = (row_B1 * (T + 1) + segment_BC).reshape(-1)  # a row of T tokens has T documents at most
        rows.append(_Rows(group.modality.reshape(-1), segment_BC.reshape(-1) != 0, document_R, document_R))
    slot_I, P = _slots(_joined(rows), len(context.config.modalities), B * (T + 1))
    return [row._replace(slot_R=jnp.where(row.real_R, slot_I[row.document_R], P)) for row in rows], P


def _joined(rows: Sequence[_Rows]) -> _Rows:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *rows)


def _slots(rows: _Rows, modalities: int, documents: int) -> tuple[jax.Array, int]:
    """By document its number among P documents of several modalities, by lot, P = none of them; and P."""
    present_MI = jnp.zeros((modalities, documents), bool).at[rows.modality_R, rows.document_R].max(rows.real_R)
    lot_I = jax.random.uniform(jax.random.key(DRAW), (documents,))
    best_P, place_P = jax.lax.top_k(jnp.where(present_MI.sum(0) > 1, lot_I, -1.0), min(DOCUMENTS, documents))
    P = len(best_P)
    return jnp.full(documents, P).at[place_P].set(jnp.where(best_P >= 0, jnp.arange(P), P)), P


def _sample(mine_R, m: int, tokens: int) -> tuple[jax.Array, jax.Array]:
    """The places of some tokens of modality m, by lot; and which of these are any, where there are fewer."""
    lot_R = jax.random.uniform(jax.random.fold_in(jax.random.key(DRAW), m), mine_R.shape)
    best, place = jax.lax.top_k(jnp.where(mine_R, lot_R, -1.0), min(tokens, len(lot_R)))
    return place, best >= 0


# --- on the host: what is told of them --------------------------------------------------------------------------------


def joined(batches: Sequence[Sequence[Cloud]]) -> list[Cloud]:
    """The clouds of several batches, as numpy arrays, as one for each modality; tokens that were not there are gone."""
    result = []
    for clouds in zip(*batches, strict=True):
        there = [np.asarray(cloud.document_R) >= 0 for cloud in clouds]
        x_LRD = [np.asarray(cloud.x_LRD)[:, is_there] for cloud, is_there in zip(clouds, there, strict=True)]
        # A document is known by batch, row and segment.
        document_R = [
            n * 2**32 + np.asarray(cloud.document_R, np.int64)[is_there]
            for n, (cloud, is_there) in enumerate(zip(clouds, there, strict=True))
        ]
        result.append(
            Cloud(
                np.sum([np.asarray(cloud.unit_LD, np.float64) for cloud in clouds], axis=0),
                np.sum([cloud.count for cloud in clouds]),
                np.concatenate(x_LRD, axis=1),
                np.concatenate(document_R),
                np.concatenate([np.asarray(cloud.sum_LPD) for cloud in clouds], axis=1),
                np.concatenate([np.asarray(cloud.count_P) for cloud in clouds]),
            )
        )
    return result


def gap(a_D: np.ndarray, b_D: np.ndarray) -> tuple[float, float]:
    """The distance and the cosine of two centroids of states of length 1 (2203.02053, section 3: the modality gap).

    NaN where a centroid is 0, which has no direction.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (a_D @ b_D) / (np.linalg.norm(a_D) * np.linalg.norm(b_D))
    return float(np.linalg.norm(a_D - b_D)), float(cosine)


def cka(x_ND: np.ndarray, y_NF: np.ndarray) -> float:
    """Linear CKA of N pairs (1905.00414, section 3): |Y'X|^2 / (|X'X| |Y'Y|) of centred states; 1 = alike but for a
    rotation and a scale. Of few pairs of wide states it is high whatever they are; `cka_debiased` is not.

    NaN where either side has no variance.
    """
    x, y = (np.asarray(z, np.float64) - np.asarray(z, np.float64).mean(0) for z in (x_ND, y_NF))
    k_NN, l_NN = x @ x.T, y @ y.T  # pairs are fewer than features
    scale = np.linalg.norm(k_NN) * np.linalg.norm(l_NN)
    return float((k_NN * l_NN).sum() / scale) if scale else float("nan")


def cka_debiased(x_ND: np.ndarray, y_NF: np.ndarray) -> float:
    """Linear CKA with unbiased HSIC (2010.15327, equation 3): about 0 for states that have nothing to do with each
    other, however few pairs there are. Needs 4 pairs; NaN where either side has no variance."""
    k_NN, l_NN = (np.asarray(z, np.float64) @ np.asarray(z, np.float64).T for z in (x_ND, y_NF))
    scale = _hsic(k_NN, k_NN) * _hsic(l_NN, l_NN)
    return float(_hsic(k_NN, l_NN) / np.sqrt(scale)) if scale > 0 else float("nan")


def _hsic(k_NN: np.ndarray, l_NN: np.ndarray) -> float:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion (Song et al. 2012, equation 5)."""
    n = len(k_NN)
    k_NN, l_NN = (z - np.diag(np.diag(z)) for z in (k_NN, l_NN))
    both = k_NN.sum(0) @ l_NN.sum(0)
    total = (k_NN * l_NN).sum() + k_NN.sum() * l_NN.sum() / ((n - 1) * (n - 2)) - 2 * both / (n - 2)
    return total / (n * (n - 3))


def linear(x_RD: np.ndarray, modality_R: np.ndarray, document_R: np.ndarray) -> float | None:
    """How well a linear probe tells the modality of tokens of documents that it has not seen (1610.01644): the mean
    over modalities of the fraction that it gets right, so that chance is 1 / M.

    Logistic regression on standardised states of every other document. None where one half lacks a modality.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _, number_R = np.unique(document_R, return_inverse=True)
    learns_R = number_R % 2 == 0
    halves = [set(modality_R[learns_R].tolist()), set(modality_R[~learns_R].tolist())]
    if halves[0] != halves[1] or len(halves[0]) < 2 or not np.isfinite(x_RD).all():
        return None
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=100, tol=1e-3))
    probe.fit(x_RD[learns_R], modality_R[learns_R])
    return float(balanced_accuracy_score(modality_R[~learns_R], probe.predict(x_RD[~learns_R])))


def components(x_RD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components of tokens, `[R, 2]`, and which part of the variance each has, `[2]`."""
    from sklearn.decomposition import PCA

    found = PCA(2, svd_solver="covariance_eigh")
    points_R2 = found.fit_transform(x_RD.astype(np.float64))
    return points_R2, found.explained_variance_ratio_


def numbers(clouds: Sequence[Cloud], config: Config) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """`representation/gap/{a}/{b}/{layer}`, `cosine`, `cka` and `cka_debiased` likewise, `representation/pairs/{a}/{b}`
    and `representation/linear/{layer}`, of `joined` clouds; and arrays: `points_LR2`, `explained_L2`, and the modality
    of each point, `modality_R`. What cannot be told is absent.

    A pair of CKA is the mean state of a document's tokens of the one modality, and that of its tokens of the other.
    """
    result: dict[str, float] = {}
    present = [m for m, cloud in enumerate(clouds) if cloud.count]
    for a, b in itertools.combinations(present, 2):
        result |= _of_pair(clouds[a], clouds[b], f"{config.modalities[a]}/{config.modalities[b]}")
    # The first modality and all that lie in its space.
    alike = [m for m in present if clouds[m].x_LRD.shape[-1] == clouds[present[0]].x_LRD.shape[-1]]
    if len(alike) < 2:
        return result, {}
    every = _sampled(clouds, alike, TOKENS)
    shown = _sampled(clouds, alike, SHOWN)
    points, explained = [], []
    for layer, (x_RD, shown_RD) in enumerate(zip(every["x_LRD"], shown["x_LRD"], strict=True)):
        accuracy = linear(x_RD, every["modality_R"], every["document_R"])
        if accuracy is not None:
            result[f"representation/linear/{layer}"] = accuracy
        if np.isfinite(shown_RD).all():
            of_layer = components(shown_RD)
            points.append(of_layer[0])
            explained.append(of_layer[1])
    if len(points) < len(shown["x_LRD"]):
        return result, {}
    arrays = {"points_LR2": np.stack(points).astype(np.float32), "explained_L2": np.stack(explained)}
    return result, arrays | {"modality_R": np.array(config.modalities)[shown["modality_R"]]}


def _sampled(clouds: Sequence[Cloud], modalities: Sequence[int], most: int) -> Mapping[str, np.ndarray]:
    """The first tokens of each modality, end to end; each batch has as many of them."""
    picked = {}
    for m in modalities:
        size = len(clouds[m].document_R)
        picked[m] = np.unique(np.linspace(0, size - 1, min(most, size)).round().astype(int))
    return {
        "x_LRD": np.concatenate([clouds[m].x_LRD[:, at] for m, at in picked.items()], axis=1),
        "document_R": np.concatenate([clouds[m].document_R[at] for m, at in picked.items()]),
        "modality_R": np.concatenate([np.full(len(at), m) for m, at in picked.items()]),
    }


def _of_pair(a: Cloud, b: Cloud, names: str) -> dict[str, float]:
    result = {}
    both_P = (a.count_P > 0) & (b.count_P > 0)
    pairs = int(both_P.sum())
    x_LPD, y_LPF = (c.sum_LPD[:, both_P] / c.count_P[None, both_P, None] for c in (a, b))
    result[f"representation/pairs/{names}"] = float(pairs)
    for layer in range(len(a.unit_LD)):
        if a.unit_LD.shape == b.unit_LD.shape:
            distance, cosine = gap(a.unit_LD[layer] / a.count, b.unit_LD[layer] / b.count)
            result[f"representation/gap/{names}/{layer}"] = distance
            result[f"representation/cosine/{names}/{layer}"] = cosine
        if pairs >= PAIRS:
            result[f"representation/cka/{names}/{layer}"] = cka(x_LPD[layer], y_LPF[layer])
            result[f"representation/cka_debiased/{names}/{layer}"] = cka_debiased(x_LPD[layer], y_LPF[layer])
    return result

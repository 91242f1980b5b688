"""Figures of steps and evaluations, from the sums that were measured."""

from collections.abc import Mapping, Sequence

import numpy as np


def line(row: Mapping, modalities: Sequence[str]) -> str:
    """`text 3.21  image 1.05  4.2k tok/s  mfu 55 %` of one metrics row."""
    figures = [f"{m} {row[f'loss/{m}']:.3f}" for m in modalities if f"loss/{m}" in row]
    if "loss/contrastive" in row:
        figures.append(f"contrastive {row['loss/contrastive']:.3f}")
    if "tokens_per_s" in row:
        figures += [f"{row['tokens_per_s'] / 1e3:.1f}k tok/s", f"mfu {100 * row['mfu']:.0f} %"]
    return "  ".join(figures)


def of_step(measured: Mapping, modalities: Sequence[str], sources: Sequence[str]) -> dict[str, float]:
    """A row's figures that follow from the state and the batch alone: the same wherever the step is made again."""
    row = {"objective": float(measured["loss"]), "lr": float(measured["lr"]), "grad_norm": float(measured["grad_norm"])}
    row |= {f"grad_norm/{tower}": float(x) for tower, x in measured["grad_norms"].items()}
    if np.isfinite(limit := float(measured.get("grad_norm_limit", np.inf))):
        row["grad_norm_limit"] = limit
    sums = measured["sums"]
    row |= losses(sums["loss_sum"], sums["weight"], modalities, sources)
    return row | contrastive(sums) | routing(sums["routing"], modalities) | spread(sums)


def contrastive(sums: Mapping) -> dict[str, float]:
    """Of a contrastive term, where there is one: `loss/contrastive`, nats before its weight, and `contrastive/...`.

    `accuracy/a/b`: the share of parts in stream a to which their own partner in b is the nearest of the batch.
    `temperature`, `bias`; `gap`: the distance of both streams' centroids. `pairs`; `left_out`: parts without a partner.
    """
    if "contrastive" not in sums:
        return {}
    told = sums["contrastive"]
    row = {"contrastive/pairs": float(told.pairs), "contrastive/left_out": float(told.left_out)}
    if not row["contrastive/pairs"]:
        return row
    means = {name: float(x) / row["contrastive/pairs"] for name, x in told.sums.items()}
    return {"loss/contrastive": means.pop("loss")} | row | {f"contrastive/{name}": x for name, x in means.items()}


ALIKE = {"std": 0.05, "rank": 1.5}  # below these predicted states are all but alike


def spread(sums: Mapping) -> dict[str, float]:
    """`states/<stream>/std`, `rank`: how far apart the states are that a stream predicts (`objectives/latent.py`)."""
    return {
        f"states/{name}/{key}": float(of_stream[key] / of_stream["count"])
        for name, of_stream in sums.get("spread", {}).items()
        for key in ALIKE
    }


def collapsed(row: Mapping) -> list[str]:
    """The streams whose predicted states are all but alike, as a row tells."""
    low = [key.split("/")[1] for key, x in row.items() if key.startswith("states/") and x < ALIKE[key.split("/")[2]]]
    return list(dict.fromkeys(low))


def losses(loss_sum_MO, weight_MO, modalities: Sequence[str], sources: Sequence[str]) -> dict[str, float]:
    """The mean loss of all targets, by modality, and by modality and source; what is absent is left out.

    Nats of ids, squared errors of vectors; `loss` is the mean of both, where a run has both. Weights that are NaN are
    not absent: their losses are NaN.
    """
    result = {}
    if weight_MO.sum() != 0:
        result["loss"] = float(loss_sum_MO.sum() / weight_MO.sum())
    for m, modality in enumerate(modalities):
        if (total := weight_MO[m].sum()) != 0:
            result[f"loss/{modality}"] = float(loss_sum_MO[m].sum() / total)
        for s, source in enumerate(sources):
            if weight_MO[m, s] != 0:
                result[f"loss/{modality}/{source}"] = float(loss_sum_MO[m, s] / weight_MO[m, s])
    return result


def routing(reports: Mapping, modalities: Sequence[str]) -> dict[str, float]:
    """Summaries of what routers did, by `router/<component>/<tower>/`, from sums over tokens `[L, ...]`.

    `load_max`, `load_min`: the busiest and the idlest expert of any layer, 1 = an even share. `entropy`: of a token's
    scores, nats. `balance`, `z`: the losses before their weights. `dropped/<modality>`: the fraction of its choices
    without a place. `experts_per_token/<modality>`: how many experts took one of its tokens; where experts choose, it
    is low for a modality that they pass over. `imitation`: the causal router's cross-entropy, nats. For a tower that
    modalities share: `specialisation`, the mean over experts of |R_a - R_b| / (R_a + R_b), R the fraction of a
    modality's choices that go to an expert, a the first modality and b the others; and `mutual_information` of expert
    and modality, nats. Each is a mean over layers.
    """
    result = {}
    for name, r in reports.items():
        load_LME = np.asarray(r.load_BME, np.float64)
        tokens_LM = np.asarray(r.tokens_BM, np.float64)
        share_LE = load_LME.sum(1) / np.maximum(load_LME.sum((1, 2)), 1)[:, None] * load_LME.shape[-1]
        tokens_M = tokens_LM.sum(0)
        tokens = max(tokens_LM.sum(), 1)
        row = {
            "load_max": share_LE.max(),
            "load_min": share_LE.min(),
            "entropy": r.entropy_B.sum() / tokens,
            "balance": r.balance_B.sum() / tokens,
            "z": r.z_B.sum() / tokens,
        }
        if imitation := np.asarray(r.imitation_B).sum():
            row["imitation"] = imitation / tokens
        wanted_M = np.asarray(r.wanted_BM).sum(0)
        load_M = load_LME.sum((0, 2))
        for m, modality in enumerate(modalities):
            if wanted_M[m]:
                row[f"dropped/{modality}"] = 1 - load_M[m] / wanted_M[m]
            if tokens_M[m]:
                row[f"experts_per_token/{modality}"] = load_M[m] / tokens_M[m]
        if lost := np.asarray(r.lost_B).sum():
            row["overflowed"] = lost / load_M.sum()
        present = tokens_LM.sum(0) > 0
        if present.sum() > 1:
            row["specialisation"] = float(np.abs(specialisation(load_LME[:, present])).mean())
            row["mutual_information"] = float(np.mean([_information(load_ME) for load_ME in load_LME]))
        result |= {f"router/{name}/{key}": float(value) for key, value in row.items()}
    return result


def specialisation(load_LME) -> np.ndarray:
    """`[L, E]`: (R_a - R_b) / (R_a + R_b), from -1 to 1; 0 for an expert that nobody chose."""
    r_LME = np.stack([load_LME[:, 0], load_LME[:, 1:].sum(1)], axis=1)
    r_LME = r_LME / np.maximum(r_LME.sum(-1, keepdims=True), 1)
    both_LE = r_LME.sum(1)
    return np.where(both_LE > 0, (r_LME[:, 0] - r_LME[:, 1]) / np.where(both_LE > 0, both_LE, 1), 0)


def _information(load_ME) -> float:
    p_ME = load_ME / max(load_ME.sum(), 1)
    apart_ME = p_ME.sum(1, keepdims=True) * p_ME.sum(0, keepdims=True)
    return (p_ME * np.log(np.where(p_ME > 0, p_ME, 1) / np.where(p_ME > 0, apart_ME, 1))).sum()


def loads(reports: Mapping, modalities: Sequence[str]) -> dict:
    """`{component/tower: {modality: [L][E]}}`: the fraction of the modality's choices that an expert took."""

    def fractions(load_LE):
        return (load_LE / np.maximum(load_LE.sum(-1, keepdims=True), 1)).round(5).tolist()

    return {
        name: {m: fractions(r.load_BME[:, i]) for i, m in enumerate(modalities) if r.tokens_BM[:, i].any()}
        for name, r in reports.items()
    }

"""Which values of a row are curves to look at, in few groups, on any board. metrics.jsonl has everything."""

from collections.abc import Iterator, Mapping

# The tag of what a row of metrics holds, by the name's first part; what is not named here is no curve to look at, as
# what is counted from the beginning.
CURVES = {
    "train": {
        "loss": "loss",
        "objective": "loss/objective",
        "lr": "optim/lr",
        "grad_norm": "optim/grad_norm",
        "tokens_per_s": "speed/tokens_per_s",
        "mfu": "speed/mfu",
        "step_seconds": "speed/step_seconds",
        "data_wait": "speed/data_wait",
        "fill": "data/fill",
        "left_out": "data/left_out",
        "router": "router",
    },
    "eval": {"loss": "eval/loss", "causal_loss": "eval/causal_loss", "bits_per_byte": "eval/bits_per_byte"},
}
NOT_FINITE = ("nan", "inf", "-inf")  # as metrics.jsonl holds them


def tag(kind: str, key: str, sources: int) -> str | None:
    """Where the curve of a row's value stands, in a run on so many sources; None: there is none."""
    first, _, rest = key.partition("/")
    curve = CURVES.get(kind, {}).get(first)
    if curve is None or not rest:
        return curve
    if "loss" in first and "/" in rest:  # of a modality and source, which of one source alone says nothing new
        return f"by_source/{curve}/{rest}" if sources > 1 else None
    return f"{curve}/{rest}"


def kind_of(tag: str) -> str:
    """The kind of row that a curve's points come from."""
    return "eval" if tag.removeprefix("by_source/").startswith("eval/") else "train"


def curves(kind: str, values: Mapping, sources: int) -> Iterator[tuple[str, float]]:
    """The points of a row of metrics, by their curves' tags."""
    for key, value in values.items():
        if (isinstance(value, int | float) or value in NOT_FINITE) and (curve := tag(kind, key, sources)):
            yield curve, float(value) if isinstance(value, str) else value

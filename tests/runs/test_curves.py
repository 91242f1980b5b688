"""Which values of a row are curves, under which tags."""

import math

import pytest

from mot.runs.curves import curves, kind_of, tag


@pytest.mark.parametrize(
    ("kind", "key", "many", "one"),
    [
        ("train", "loss", "loss", "loss"),
        ("train", "loss/text", "loss/text", "loss/text"),
        ("train", "loss/text/a/b", "by_source/loss/text/a/b", None),
        ("eval", "causal_loss/text/a", "by_source/eval/causal_loss/text/a", None),
        ("eval", "bits_per_byte/a", "eval/bits_per_byte/a", "eval/bits_per_byte/a"),
        ("train", "router/ffn/image/load_max", "router/ffn/image/load_max", "router/ffn/image/load_max"),
        ("eval", "router/ffn/image/load_max", None, None),
        ("train", "grad_norm/text", "optim/grad_norm/text", "optim/grad_norm/text"),
        ("train", "tokens/text", None, None),
        ("event", "matmul_peak", None, None),
        ("train", "time", None, None),
    ],
)
def test_a_value_has_its_curve_or_none(kind, key, many, one):
    assert (tag(kind, key, 2), tag(kind, key, 1)) == (many, one)
    for found in filter(None, (many, one)):
        assert kind_of(found) == kind


def test_what_is_not_finite_is_a_point_also_as_metrics_jsonl_holds_it():
    row = {"kind": "train", "time": "nan", "loss": "nan", "lr": "-inf", "mfu": "inf", "fill/text": 0.5, "why": "words"}
    found = dict(curves("train", row, 1))
    assert math.isnan(found.pop("loss"))
    assert found == {"optim/lr": -math.inf, "speed/mfu": math.inf, "data/fill/text": 0.5}

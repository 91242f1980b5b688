"""A few rungs compiled for a v5p that is not there, against figures.json, and against each other.

JAX_PLATFORMS=cpu .venv-plan/bin/python -m tests.plan.test_plan_tpu     writes the figures anew
"""

import json
import re
from pathlib import Path

import pytest

from mot import optim
from mot.config import load, resolve
from mot.errors import UserError
from mot.model import params
from mot.plan import chips, forecast

FIGURES = Path(__file__).parent / "figures.json"
KEPT = ("parameters", "flops_per_token", "matmul_flops", "formula_flops", "recomputed_flops")
TOPOLOGY = "v5p:2x2x1"
ROWS = {"data.batch": "32", "optim.accumulate": "1", "mesh.fsdp": "4"}


def config(arch, rung="37m", **changes):
    overrides = ROWS | {key.replace("__", "."): str(value) for key, value in changes.items()}
    return resolve(load.read(f"configs/ladder.py:rung={rung},arch={arch}", overrides), optim.uncovered)


def made(arch, rung="37m", topology=TOPOLOGY, **changes):
    return forecast.plan(config(arch, rung, **changes), chips.topology(topology))


def figures(found) -> dict:
    kept = {name: getattr(found, name) for name in KEPT}
    kept |= {f"memory/{name}": n for name, n in found.memory.items() if name in ("arguments", "temporaries", "peak")}
    kept |= {f"sent/{kind}": c["wire"] for kind, c in found.collectives.items() if c["wire"] > 1e6}
    return {"numbers": kept, "sends": sends(found)}


def gathered(arch) -> float:
    """Bytes that a device is sent of the other three's quarters: each matrix once a pass, a layer's in two passes."""
    return 2 * (reduced(arch) + reduced(arch, "blocks/")) * 3 / 4


def reduced(arch, part="") -> int:
    """Parameters of matrices, whose gradients devices add up in `optim.reduce_dtype`; of a part of the model."""
    table = params.table(config(arch))
    return params.count({path: x for path, x in table.items() if params.is_reduced(path, x) and path.startswith(part)})


def gradients(arch, size) -> float:
    """Bytes of gradients that a device sends: all but its own quarter, matrices' of so many bytes, others' float32."""
    others = params.count(params.table(config(arch))) - reduced(arch)
    return (size * reduced(arch) + 4 * others) * 3 / 4


def summed(found) -> float:
    """Bytes of gradients that a device sends, where a reduction of the whole sends twice what a scattered one does."""
    return found.collectives["reduce-scatter"]["wire"] + found.collectives["all-reduce"]["wire"] / 2


def sends(found) -> list[str]:
    """What sends something that counts: the kind of collective, and the function whose work it is."""
    total = sum(c["wire"] for c in found.collectives.values())
    told = {f"{c['kind']} {c['source']}" for c in found.collectives_by_source if c["wire"] > 1e-3 * total}
    return sorted({re.sub(r":\d+", "", x) for x in told})


def stored(arch):
    return json.loads(FIGURES.read_text(encoding="utf-8"))[arch]


@pytest.mark.parametrize(
    ("arch", "most"),
    [
        pytest.param("dense", 1.03, marks=pytest.mark.slow),
        ("mot", 1.03),
        pytest.param("moe_ec4", 1.10, marks=pytest.mark.slow),
    ],
)
def test_a_rung_keeps_its_figures(arch, most):
    """And MoT costs what dense does: the same matmuls and what is sent by the same functions, little more memory."""
    found = made(arch)
    now = figures(found)
    assert found.fits
    assert 0.97 < found.ratio <= most
    assert not found.float32_matmuls
    assert now["numbers"] == pytest.approx(stored(arch)["numbers"], rel=0.02)
    assert found.collectives["all-gather"]["wire"] == pytest.approx(gathered(arch), rel=0.02)
    assert summed(found) == pytest.approx(gradients(arch, 4), rel=0.01)
    if arch == "mot":
        dense = stored("dense")
        assert found.matmul_flops / dense["numbers"]["matmul_flops"] == pytest.approx(1, abs=0.01)
        assert found.memory["temporaries"] <= 1.10 * dense["numbers"]["memory/temporaries"]
        assert set(now["sends"]) <= set(dense["sends"])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["mot", "moe_ec4"])
def test_gradients_in_bfloat16_are_what_a_hand_counts(arch):
    """Two bytes of each but for a device's own quarter, and twice that where the compiler all-reduces them."""
    found = made(arch, optim__reduce_dtype="bfloat16")
    assert summed(found) == pytest.approx(gradients(arch, 2), rel=0.01)
    assert found.collectives["all-gather"]["wire"] == pytest.approx(
        stored(arch)["numbers"]["sent/all-gather"], rel=0.01
    )


@pytest.mark.slow
def test_temporaries_grow_linearly_with_a_rows_length():
    """The same tokens in rows of 4,096 to 32,768."""
    held = {}
    for T in (4096, 32_768):
        changes = {"streams.text.budget": T // 2, "streams.image.budget": T // 2, "data.batch": 32 * 4096 // T}
        held[T] = made("mot", **changes).memory["temporaries"]
    assert held[32_768] <= 1.2 * held[4096]


@pytest.mark.slow
def test_compile_time_is_flat_in_layers():
    seconds = {n: made("dense", **{"model.layers": n}).compile_seconds for n in (4, 32)}
    assert seconds[32] <= 1.3 * seconds[4]


def test_a_rung_over_memory_is_told():
    found = made("dense", rung="7b", topology="v5e:2x2", **{"data.batch": 4, "model.layers": 32})
    assert not found.fits
    assert "hbm" in found.trouble.lower()
    assert found.remedies


def test_a_slice_that_the_compiler_refuses():
    with pytest.raises(UserError, match="v5p:4x4x4"):
        chips.topology("v5p:0x2x2")


if __name__ == "__main__":
    from tests.plan import conftest  # noqa: F401  what the compiler is told

    told = {arch: figures(made(arch)) for arch in ("dense", "mot", "moe_ec4")}
    FIGURES.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_a_device_is_known_by_the_name_that_jax_gives_it(name):
    topology = chips.topology(name)
    assert chips.of_kind(topology.devices[0].device_kind) is topology.chip

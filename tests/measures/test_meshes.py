"""What is measured on several devices is what one device measures."""

import functools

import jax
import pytest

from mot import sharding
from mot.config import resolve
from mot.measures import attention, experts, representation, states
from mot.train import state
from tests.support import examples
from tests.support.devices import devices


def numbers(c, batch, weights, mesh=None):
    """All that is told of a batch but for gradients."""

    watching = {
        "attention": attention.watch,
        "representation": functools.partial(representation.watch, tokens=1000),
        "experts": experts.watch,
    }
    look = functools.partial(states.look, config=c, watching=watching)
    if mesh is None:
        found = jax.device_get(jax.jit(look)(weights, batch))
    else:
        with jax.set_mesh(mesh):
            there = jax.device_put(weights, state.state_shardings(c, mesh).params)
            program = jax.jit(look, out_shardings=sharding.replicated(mesh))
            found = jax.device_get(program(there, sharding.to_global(batch, c, mesh)))
    return (
        attention.numbers(found["attention"], c)[0]
        | representation.numbers(representation.joined([found["representation"]]), c)[0]
        | experts.numbers(found["experts"], c)[0]
    )


@pytest.mark.parametrize(
    "arch", ["dense", pytest.param("mot", marks=pytest.mark.slow), pytest.param("moe_tc4", marks=pytest.mark.slow)]
)
def test_rows_and_their_parts_may_lie_on_several_devices(arch):
    tree = examples.tree(arch, attention="reference")
    base = resolve(tree)
    batch, weights = examples.batch(rows=4, spans=False), examples.weights(base)
    want = numbers(base, batch, weights)
    tree.mesh.update(fsdp=2, context=2)
    c = resolve(tree)
    with devices(4):
        mesh = sharding.make_mesh(c)
    got = numbers(c, batch, weights, mesh)
    assert "representation/linear/1" in want
    assert got == pytest.approx(want, rel=1e-4, abs=1e-4)

"""What the compiler makes of a matrix that lies along meshes of absent slices, against what a hand counts."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mot import sharding
from mot.config import resolve
from mot.model import ops
from mot.plan import chips, forecast, hlo
from tests.support import examples

D, F = 4096, 8192
GATHERED, SUMMED = 2 * D * F, 4 * D * F  # bytes: weights in bfloat16, their gradient in float32


def mesh_of(name, **axes):
    devices = chips.topology(name, axes.get("slices", 1)).devices
    tree = examples.tree("dense")
    tree.data.batch = len(devices)
    config = resolve(tree)
    return sharding.make_mesh(dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **axes)), devices)


def sent(mesh, dtype=jnp.float32):
    """Bytes that a device sends for one matmul and the gradient of its weights, which lie along `fsdp`."""
    weights = NamedSharding(mesh, P("fsdp"))
    w_DF = jax.ShapeDtypeStruct((D, F), jnp.float32, sharding=weights)
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    x_RD = jax.ShapeDtypeStruct((128 * mesh.size, D), jnp.bfloat16, sharding=rows)

    def loss(w_DF, x_RD):
        return jnp.sum(jnp.tanh(ops.linear(x_RD, w_DF.astype(dtype))).astype(jnp.float32))

    def step(w_DF, x_RD):
        return w_DF - jax.lax.with_sharding_constraint(jax.grad(loss)(w_DF, x_RD), weights)

    with jax.set_mesh(mesh):
        lowered = jax.jit(step, out_shardings=weights).trace(w_DF, x_RD).lower(lowering_platforms=("tpu",))
        text = lowered.compile(compiler_options=sharding.compiler_options(mesh)).as_text()
    return {kind: row["wire"] for kind, row in forecast.by_kind(hlo.read(text)).items()}


def others(n):
    return (n - 1) / n


@pytest.mark.parametrize(
    ("name", "axes", "fsdp", "gradient"),
    [
        ("v5p:4x4x4", dict(data=2, fsdp=32), 32, "reduce-scatter"),  # half a side: a mesh of parts
        ("v5p:4x4x4", dict(data=4, fsdp=16), 16, "reduce-scatter"),
        ("v5p:4x4x4", dict(data=1, fsdp=64), 64, "all-reduce"),
        ("v6e:16x16", dict(data=4, fsdp=64), 64, "reduce-scatter"),
        ("v6e:16x16", dict(data=1, fsdp=256), 256, "all-reduce"),
        ("tpu7x:4x4x4", dict(data=1, fsdp=128), 128, "reduce-scatter"),
    ],
)
def test_a_matrix_is_gathered_and_its_gradient_summed(name, axes, fsdp, gradient):
    """Gathers stay gathers, as on rings; gradients over all of a slice are reduced whole where `Chip` says so."""
    found = sent(mesh_of(name, **axes))
    data = axes["data"]
    expected = {"all-gather": GATHERED * others(fsdp), gradient: SUMMED * others(fsdp)}
    if gradient == "all-reduce":
        expected[gradient] *= 2
    elif data > 1:
        expected["all-reduce"] = 2 * SUMMED / fsdp * others(data)
    assert found == pytest.approx(expected, rel=0.01)
    chip, _ = chips.parse(name)
    assert chip.scatters_over(fsdp, fsdp * data) == (gradient == "reduce-scatter")


@pytest.mark.parametrize(
    ("name", "axes", "gradient"),
    [
        ("v5p:4x4x4", dict(data=4, fsdp=16), "reduce-scatter"),
        ("v6e:16x16", dict(data=1, fsdp=256), "all-reduce"),
    ],
)
def test_a_gradient_in_bfloat16_is_half_the_bytes(name, axes, gradient):
    """What a device makes of it for itself is summed in bfloat16, not first rounded afterwards."""
    mesh = mesh_of(name, **axes)
    whole, half = sent(mesh), sent(mesh, jnp.bfloat16)
    assert half["all-gather"] == pytest.approx(whole["all-gather"], rel=0.01)
    assert half[gradient] == pytest.approx(whole[gradient] / 2, rel=0.01)
    assert half.keys() == whole.keys()


def test_slices_sum_gradients_over_their_network():
    """Two slices: each device sends its eighth of the gradient once."""
    found = sent(mesh_of("v5p:2x2x2", slices=2, data=2, fsdp=8))
    within = {"all-gather": GATHERED * others(8), "all-reduce": 2 * SUMMED * others(8)}
    assert found == pytest.approx(within | {"all-reduce between slices": SUMMED / 8}, rel=0.01)


@pytest.mark.parametrize("remat", ["none", "block"])
def test_partial_sums_along_tensor_are_bfloat16_and_one_for_matrices_of_one_input(remat):
    """Megatron's two all-reduces of an FFN (1909.08053, 3): of its result, and of its input's gradient."""
    mesh = mesh_of("v6e:8x8", tensor=2, fsdp=32)
    config = examples.make("dense", remat=remat)
    rules = config.mesh.rules
    rows = 128
    x_RD = jax.ShapeDtypeStruct((rows * 32, D), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp")))
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, sharding.spec(axes, rules)))
        for name, shape, axes in (
            ("w1", (D, F), ("embed", "mlp")),
            ("w3", (D, F), ("embed", "mlp")),
            ("w2", (F, D), ("mlp", "embed")),
        )
    }

    def loss(w, x_RD):
        gate_RF, up_RF = ops.linears(x_RD, [w["w1"], w["w3"]], "mlp", config)
        y_RD = ops.linear(ops.gated(gate_RF, up_RF, "swiglu"), w["w2"])
        return jnp.sum(jnp.tanh(sharding.constrain(y_RD, (sharding.ROWS, None), rules)).astype(jnp.float32))

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss, (0, 1))).trace(shapes, x_RD).lower(lowering_platforms=("tpu",))
        program = hlo.read(lowered.compile(compiler_options=sharding.compiler_options(mesh)).as_text())
    sums = [c for c in program.collectives if c.kind == "all-reduce" and c.group == 2]
    assert sum(c.bytes * c.at.times for c in sums) == 2 * 2 * rows * D
    gathers = [c for c in program.collectives if c.kind == "all-gather"]
    assert gathers
    assert not any("f32" in c.shape for c in gathers + sums)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(jax.config, forecast.EFFORT), reason="JAX 0.12 has no such setting")
@pytest.mark.parametrize(("effort", "least"), [(0.0, 0.5), (-1.0, 0.0)])
def test_gathers_go_on_beside_matmuls_with_full_effort(effort, least):
    """Of two layers' FFNs of 7B, forward and backward: most bytes that are gathered, or with the least effort none."""
    mesh = mesh_of("v5p:4x4x4", data=4, fsdp=16)
    split = NamedSharding(mesh, P(None, "fsdp"))
    x_RD = jax.ShapeDtypeStruct((2**14 * 64, D), jnp.bfloat16, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
    w = [jax.ShapeDtypeStruct((2, *s), jnp.float32, sharding=split) for s in ((D, 11008), (D, 11008), (11008, D))]

    @jax.checkpoint
    def layer(x_RD, w):
        hidden_RF = ops.gated(ops.linear(x_RD, w[0]), ops.linear(x_RD, w[1]), "swiglu")
        return x_RD + ops.linear(hidden_RF, w[2]), None

    def loss(w, x_RD):
        return jnp.sum(jnp.tanh(jax.lax.scan(layer, x_RD, w)[0].astype(jnp.float32)))

    before = getattr(jax.config, forecast.EFFORT)
    jax.config.update(forecast.EFFORT, effort)
    try:
        with jax.set_mesh(mesh):
            lowered = jax.jit(jax.grad(loss)).trace(w, x_RD).lower(lowering_platforms=("tpu",))
            text = lowered.compile(compiler_options=sharding.compiler_options(mesh)).as_text()
    finally:
        jax.config.update(forecast.EFFORT, before)
    gathered = forecast.by_kind(hlo.read(text))["all-gather"]
    assert least * gathered["wire"] <= gathered["meanwhile"] <= 2 * least * gathered["wire"]


@pytest.mark.parametrize("name", ["v6e:8x8", "v6e:16x16", "v5p:4x4x4", "v5p:8x8x8", "tpu7x:4x4x4"])
def test_meshes_that_split_a_side_hold_every_device_once(name):
    """And those that do not are as `jax.make_mesh` has them."""
    devices = len(chips.topology(name).devices)
    for data, context, tensor in itertools.product((1, 2, 8), (1, 2), (1, 2, 4)):
        axes = dict(data=data, fsdp=devices // (data * context * tensor), context=context, tensor=tensor)
        mesh = mesh_of(name, **axes)
        assert len({device.id for device in mesh.devices.flat}) == devices
        try:
            whole = jax.make_mesh(mesh.axis_sizes, mesh.axis_names, mesh.axis_types, devices=list(mesh.devices.flat))
        except NotImplementedError:
            continue
        assert (whole.devices == mesh.devices).all()

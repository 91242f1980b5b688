"""One device's losses and gradients on every mesh; what cannot be split is refused before anything is allocated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENV = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
}
# argv: architecture, kind of data (ids, vectors), meshes as "fsdp=2,tensor=2"; the devices are as many as they need.
MESHES = """
import math, sys
import jax
from mot import config, model, objectives, sharding, state
from tests import examples, vectors

kind, arch, meshes = sys.argv[1], sys.argv[2], sys.argv[3:]
tree = examples.tree(arch) if kind == "ids" else vectors.tree(arch, budgets=(36, 24, 12))
tree.data.batch = 8 if kind == "ids" else 4
tree.model.scan = True
for sets in (*tree.attn.values(), *tree.ffn.values()):
    sets.experts = 4 if sets.experts else 0
base = config.build(tree)
batch = examples.batch(rows=8) if kind == "ids" else vectors.batch(base)

def loss_of(c):
    def loss(weights, batch):
        given = objectives.noised(batch, c, 3)
        output = model.forward(weights, given.batch, c)
        Z_M, routed = objectives.totals(batch, c), objectives.routed_tokens(batch, c)
        total, _ = objectives.loss(weights, output, given, Z_M, c, 2)
        return total + (objectives.routing(output.routing, routed, c) if output.routing else 0)
    return jax.value_and_grad(loss)

weights = examples.weights(base)
plain = jax.jit(loss_of(base))(weights, batch)
for text in meshes:
    sizes = {k: int(v) for k, v in (part.split("=") for part in text.split(","))}
    tree.mesh.update(dict(data=0, fsdp=1, expert=1, context=1, tensor=1) | sizes)
    c = config.build(tree)
    mesh = sharding.make_mesh(c, jax.devices()[: math.prod(sizes.values())])
    with jax.set_mesh(mesh):
        places = state.state_shardings(c, mesh).params
        placed = jax.device_put(weights, places)
        step = jax.jit(loss_of(c), out_shardings=(None, places))
        loss, grads = step(placed, sharding.placed(batch, c, mesh))
    worst = examples.leaf_error(jax.device_get(grads), plain[1])
    print(text, abs(float(loss) - float(plain[0])), worst, flush=True)
    assert worst < 1e-5 and abs(float(loss) - float(plain[0])) < 1e-5 * float(plain[0])
"""
SINGLE = ("data=2", "fsdp=2", "expert=2", "context=2", "tensor=2")
PAIRS = ("data=2,fsdp=2", "fsdp=2,expert=2", "fsdp=2,context=2", "fsdp=2,tensor=2", "expert=2,tensor=2")
PAIRS += ("data=2,expert=2", "data=2,context=2", "data=2,tensor=2", "expert=2,context=2", "context=2,tensor=2")


@pytest.mark.parametrize(
    ("kind", "arch", "meshes"),
    [
        ("ids", "mot", (*SINGLE, *PAIRS, "fsdp=2,context=2,tensor=2")),
        ("ids", "dense", (*SINGLE, "fsdp=4,tensor=2", "context=4,fsdp=2")),
        ("ids", "moe_ec4", (*SINGLE, "fsdp=2,expert=2,tensor=2", "expert=2,context=2,tensor=2")),
        ("ids", "mot_moe", ("fsdp=2,expert=2", "expert=2,context=2")),
        ("vectors", "dense", ("fsdp=2,tensor=2", "context=2")),
        ("vectors", "mot", ("context=2,tensor=2", "fsdp=2")),
    ],
)
def test_every_mesh_gives_one_devices_gradients_leaf_by_leaf(kind, arch, meshes):
    """In a process of its own, for its eight devices."""
    command = [sys.executable, "-c", MESHES, kind, arch, *meshes]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENV, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(meshes)

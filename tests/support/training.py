"""Small runs, what they wrote, and the environment of those in processes of their own."""

import os
import subprocess
import sys

import jax
import numpy as np

from configs import digits
from mot import optim, sharding
from mot.config import resolve
from mot.data import embedded
from mot.runs import rundir
from mot.train.state import init_state
from mot.train.step import make_step
from tests.conftest import ROOT

TRAIN = [sys.executable, "-m", "launch.train", "--config=configs/digits.py:arch=mot,size=smoke"]
SMOKE = "--config=configs/digits.py:arch=mot,size=smoke"


ENV = os.environ | {"JAX_PLATFORMS": "cpu"}


def smoke(root, arch="mot", **overrides):
    tree = digits.get_config(f"arch={arch},size=smoke")
    tree.unlock()
    tree.run.root = str(root)
    for key, value in overrides.items():
        section, name = key.split("__")
        tree[section][name] = value
    return resolve(tree, embedded.faults, optim.uncovered)


def rows(path, kind="train"):
    return [row for row in rundir.read_metrics(path) if row["kind"] == kind]


def restored(path, step):
    """The checkpoint's arrays by path, as written."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as c:
        args = ocp.args.Composite(params=ocp.args.StandardRestore(), opt=ocp.args.StandardRestore())
        trees = c.restore((path / "checkpoints" / str(step)).absolute(), args=args)
    return jax.tree.map(np.asarray, {"params": trees["params"], "opt": trees["opt"]})


def one_step(c, batch, devices, state=None, sources=2):
    mesh = sharding.make_mesh(c, devices)
    with jax.set_mesh(mesh):
        everywhere = sharding.replicated(mesh)
        state = state or jax.jit(lambda: init_state(c), out_shardings=everywhere)()
        step = jax.jit(make_step(c, sources))
        return step(state, sharding.to_global(batch, c, mesh))


def printed(code):
    """What a new process prints that runs the code, in the repository's root."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    return done.stdout


IMPORTS_TENSORFLOW = (
    "import sys, mot.train.loop, launch.data; print(sorted({'tensorflow', 'seqio'} & set(sys.modules)))"
)

"""`optim.reduce_dtype`: gradients as devices add them up."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot import optim, sharding
from mot.config import resolve
from mot.model import params
from mot.objectives import losses
from mot.train import step
from mot.train.state import init_state
from tests.support import examples, vectors

QUICK = dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)  # to compile
ENDS = {"embed/tokens", "head/out"}
STEP = 2**-8  # between neighbours of bfloat16, to their size


def make(arch, dtype, **mesh):
    tree = examples.tree(arch, attention="reference", layers=1, dtype="bfloat16")
    tree.optim.reduce_dtype = dtype
    tree.mesh.update(mesh)
    return resolve(tree)


def gradients(c, devices):
    """The loss, and by path the gradients of a batch, float32."""

    def of(state, batch):
        trained, frozen = params.split(state.params, optim.trainable(c))
        (loss, _), grads = step.make_gradients(c, 2)(state, trained, frozen, batch, losses.totals(batch, c))
        return loss, params.paths(grads)

    with jax.set_mesh(sharding.make_mesh(c, devices)):
        state = jax.jit(partial(init_state, c))()
        loss, grads = jax.jit(of, compiler_options=QUICK)(state, examples.batch())
    return float(loss), {path: np.asarray(x) for path, x in grads.items()}


@pytest.mark.parametrize("arch", ["mot", pytest.param("moe_tc4", marks=pytest.mark.slow)])
def test_a_gradient_of_bfloat16_is_that_of_float32_rounded_once(arch, one_device):
    """And the loss is the same: weights are multiplied in bfloat16 as ever. On four devices it is as good."""
    rounded, exact = make(arch, "bfloat16"), make(arch, "float32")
    (loss, grads), (kept, precise) = gradients(rounded, one_device), gradients(exact, one_device)
    _, of_four = gradients(make(arch, "bfloat16", data=2, fsdp=2), jax.devices()[:4])
    assert loss == kept
    for path, spec in params.table(rounded).items():
        assert grads[path].dtype == np.float32
        of_bfloat16 = np.asarray(jnp.asarray(grads[path]).astype(jnp.bfloat16).astype(jnp.float32))
        assert (grads[path] == of_bfloat16).all() == params.is_reduced(path, spec), path
        largest = np.abs(precise[path]).max()
        np.testing.assert_allclose(grads[path], precise[path], atol=2 * STEP * largest, err_msg=path)
        np.testing.assert_allclose(of_four[path], precise[path], atol=8 * STEP * largest, err_msg=path)


def test_what_is_reduced_in_it():
    """Matrices that multiply in `model.dtype`, embedding and head. Noise levels' layers and routers are float32."""
    of_noise = vectors.make(sound=dict(time_features="dit"))
    for table in (params.table(make("moe_ec4", "bfloat16")), params.table(of_noise)):
        reduced = {path for path, spec in table.items() if params.is_reduced(path, spec)}
        assert reduced == {path for path in table if params.parse(path).weight in params.MATRIX_AXES} | ENDS

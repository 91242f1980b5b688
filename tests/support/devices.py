"""Of the eight virtual devices of the tests' process, as many as a test asks for are there to be seen."""

import contextlib
import math
from unittest import mock

import jax
import numpy as np

from mot import sharding
from mot.config import resolve
from mot.train.state import state_shardings
from tests.support import examples

_every = jax.devices


@contextlib.contextmanager
def devices(number):
    with mock.patch.object(jax, "devices", lambda *backend: _every(*backend)[:number]):
        yield jax.devices()


def same_on_meshes(tree, loss_of, batch, weights, meshes) -> None:
    """Loss and gradients of a configuration on each mesh are those of one device, leaf by leaf.

    `loss_of(config)` is `(weights, batch) -> (loss, gradients)`; a mesh is a dict of axes.
    """
    want, want_grads = jax.jit(loss_of(resolve(tree)))(weights, batch)
    for axes in meshes:
        tree.mesh.update(dict(data=0, fsdp=1, expert=1, context=1, tensor=1) | axes)
        c = resolve(tree)
        with devices(math.prod(axes.values())):
            mesh = sharding.make_mesh(c)
        with jax.set_mesh(mesh):
            places = state_shardings(c, mesh).params
            step = jax.jit(loss_of(c), out_shardings=(None, places))
            got, grads = step(jax.device_put(weights, places), sharding.to_global(batch, c, mesh))
        np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=str(axes))
        assert examples.leaf_error(jax.device_get(grads), want_grads) < 1e-5, axes

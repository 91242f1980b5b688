"""Of the eight virtual devices of the tests' process, as many as a test asks for are there to be seen."""

import contextlib
from unittest import mock

import jax

_every = jax.devices


@contextlib.contextmanager
def devices(number):
    with mock.patch.object(jax, "devices", lambda *backend: _every(*backend)[:number]):
        yield jax.devices()

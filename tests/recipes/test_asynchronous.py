"""A third stream joins a trained model by the real command: nothing of the old changes, and the new one learns."""

import jax
import numpy as np

from mot.model import params
from mot.runs import rundir
from tests.support import recipes
from tests.support.training import restored, rows


def weights(path, step):
    return params.paths(restored(path, step)["params"])


def test_what_was_there_stays_to_the_bit_and_the_new_stream_learns(tmp_path, capsys):
    source = recipes.two_steps("asynchronous", tmp_path, "stage=base")
    changes = dict(init__run=source, run__steps=6, run__eval_every=6, run__save_every=6)
    config = recipes.config("asynchronous", tmp_path, "stage=added", **changes)
    path = recipes.loop.run(config, devices=jax.devices()[:1])
    said = capsys.readouterr().err
    assert "init.run gives nothing for attn/patches, ffn/patches, norm/patches" in said
    assert "not taken" not in said
    was, now = weights(source, 2), weights(path, 6)
    for name, x in was.items():
        np.testing.assert_array_equal(x, now[name], err_msg=name)
    new = [name for name in now if name not in was]
    assert new
    assert all("patches" in name for name in new)
    first, last = (next(row for row in rows(path, "eval") if row["step"] == step) for step in (0, 6))
    assert first["loss/text/manual"] == last["loss/text/manual"]  # no document of the manual holds anything new
    assert last["loss/image"] < first["loss/image"]
    assert rundir.config_of(path).streams["patches"].latent == 4

"""What runs of one configuration make alike, made once for all that this process trains."""

import contextlib
import json
from unittest import mock

import jax

from mot.data import embedded
from mot.runs import rundir
from mot.train import evaluate, loop, step

MOST = 6  # that are kept of each: they are large


def kept(make, key_of):
    """`make`, which gives what it gave before where the key is the same."""
    made = {}

    def making(*args):
        key = key_of(*args)
        made[key] = made.pop(key) if key in made else make(*args)
        if len(made) > MOST:
            del made[next(iter(made))]
        return made[key]

    return making


def of_program(config, sources, *mesh):
    """All that a step's or an evaluation's program depends on, also what tests set and replace."""
    plain = rundir.plain(config)
    plain["run"] = {"steps": config.run.steps}
    del plain["init"]  # where weights come from
    return json.dumps(plain), sources, mesh, jax.config.read("jax_disable_most_optimizations"), step.make_gradients


def of_documents(config):
    plain = rundir.plain(config)
    words = (embedded.CAPTIONS, tuple(embedded.all_captions()))  # which tests replace
    return json.dumps([plain["streams"], plain["data"]["roles"], plain["data"]["sources"]]), config.vocab, words


@contextlib.contextmanager
def once():
    """Of runs in this process alone. What a sampler, a probe or several runs in one program compile is made each time,
    and so is what `mot replay` compares with the run."""
    with (
        mock.patch.object(loop, "jitted", kept(loop.jitted, of_program)),
        mock.patch.object(evaluate, "jitted", kept(evaluate.jitted, of_program)),
        mock.patch.object(embedded, "load", kept(embedded.load, of_documents)),
    ):
        yield

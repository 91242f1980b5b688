"""A frozen modality, through the real command: dense is trained, MoT begins from it, and text stays what it was."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from configs import base
from mot import optim
from mot.config import resolve
from mot.model import params
from mot.runs import rundir
from mot.train.state import init_state
from tests.conftest import ROOT
from tests.support import examples, vectors
from tests.support.commands import succeeds
from tests.support.devices import devices
from tests.support.training import one_step, restored, rows

TEXT_ONLY = "loss/text/manual"  # of documents in which text attends to nothing else


def trained(root, arch, name, *more):
    """What `mot train` says, on one device; the folder."""
    config = f"--config={ROOT}/configs/digits.py:arch={arch},size=smoke"
    with devices(1):
        _, said = succeeds("train", config, f"--config.run.root={root}", f"--config.run.name={name}", *more)
    return said, root / name


def held_out(path):
    """A run's held-out losses by step."""
    return {row["step"]: row for row in rows(path, "eval")}


def weights(path, step):
    return params.paths(restored(path, step)["params"])


def test_a_frozen_modality_stays_to_the_bit_and_what_stays_trained_is_told(tmp_path):
    _, source = trained(tmp_path, "dense", "dense", "--config.run.eval_every=2")
    more = [f"--config.init.run={source}", "--config.optim.freeze=text", "--config.optim.ema=0.9"]
    more += ["--config.run.steps=4", "--config.run.eval_every=4", "--config.run.save_every=4"]
    # One's own rules come before the defaults, and do not restate them.
    more += ["--config.optim.rules=[{'match': '/image/w1', 'lr': 0.5, 'decay': 0.0}]"]
    said, path = trained(tmp_path, "mot", "frozen", *more)
    was, now = weights(source, 2), weights(path, 4)
    text = [name for name in now if "/text/" in name or name.startswith(("embed/", "head/"))]
    for name in now:
        origin = name.replace("image", "text")  # dense's towers have the name of their first stream
        assert np.array_equal(now[name], was[origin]) == (name in text), name
    first, last = held_out(path)[0], held_out(path)[4]
    assert first[TEXT_ONLY] == last[TEXT_ONLY]
    assert first["bits_per_byte/manual"] == last["bits_per_byte/manual"]
    assert first[TEXT_ONLY] == pytest.approx(held_out(source)[2][TEXT_ONLY], rel=1e-5)
    assert last["loss/image"] < first["loss/image"]

    def size(names):
        return f"{sum(now[name].size for name in names):,}"

    def of(part):
        return size(name for name in text if name.startswith(part))

    said = " ".join(said.split())
    assert f"frozen: {size(text)} of {size(now)} parameters: embed {of('embed')}, attn/text" in said
    assert f"trained: {size(set(now) - set(text))}: attn/image" in said
    assert f"frozen for image too, which shares them: embed {of('embed')}, head {of('head')}" in said
    assert "random initial values" not in said


def frozen(tree):
    c = resolve(tree, optim.uncovered)
    return {path for path in params.table(c) if not optim.trainable(c)(path)}, c


@pytest.mark.parametrize("arch", ["mot", "mot_ffn", "loo_image"])
def test_all_that_a_modality_uses_is_frozen_whoever_shares_it(arch):
    tree = vectors.tree(arch)
    tree.optim.freeze = "text"
    found, c = frozen(tree)
    mine = set()
    for part in ("attn", "ffn", "norm"):
        tower = getattr(c.towers, part)["text"]
        mine |= {path for path in params.table(c) if re.match(rf"(blocks/main/{part}|final_{part})/{tower}/", path)}
    assert found == mine | {"embed/tokens", "head/out"}
    told = "\n".join(optim.told(c))
    assert "latent/image" in told
    shared = re.findall("frozen for (image|sound) too, which shares them: (.*)", told)
    assert [who for who, _ in shared] == {"mot": [], "mot_ffn": ["image", "sound"], "loo_image": ["sound"]}[arch]
    assert all(what.startswith("attn/text") for _, what in shared)


def test_a_modality_of_vectors_has_its_ends_and_a_part_is_frozen_alone():
    tree = vectors.tree("mot", sound=None)
    tree.streams.sound.update(modality="image", representation="heard", loss_weight=5.0)
    tree.optim.freeze = "image,text.norm"
    found, c = frozen(tree)

    def of(name):
        return {path for path in params.table(c) if f"/{name}/" in path}

    norms = {path for path in of("text") if "norm/" in path}
    assert found == of("image") | of("sound") | norms
    assert "latent/image/out" in found
    assert not any("towers are frozen" in line for line in optim.told(c))


def test_what_of_a_frozen_tower_still_moves_is_told():
    tree = examples.tree()
    tree.optim.rules = (dict(match="/text/", lr=0.0, decay=0.0),)
    told = optim.told(frozen(tree)[1])
    assert any(
        re.fullmatch(r"text's towers are frozen, .*: embed 384, head 384; --config.optim.freeze=text freezes .*", line)
        for line in told
    )
    assert "random initial values" in told[-1]
    assert not optim.told(examples.make())


def test_a_frozen_routers_bias_does_not_move(one_device):
    tree = examples.tree(layers=1, attention="reference")
    experts = dict(router="token", balance="bias", balance_rate=0.1, active=2)
    tree.ffn = {name: base.moe(4, **experts) for name in ("text", "image")}
    tree.optim.update(freeze="text", warmup=0)
    c = resolve(tree, optim.uncovered)
    state = jax.jit(lambda: init_state(c))()
    after, measured = one_step(c, examples.batch(), one_device, state)
    was, now = params.paths(state.params), params.paths(after.params)
    assert {path for path in now if not np.array_equal(was[path], now[path])} == {p for p in now if "/image/" in p}
    assert set(measured["grad_norms"]) == {"image"}


def test_a_run_whose_rules_were_one_list_is_read_and_goes_on(tmp_path):
    """As versions wrote it whose `optim.rules` were the defaults, too."""
    c = examples.make()
    c = dataclasses.replace(c, run=dataclasses.replace(c.run, root=str(tmp_path)))
    path = rundir.open_run(c)
    old = json.loads((path / "config.json").read_text(encoding="utf-8"))
    del old["digest"]  # of what is changed here
    old["optim"]["rules"] = old["optim"].pop("base_rules")
    del old["optim"]["freeze"]
    (path / "config.json").write_text(json.dumps(old), encoding="utf-8")
    assert rundir.config_of(path).optim == c.optim
    assert rundir.open_run(c) == path

"""`mot config`: every key, its value, what it is for, what it may be and its default, from where each is decided."""

import dataclasses
import functools
import inspect

import pytest

from launch import cli
from mot.config import ConfigError, checks, resolve, schema
from mot.config.allowed import Range
from mot.config.keys import comments, keys
from mot.model import params
from tests.support import examples


def test_every_key_says_what_it_is_for():
    c = resolve(examples.tree("moe_tc4"))
    named = {key.path: key for key in keys(c)}
    silent = {"towers.attn.", "towers.ffn.", "towers.norm.", "mesh.rules.", "data.sources.", "data.shares."}
    assert not [path for path, key in named.items() if not key.comment and not path.startswith(tuple(silent))]
    both_lines = "nothing, all but projections' results, whole blocks; offload: these too, and what enters each block"
    assert both_lines in named["model.remat"].comment


def test_every_part_that_can_be_frozen_is_named():
    _, _, named = comments()["Optim"]["freeze"].rpartition("(")
    assert tuple(named.rstrip(")").split(", ")) == params.PARTS


def test_what_is_shown_as_allowed_is_what_is_checked():
    """The tables name classes and fields that are there, and a value outside of one is refused, once."""
    kinds = dict(inspect.getmembers(schema, dataclasses.is_dataclass))
    assert not [f"{k}.{f}" for k, table in checks.VALUES.items() for f in table if f not in comments()[k]]
    assert set(checks.VALUES) <= set(kinds)
    sections = {x: x.capitalize() for x in ("run", "model", "optim", "data", "mesh", "init", "objective")}
    sections |= {"streams.text": "Stream", "ffn.text": "Experts"}
    for section, kind in sections.items():
        for name, allowed in checks.VALUES[kind].items():
            tree = examples.tree("moe_tc4").unlock()
            group = functools.reduce(lambda at, key: at[key], section.split("."), tree)
            group[name] = type(group[name])(allowed.least - 1) if isinstance(allowed, Range) else "another"
            with pytest.raises(ConfigError) as caught:
                resolve(tree)
            (fault,) = caught.value.faults  # one for one, whatever else the value does not go with
            assert f"{section}.{name}" in fault or name in fault.partition(":")[0], fault


def shown(capsys, *args):
    assert cli.main(["config", "configs/digits.py:size=smoke", *args]) == 0
    return capsys.readouterr().out


def test_a_configuration_is_shown_whole_in_groups_and_by_key(capsys):
    whole = shown(capsys, "--config.optim.schedule=linear")
    assert "\n# optim: AdamW" in whole
    line = next(line for line in whole.splitlines() if line.startswith("optim.schedule = "))
    assert line.startswith("optim.schedule = 'linear' ")
    assert "how the rate falls after it" in line
    assert f"[{', '.join(checks.VALUES['Optim']['schedule'])}]" in line
    assert line.endswith("(default 'cosine')")
    assert "streams.image.budget = 320 " in whole
    group = shown(capsys, "streams.text.diffusion").splitlines()
    assert all(line.startswith(("streams.text.diffusion.", "# streams.text.diffusion:")) for line in group if line)
    assert "  allowed: a number above 0\n  default: 0.001\n" in shown(capsys, "optim.lr")
    assert "default: none; the configuration's file says it" in shown(capsys, "streams.text.width")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("data.most_left_out", "data.most_left_out: there is no such key; it is called max_skipped now\n"),
        ("streams.image.longest", "it is called max_tokens now\n"),
        ("towers.walls", "it is called stop_gradients now\n"),
        ("data.bath", "did you mean 'data.batch'?"),
    ],
)
def test_a_key_that_is_none_says_what_it_is_called_now(capsys, asked, says):
    assert cli.main(["config", "configs/digits.py:size=smoke", asked]) == 2
    assert says in capsys.readouterr().err

"""What configurations differ in, by dotted key, and what of it one program can hold."""

import pytest

from mot.config import ConfigError, Sections
from mot.config.varied import differing, flat, put, varies
from tests.support import examples


def test_only_what_a_program_computes_with_varies():
    ones = ["model.seed", "optim.warmup", "optim.base_rules[1].decay", "optim.rules[12].decay"]
    assert all(map(varies, [*ones, "streams.image.loss_weight"]))
    others = ["data.seed", "optim.ema", "optim.rules", "optim.rules[1].lr", "streams.a.b.loss_weight", "xoptim.lr", ""]
    assert not any(map(varies, others))


def test_a_value_is_put_and_found_by_its_key():
    c = examples.make()
    changed = c
    for key, value in {"streams.image.loss_weight": 3.0, "optim.base_rules[1].decay": 0.3, "optim.lr": 0.5}.items():
        changed = put(changed, key, value)
        assert flat(changed)[key] == value
    assert differing([c, changed, c]) == {
        "streams.image.loss_weight": [1.0, 3.0, 1.0],
        "optim.lr": [c.optim.lr, 0.5, c.optim.lr],
        "optim.base_rules[1].decay": [0.1, 0.3, 0.1],
    }
    shorter = put(c, "optim.base_rules", c.optim.base_rules[1:])
    assert differing([c, shorter])["optim.base_rules[1].decay"] == [0.1, "absent"]


def test_a_config_checks_itself_anew_and_sections_do_not():
    c = examples.make()
    with pytest.raises(ConfigError, match=r"optim.lr: -1"):
        put(c, "optim.lr", -1.0)
    assert put(Sections(**vars(c)), "optim.lr", -1.0).optim.lr == -1.0

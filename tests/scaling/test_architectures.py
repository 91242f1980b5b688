"""The names of architectures: a report's are those of configs/archs.py, wherever else they stand."""

import pytest

from configs import archs, digits
from mot.config import resolve
from mot.plan import ladder
from scaling import architectures, facts, published

NAMES = [name for name in archs.UNROUTED | archs.ROUTED if not {"*", "<"} & set(name)]


@pytest.mark.parametrize("arch", NAMES)
def test_a_preset_is_reported_under_its_name(arch):
    assert architectures.name(resolve(digits.get_config(f"arch={arch},size=smoke"))) == arch


@pytest.mark.parametrize(
    "names",
    [
        architectures.COLOURS,
        architectures.NAMED.values(),
        facts.PLAIN,
        ladder.ARCHS,
        [name for table in (published.CHAMELEON, published.TRANSFUSION) for name in table.slopes],
    ],
    ids=["colours", "experts", "lines", "plans", "published"],
)
def test_a_name_that_stands_elsewhere_is_a_preset(names):
    assert not set(names) - set(NAMES)

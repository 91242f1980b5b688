"""The names of architectures: a report's are those of configs/archs.py, wherever else they stand."""

import pytest

from configs import archs, digits
from mot.config import resolve
from mot.plan import ladder
from scaling import architectures, facts, published
from tests.support import examples

NAMES = [name for name in archs.UNROUTED | archs.ROUTED if not {"*", "<"} & set(name) and name != "mot_role"]


@pytest.mark.parametrize("arch", NAMES)
def test_a_preset_is_reported_under_its_name(arch):
    assert architectures.name(resolve(digits.get_config(f"arch={arch},size=smoke"))) == arch


@pytest.mark.parametrize("layers", [2, 3, 7, 12, 36])
def test_towers_by_depth_are_reported_by_where_they_are_apart(layers):
    assert archs.ends(layers) == architectures.untied_ends(layers)
    for arch in ("mot_ends", "mot_middle"):
        assert architectures.name(resolve(examples.tree(arch, layers=layers))) == arch
    tree = examples.tree("mot", layers=layers)
    tree.towers.ffn.image = f"0:1 text, 1:{layers} image"
    assert architectures.name(resolve(tree)) == f"attn:image|text ffn:image+text norm:image|text 0:1, mot 1:{layers}"


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

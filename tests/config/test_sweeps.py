"""Sweeps: their algebra, what comes with mot, and that all arms of one read the same batches."""

from types import ModuleType

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import configs as package
from configs import sweeps
from launch import flags, sweep_rows
from mot.config import load
from mot.data import pipeline
from mot.train import restore

NAMES = st.text("abcdef0123456789", min_size=1, max_size=4)


def of(keys):
    """Sweeps whose rows have some of these keys, and perhaps a name."""
    values = st.dictionaries(st.sampled_from(keys), st.integers(0, 9))
    named = st.builds(lambda row, name: row | ({"run.name": name} if name else {}), values, st.just("") | NAMES)
    return st.lists(named, max_size=4)


A, B, C = (of([f"{group}.one", f"{group}.two"]) for group in ("a", "b", "c"))


@given(A, B, C)
def test_a_product_has_every_row_with_every_other_and_is_associative(a, b, c):
    rows = sweeps.product(a, b, c)
    assert len(rows) == len(a) * len(b) * len(c)
    assert rows == sweeps.product(sweeps.product(a, b), c) == sweeps.product(a, sweeps.product(b, c))
    assert sweeps.product(a) == a == sweeps.product(a, [{}])
    assert sweeps.product(a, sweeps.chain(b, c)) == [
        row for one in a for row in sweeps.chain(sweeps.product([one], b), sweeps.product([one], c))
    ]
    keys = {key for row in rows for key in row}
    assert keys <= {key for row in (*a, *b, *c) for key in row}


@given(A, B, C)
def test_chain_is_associative_and_has_every_row(a, b, c):
    rows = sweeps.chain(a, b, c)
    assert len(rows) == len(a) + len(b) + len(c)
    assert rows == sweeps.chain(sweeps.chain(a, b), c) == sweeps.chain(a, sweeps.chain(b, c))


@given(A, B, C)
def test_zip_joins_row_by_row_and_is_associative(a, b, c):
    if len({len(a), len(b), len(c)}) > 1:
        with pytest.raises(ValueError, match="make them equally long"):
            sweeps.zip_(a, b, c)
    n = min(len(a), len(b), len(c))
    a, b, c = a[:n], b[:n], c[:n]
    rows = sweeps.zip_(a, b, c)
    assert len(rows) == n
    assert rows == sweeps.zip_(sweeps.zip_(a, b), c) == sweeps.zip_(a, sweeps.zip_(b, c))
    assert rows == [sweeps.joined(*three) for three in zip(a, b, c, strict=True)]


@given(A, A, st.sampled_from([sweeps.product, sweeps.zip_]))
def test_a_key_has_one_value_in_a_row(a, b, algebra):
    pairs = zip(a, b, strict=False) if algebra is sweeps.zip_ else [(x, y) for x in a for y in b]
    twice = any((x.keys() & y.keys()) - {"run.name"} for x, y in pairs)
    if len(a) != len(b) and algebra is sweeps.zip_:
        return
    if twice:
        with pytest.raises(ValueError, match="vary a key once"):
            algebra(a, b)
    else:
        algebra(a, b)


def test_a_group_and_a_key_of_it_conflict():
    with pytest.raises(ValueError, match=r"data\.shares\.a=1 and data\.shares=.*vary a key once"):
        sweeps.product([{"data.shares": {"a": 2}}], [{"data.shares.a": 1}])
    assert sweeps.product([{"data.share": 1}], [{"data.shares": 1}])


def test_names_are_joined():
    rows = sweeps.product([{"run.name": "mot"}], sweeps.over("optim.lr", 1e-3, 2e-3), sweeps.seeds(2))
    assert [row["run.name"] for row in rows] == [
        "mot-lr0.001-seed0",
        "mot-lr0.001-seed1",
        "mot-lr0.002-seed0",
        "mot-lr0.002-seed1",
    ]


def configs(rows):
    return {row["run.name"]: flags.judged(load.read(row["config"], sweep_rows.overrides(row))) for row in rows}


SWEEPS = ("archs", "untying", "leave_one_out", "towers_by_depth", "routing", "mixture", "caption_shift")


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("file", ["digits", pytest.param("transfusion", marks=pytest.mark.slow)])
def test_all_arms_read_the_same_batches_byte_for_byte(name, file):
    """Of caption_shift, which asks what other documents do, those of each arm."""
    rows = getattr(sweeps, name)(f"config=configs/{file}.py,size=smoke,seeds=2")
    found = configs(rows)
    assert len(found) == len(rows)
    assert {c.model.seed for c in found.values()} == {0, 1}
    read = {}
    for run, config in found.items():
        is_of_text_alone = name == "caption_shift" and run.split("-")[1] == "text"
        read.setdefault(is_of_text_alone, set()).add(first_batches(config))
    assert {len(batches) for batches in read.values()} == {1}
    assert len(read) == 1 + (name == "caption_shift")
    assert len(set.union(*read.values())) == len(read)


def first_batches(config, number=2):
    """The bytes of every array of the first batches, in order, as training reads them."""
    config, training, _ = restore.open_data(config)
    batches = pipeline.Batches(training, config, config.data.seed, number)
    leaves = [x for n in range(number) for x in jax.tree.leaves(batches[n].batch)]
    return b"".join(np.asarray(x).tobytes() for x in leaves)


def test_another_data_seed_is_another_arm():
    """What the test above would miss if it compared nothing."""
    rows = sweeps.product([{"config": "configs/digits.py:size=smoke"}], sweeps.over("data.seed", 0, 1))
    assert len({first_batches(config) for config in configs(rows).values()}) == 2


THREE = """
from configs import digits, base, archs

def get_config(arg=""):
    given = base.parse(arg, digits.ARGUMENTS)
    c = digits.get_config(f"size={given['size']}").unlock()
    c.streams.sound = base.stream("audio", 32, 64, budget=64, max_tokens=64, first_id=1041, ids=9)
    archs.choose(c, given["arch"])
    return c.lock()
"""


def test_leave_one_out_of_three_streams_leaves_each_out(tmp_path):
    (tmp_path / "three.py").write_text(THREE, encoding="utf-8")
    rows = sweeps.leave_one_out(f"config={tmp_path}/three.py,size=smoke,seeds=1")
    names = [row["run.name"] for row in rows]
    assert names == ["dense-seed0", "loo_image-seed0", "loo_sound-seed0", "loo_text-seed0", "mot-seed0"]
    maps = {row["run.name"]: load.read(row["config"], {}).towers.ffn.to_dict() for row in rows}
    assert maps["loo_image-seed0"] == {"image": "image", "text": "text", "sound": "text"}
    two_out = load.read(f"{tmp_path}/three.py:size=smoke,arch=loo_image+sound", {}).towers
    assert two_out.ffn.to_dict() == two_out.norm.to_dict() == {"image": "image", "text": "text", "sound": "image"}
    with pytest.raises(ValueError, match=r"arch=loo_image\+film: no such architecture"):
        load.read(f"{tmp_path}/three.py:size=smoke,arch=loo_image+film", {})
    two = sweeps.leave_one_out("size=smoke,seeds=1")
    assert [row["run.name"] for row in two] == ["dense-seed0", "mot-seed0"]


def test_towers_are_apart_where_a_sweep_by_depth_says():
    rows = sweeps.towers_by_depth("size=demo,seeds=1")
    maps = {row["run.name"]: load.read(row["config"], {}).towers.ffn.image for row in rows}
    assert maps == {
        "dense-seed0": "text",
        "mot_ends-seed0": "0:1 image, 1:3 text, 3:4 image",
        "mot_middle-seed0": "0:1 text, 1:3 image, 3:4 text",
        "mot-seed0": "image",
    }


def test_the_arms_of_mixtures_train_what_they_are_called():
    rows = {row["run.name"]: row for row in sweeps.mixture("size=smoke,seeds=1,archs=mot")}
    assert list(rows) == ["mot-image-seed0", "mot-text-seed0", "mot-joint-seed0"]
    weights = {name: {s: x.loss_weight for s, x in c.streams.items()} for name, c in configs(rows.values()).items()}
    assert weights["mot-image-seed0"] == {"text": 0.0, "image": 1.0}
    assert weights["mot-text-seed0"] == {"text": 1.0, "image": 0.0}
    assert weights["mot-joint-seed0"] == {"text": 1.0, "image": 1.0}
    shifted = configs(sweeps.caption_shift("size=smoke,seeds=1,archs=mot"))
    assert [list(c.data.sources) for c in shifted.values()] == [["manual"], *[["drawn", "manual", "read"]] * 2]
    assert [c.streams["image"].loss_weight for c in shifted.values()] == [0.0, 0.0, 1.0]


def test_ladders_and_budgets():
    rows = sweeps.ladder("rungs=0.3m+1m,archs=dense+mot")
    assert [row["config"] for row in rows[:2]] == [
        "configs/ladder.py:rung=0.3m,arch=dense",
        "configs/ladder.py:rung=0.3m,arch=mot",
    ]
    found = configs(sweeps.isoflop("rungs=0.3m+1m,archs=mot,budgets=1e13+4e13"))
    assert list(found)[:2] == ["1e13-0.3m-mot-seed0", "1e13-1m-mot-seed0"]
    steps = [c.run.steps for c in found.values()]
    assert steps[0] > steps[1] > 0
    assert [round(more / less, 1) for less, more in zip(steps[:2], steps[2:], strict=True)] == [4.0, 4.0]
    held_out = sweeps.ladder("rungs=0.3m+1m+3m,validation=1m,test=3m,archs=mot")
    assert [row.get("run.role") for row in held_out] == [None, "validation", "test"]
    assert [c.run.role for c in configs(held_out).values()] == ["fit", "validation", "test"]
    embedded = sweeps.ladder("config=configs/chameleon.py,rungs=0.3m,archs=mot")
    assert embedded[0]["config"] == "configs/chameleon.py:size=0.3m,arch=mot"


def test_routing_is_matched_as_asked():
    active = {row["run.name"] for row in sweeps.routing("size=smoke,match=active,seeds=1")}
    total = {row["run.name"] for row in sweeps.routing("size=smoke,match=total,seeds=1")}
    assert active & total == {"dense-seed0", "mot-seed0"}
    assert active | total == {row["run.name"] for row in sweeps.routing("size=smoke,seeds=1")}
    assert "moe_tc4_total-seed0" in total


def test_a_search_has_the_same_points_in_every_arm(monkeypatch):
    """Points are configs/search.py's."""
    ranges = ModuleType("search")
    ranges.RANGES = {"optim.lr": 1e-3}

    def rows(given, count, how):
        assert (given, how) == (ranges.RANGES, "random")
        return [{"optim.lr": 1e-3 * (1 + i), "run.name": f"point{i}"} for i in range(count)]

    ranges.rows = rows
    monkeypatch.setattr(package, "search", ranges, raising=False)
    found = sweeps.search("size=smoke,points=3,how=random")
    assert [row["run.name"] for row in found[:2]] == ["dense-point0-seed0", "dense-point1-seed0"]
    assert [row["optim.lr"] for row in found[:3]] == [row["optim.lr"] for row in found[3:]]
    assert len({sweep_rows.program(c) for c in configs(found).values()}) == 2


@pytest.mark.parametrize(
    ("name", "arg", "says"),
    [
        ("archs", "arch=mot", "write archs=mot"),
        ("archs", "seeds=0", "seeds=0: must be a whole number, 1 or more"),
        ("archs", "seeds=2,seeds=3", "stands there twice"),
        ("archs", "archs=", "archs=: has no value; the default is dense"),
        ("ladder", "rung=1m", "write rungs=1m"),
        ("ladder", "rungs=0.3m+1m,test=3m", "test=3m: no such test among rungs; allowed: 0.3m, 1m"),
        ("isoflop", "rungs=0.3m+1m,test=1m,validation=1m", "test=1m: 1m has a role already; name it once"),
        ("isoflop", "budgets=1e14+much", "budgets=much: must be a number above 0"),
        ("leave_one_out", "archs=mot", "leave_one_out has its own"),
        ("routing", "match=all", "match=all: no such match; allowed: active, total, both"),
        ("caption_shift", "text=book", "text=book: no such text; allowed: drawn, manual, read"),
        ("mixture", "config=nowhere.py", "config=nowhere.py: there is no such file"),
    ],
)
def test_bad_arguments_are_told(name, arg, says):
    with pytest.raises(ValueError, match=says):
        getattr(sweeps, name)(arg)

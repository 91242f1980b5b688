"""The search for a mesh, and the table of all rungs: which candidates there are, and what is compiled again."""

import dataclasses
import json
import math

import jax
import pytest
from rich.console import Console

from mot import optim
from mot.config import load, resolve
from mot.errors import UserError
from mot.model import flops, params
from mot.plan import best, chips, forecast, ladder, process, search
from tests.conftest import ROOT

GIB = 2**30


def rung(name, arch="mot"):
    tree = load.read(f"configs/ladder.py:rung={name},arch={arch}", {})
    return resolve(tree, optim.uncovered)


def slice_(name, devices):
    return chips.Topology(name, chips.parse(name)[0], devices, [None] * devices, {})


def test_candidates_divide_and_come_fastest_first():
    config, topology = rung("7b"), slice_("v5p:4x4x4", 64)
    found = search.candidates(config, topology)
    assert len(found) > 20
    assert [c.seconds for c in found] == sorted(c.seconds for c in found)
    for c in found:
        m, rows = c.config.mesh, c.config.data.batch // c.config.optim.accumulate
        assert m.data * m.fsdp * m.expert * m.context * m.tensor == 64
        assert rows % (m.data * m.fsdp * m.expert) == 0
        assert c.bytes <= 0.9 * topology.memory
    assert (found[0].config.mesh.data, found[0].config.mesh.fsdp) == (2, 32)
    # A 7B's state alone takes far more than one chip has: it is split.
    assert all(c.config.mesh.fsdp * c.config.mesh.tensor >= 4 for c in found)


def test_what_cannot_fit_is_said():
    with pytest.raises(UserError, match="take a larger slice"):
        search.candidates(rung("7b"), slice_("v5e:2x2", 4))


def test_what_no_mesh_divides_is_said():
    """It would fit."""
    with pytest.raises(
        UserError, match=r"no mesh divides data.batch = \d+ rows .* 105 devices; take a slice of another"
    ):
        search.candidates(rung("37m"), slice_("v5p:3x5x7", 105))


def test_no_mesh_is_tried_on_which_the_least_effort_aborts(monkeypatch):
    config, topology = rung("94m"), slice_("v5p:2x2x1", 4)
    assert any(found.config.mesh.fsdp == 1 for found in search.candidates(config, topology))
    monkeypatch.setattr(forecast, "_effort", lambda: -1.0)
    assert all(found.config.mesh.fsdp > 1 for found in search.candidates(config, topology))


def test_recomputing_costs_time_and_saves_memory():
    config, topology = rung("1.5b"), slice_("v5p:4x4x4", 64)
    of = {}
    for c in search.candidates(config, topology):
        m = c.config.mesh
        if (m.fsdp, m.data, m.context, m.tensor, c.config.optim.accumulate) == (64, 1, 1, 1, 8):
            of[c.config.model.remat] = c
    assert of["block"].seconds > of["dots"].seconds
    assert of["block"].bytes < of["dots"].bytes < of["none"].bytes


def test_two_groups_send_less_where_gradients_over_a_whole_slice_are_reduced_whole():
    """By hand: gathers send 4 bytes a parameter, gradients 4 or 8, and those of two groups are added."""
    config = rung("7b")
    once = dataclasses.replace(config.optim, accumulate=1)

    def sent(name, devices, data):
        mesh = dataclasses.replace(config.mesh, data=data, fsdp=devices // data)
        return search._sent(dataclasses.replace(config, mesh=mesh, optim=once), slice_(name, devices))

    parameters = flops.total_parameters(config)
    assert sent("v5p:4x4x4", 64, 1) == pytest.approx((4 + 8) * parameters * 63 / 64, rel=1e-3)
    assert sent("v5p:4x4x4", 64, 2) == pytest.approx(((4 + 4) * 31 / 32 + 8 / 32 / 2) * parameters, rel=1e-3)
    assert sent("tpu7x:4x4x4", 128, 1) == pytest.approx((4 + 4) * parameters * 127 / 128, rel=1e-3)


def test_what_is_sent_in_bfloat16():
    """By hand: gradients of 2 bytes in place of 4, and along `tensor` six all-reduces of the residual a layer."""
    config = rung("7b")
    c, topology = config.model, slice_("v6e:8x8", 64)

    def sent(dtype, tensor):
        mesh = dataclasses.replace(config.mesh, data=1, fsdp=64 // tensor, tensor=tensor)
        optim = dataclasses.replace(config.optim, accumulate=1, reduce_dtype=dtype)
        return search._sent(dataclasses.replace(config, mesh=mesh, optim=optim), topology)

    parameters = flops.total_parameters(config)
    assert sent("float32", 1) - sent("bfloat16", 1) == pytest.approx((8 - 4) * parameters * 63 / 64, rel=1e-3)
    of_parameters = (4 + 4) * parameters / 2 * 31 / 32
    residual = 2 * config.data.batch * config.length // 32 * 4096
    assert c.remat == "block"
    assert sent("float32", 2) - of_parameters == pytest.approx(6 * c.layers * residual, rel=1e-3)


def test_rows_lie_along_fsdp_alone_where_groups_do_not_fit():
    """At 7B on v5e: MoT in four groups, and MoT with experts, whose state would take a third of 16 GB, in one."""
    found = {arch: ladder.Entry("chameleon", "7b", arch, "v5e:16x16").overrides() for arch in ("mot", "mot_moe")}
    assert [(x["mesh.fsdp"], x["mesh.data"]) for x in found.values()] == [("64", "4"), ("256", "1")]


def test_estimates_of_memory_are_near_the_compilers():
    """Of all rows of the table that is in the documentation."""
    rows = json.loads((ROOT / "docs" / "reference" / "plan.json").read_text(encoding="utf-8"))["plans"]
    for row in rows:
        entry = ladder.Entry(*(row[x.name] for x in dataclasses.fields(ladder.Entry)))
        config = resolve(load.read(entry.config, entry.overrides()), optim.uncovered)
        assert 0.65 < row["memory"]["peak"] / search.memory(config) < 1.25, entry


def test_estimates_of_memory_know_what_the_state_is_and_which_axes_split_it():
    """By hand: an average is 4 bytes a parameter, bfloat16 halves 8 of moments; `expert` splits experts alone."""
    config = rung("443m", "moe_fine")
    table = params.table(config)
    experts = sum(params.count({p: s}) for p, s in table.items() if "expert" in s.axes)
    others = params.count(table) - experts

    def held(expert=1, **optim):
        mesh = dataclasses.replace(config.mesh, data=1, fsdp=16 // expert, expert=expert)
        return search.memory(dataclasses.replace(config, mesh=mesh, optim=dataclasses.replace(config.optim, **optim)))

    assert held(ema=0.999) - held() == pytest.approx(4 * (experts + others) / 16, rel=0.01)
    assert held() - held(moments="bfloat16") == pytest.approx(4 * (experts + others) / 16, rel=0.01)
    state = (12 + 4 * search.GRADIENTS) * others * (1 / 4 - 1 / 16)
    layer = 4 * search.GATHERED * experts * (1 - 1 / 4) / config.model.layers
    assert held(expert=4) - held() == pytest.approx(state - layer, rel=0.01)


def _plan(config, fits=True, seconds=1.0):
    common = dict(topology="v5p:2x2x1", chips=4, devices=4, mesh={"fsdp": 4}, name="x", remat=config.model.remat)
    common |= dict(rows=8, length=512, accumulate=1, versions={"jax": "0"}, parameters=10**9, active={}, towers={})
    common |= dict(flops_per_token=1.0, assumed=forecast.ROW, memory_of_chip=100 * GIB, fits=fits)
    if not fits:
        return forecast.Forecast(**common, trouble="too large")
    roofline = dict(compute=seconds, memory=0.5, interconnect=0.1, network=0.0, overlapped=seconds, step=seconds + 0.6)
    measured = dict(memory={"peak": 50 * GIB, "temporaries": 10 * GIB}, matmul_flops=101.0, formula_flops=100.0)
    measured |= dict(collectives={"all-gather": dict(number=2, bytes=3, wire=4e9)}, roofline=roofline)
    return forecast.Forecast(
        **common, **measured, binding="compute", mfu_bound=0.5, tokens_per_day=1e9, days=2, chip_hours=192
    )


def test_the_search_takes_the_fastest_that_fits(capsys):
    """The first does not fit, the compiler aborts on the second."""
    tried, config = [], rung("443m")

    def judge(overrides):
        tried.append(overrides)
        if len(tried) == 2:
            return {"fits": False, "failed": "Check failed: bound == 1"}
        return _plan(config, fits=len(tried) != 1, seconds=10.0 - len(tried)).to_json()

    plan = best.main(config, slice_("v5p:2x2x1", 4), judge, Console(soft_wrap=True))
    assert len(tried) == 2 + search.FINISHED
    assert plan == _plan(config, seconds=10.0 - len(tried))
    told = capsys.readouterr()
    assert " ".join(f"--config.{key}={value}" for key, value in tried[-1].items()) in told.out
    assert "does not compile: Check failed: bound == 1" in told.err


def test_the_last_words_of_a_process():
    fatal = (
        "F1126 09:01:22.53  644 emitter.cc:676] Check failed: bound == 1\n*** Check failure stack trace: ***\nRaising"
    )
    assert process.last_words(fatal) == "Check failed: bound == 1"
    assert process.last_words("a warning\nmot: heads: 3; write 4\n") == "mot: heads: 3; write 4"
    assert process.last_words("one\n\ntwo\n\n") == "two"
    assert process.last_words("") == "it ended without a word"


@pytest.fixture
def two_entries(monkeypatch):
    topology = chips.Topology("v5p:2x2x1", chips.CHIPS["v5p"], 4, jax.devices(), {"jax": "0"})
    monkeypatch.setattr(chips, "topology", lambda name, slices=1: topology)
    monkeypatch.setattr(ladder, "ARCHS", ("dense", "mot"))
    monkeypatch.setattr(ladder, "RUNGS", {"chameleon": {"37m": ("v5p:2x2x1",)}})
    asked = []

    def compiled(entry):
        asked.append(entry)
        return _plan(rung("37m", entry.arch)).to_json() | {"commit": "0123456789abcdef"}

    monkeypatch.setattr(ladder, "compiled", compiled)
    return asked


def test_the_table_is_written_and_gone_on_with(two_entries, tmp_path):
    assert ladder.main(tmp_path) == 0
    assert len(two_entries) == 2
    page = (tmp_path / "plan.md").read_text(encoding="utf-8")
    assert "Jax 0, mot at 0123456. 2 of 2 are compiled" in page
    assert "| 37m | dense | v5p:2x2x1 | 1.00 G | 53.7, 107 | 1.010 |" in page
    assert "| chameleon | 37m | v5p:2x2x1 | 1.000 | 1.00 | 1.00 | full |" in page
    assert ladder.main(tmp_path) == 0
    assert len(two_entries) == 2  # nothing is compiled again
    kept = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["plans"]
    (tmp_path / "plan.json").write_text(json.dumps({"plans": kept[:1]}), encoding="utf-8")
    assert ladder.main(tmp_path) == 0
    assert [e.arch for e in two_entries[2:]] == ["mot"]


def test_a_rung_that_does_not_compile_is_tried_again_and_ends_with_1(two_entries, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ladder, "compiled", lambda entry: {"fits": False, "failed": "mot: no such kernel"})
        assert ladder.main(tmp_path) == 1
    assert "did not compile: mot: no such kernel" in (tmp_path / "plan.md").read_text(encoding="utf-8")
    assert ladder.main(tmp_path) == 0


def test_an_older_plan_stays_until_it_has_a_successor(two_entries, tmp_path, monkeypatch):
    assert ladder.main(tmp_path) == 0
    file = tmp_path / "plan.json"
    old = [row | {"digest": "older"} for row in json.loads(file.read_text(encoding="utf-8"))["plans"]]
    file.write_text(json.dumps({"plans": old}), encoding="utf-8")
    seen = []

    def compiled(entry):
        seen.append([row["digest"] == "older" for row in json.loads(file.read_text(encoding="utf-8"))["plans"]])
        return _plan(rung("37m", entry.arch)).to_json()

    monkeypatch.setattr(ladder, "compiled", compiled)
    monkeypatch.setattr(ladder, "AT_ONCE", 1)
    assert ladder.main(tmp_path) == 0
    assert seen[0] == [True, True]
    assert len(seen[1]) == 2
    assert "older" not in file.read_text(encoding="utf-8")


def test_a_plan_whose_step_was_bounded_in_another_way_is_dropped(two_entries, tmp_path, monkeypatch):
    assert ladder.main(tmp_path) == 0
    file = tmp_path / "plan.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["plans"]
    rows[0]["roofline"] = {"max": 1.0, "sum": 1.6}
    file.write_text(json.dumps({"plans": rows}), encoding="utf-8")
    assert ladder.main(tmp_path) == 0
    assert [entry.arch for entry in two_entries] == ["dense", "mot", "dense"]
    page = (tmp_path / "plan.md").read_text(encoding="utf-8")
    assert "2 of 2 are compiled" in page


def test_a_compiler_that_was_killed_leaves_a_line_in_the_table(two_entries, tmp_path, monkeypatch):
    monkeypatch.setattr(ladder, "compiled", lambda entry: {"fits": False, "failed": process.last_words("")})
    assert ladder.main(tmp_path) == 1
    assert "did not compile: it ended without a word" in (tmp_path / "plan.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ['{"plans": [', '{"plans": [{}]}', "[]"])
def test_a_damaged_table_is_named_and_kept(two_entries, tmp_path, text):
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"plan\.json holds no plans .*; move it away"):
        ladder.main(tmp_path)
    assert (tmp_path / "plan.json").read_text(encoding="utf-8") == text


def test_every_entry_divides():
    for entry in ladder.entries()[::4]:
        config = resolve(load.read(entry.config, entry.overrides()), optim.uncovered)
        chip, sides = chips.parse(entry.topology)
        devices = math.prod(sides) * chip.devices
        assert devices % config.mesh.fsdp == 0
        rows = config.data.batch // config.optim.accumulate
        assert rows % devices == 0
        assert rows // devices <= ladder.ROWS

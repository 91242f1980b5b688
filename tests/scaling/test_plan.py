"""Plans without TPU's compiler: the arithmetic by hand, and what a user is told."""

import dataclasses
import json
import math
import sys
import types
from pathlib import Path

import jax
import pytest

from launch import plan as command
from launch.process import guarded
from mot.errors import UserError
from mot.model import flops
from mot.plan import bound, chips, forecast, hlo
from tests.conftest import ROOT
from tests.support import examples

GIB = 2**30
TEXT = (Path(__file__).parent / "tpu.hlo").read_text(encoding="utf-8")
CONFIG = "--config=configs/ladder.py:rung=1m,arch=mot"


def topology(devices=4):
    return chips.Topology("v5p:2x2x1", chips.CHIPS["v5p"], 4, jax.devices()[:devices], {"jax": "0"})


def compiled(temporaries=10 * GIB):
    sizes = dict(argument_size_in_bytes=8 * GIB, output_size_in_bytes=7 * GIB, alias_size_in_bytes=6 * GIB)
    sizes |= dict(temp_size_in_bytes=temporaries, generated_code_size_in_bytes=GIB)
    return forecast.Compiled(TEXT, types.SimpleNamespace(**sizes), seconds=3.0, tracing=1.0)


@pytest.fixture
def absent(monkeypatch):
    """A machine on which the compiler gives what `compiled` says."""
    monkeypatch.setattr(chips, "topology", lambda name, slices=1: topology())
    monkeypatch.setattr(forecast, "compile_step", lambda config, topology: compiled())


def test_a_plan_by_hand():
    config = examples.make("mot")
    found = forecast.plan(config, topology(), lambda config, topology: compiled())
    assert found.fits
    assert found.mesh == {"data": 4}
    assert found.memory["peak"] == (8 + 7 - 6 + 10 + 1) * GIB
    matmuls, grouped = 4 * 2 * 64 * 128 * 256, 4 * 1000
    pairs = 4 * 48 * 49 // 2  # rows of 48 tokens, each a causal document
    attention = 3 * 4 * 2 * 4 * 8 * pairs / 4  # scores and values, two layers of four heads of 8, on one of 4 devices
    tokens = {"text": 4 * 24, "image": 4 * 24}
    formula = flops.train_step(config, tokens, 0) / 4
    assert found.matmul_flops == matmuls + grouped
    assert found.formula_flops == formula
    assert found.flops_per_token == pytest.approx((formula + attention) * 4 / (4 * 48))
    seconds = found.roofline
    assert seconds["compute"] == pytest.approx((6 * matmuls + grouped + attention * 7 / 6) / 459e12)
    gathered, multiplied, kernel = (8 + 64) * 128 * 2, 128 * 256 * 2 + 4 + 64 * 256 * 4, 2 * 64 * 256 * 4
    assert seconds["memory"] == pytest.approx(4 * (gathered + multiplied + kernel) / 2765e9)
    assert seconds["interconnect"] == pytest.approx(4 * 7 * 8 * 128 * 2 / 600e9)
    # One after another: the gather and the kernel wait for memory, the fusion for its matmul. The gather ends where it
    # begins, so it is waited for.
    assert 6 * matmuls / 459e12 > 4 * multiplied / 2765e9
    assert found.spent["memory"] == pytest.approx(4 * (gathered + kernel) / 2765e9)
    assert found.spent["compute"] == pytest.approx((6 * matmuls + attention * 7 / 6) / 459e12)
    assert found.spent["interconnect"] == pytest.approx(seconds["interconnect"] - 4 * gathered / 2765e9)
    assert found.spent["network"] == 0
    assert seconds["step"] == pytest.approx(sum(found.spent.values()))
    assert seconds["overlapped"] == seconds["memory"]
    assert found.binding == "compute"
    assert found.mfu_bound == pytest.approx((formula + attention) / 459e12 / seconds["step"])
    assert found.tokens_per_day == pytest.approx(4 * 48 * 86_400 / seconds["step"])
    assert found.chip_hours == pytest.approx(config.run.steps * seconds["step"] / 3600 * 4)


def of(matmuls=(), collectives=(), bytes=0.0, waits=()):
    return hlo.Operation(tuple(matmuls), tuple(collectives), (), bytes, waits=waits)


def multiplied(operation):
    return sum(m.total for m in operation.matmuls)


def test_operations_take_their_time_one_after_another():
    """A matmul of 1 s that moves little, a pass of 2 s of traffic, a sum of 3 s on the wire, and 4 s between slices."""
    at = hlo.Address(1, False, "", ())
    v5p = topology()
    operations = (
        of([hlo.Matmul("bf16", 1, int(v5p.flops), "", at)], bytes=0.5 * v5p.bandwidth),
        of(bytes=2 * v5p.bandwidth),
        of(collectives=[hlo.Collective("all-reduce", int(3 * v5p.sends), 2, "", False, "", at)], bytes=8.0),
        of(collectives=[hlo.Collective("all-reduce", int(4 * 6.25e9), 2, "", True, "", at)]),
    )
    whole, spent = bound.seconds(hlo.Program(operations, (), ()), v5p, multiplied, lambda o: False, v5p.flops / 2)
    assert spent == pytest.approx({"compute": 1.5, "memory": 2, "interconnect": 3, "network": 4})
    assert whole == pytest.approx({"compute": 1.5, "memory": 2.5, "interconnect": 3, "network": 4})


def test_what_is_sent_meanwhile_is_waited_for_where_it_ends():
    """Seconds: a gathers 5 and b 4, in turn, while a matmul takes 3 and a sum 1, for which both stand still.

    So a is there after 6 and b after 10. The program waits 2 for a, and 3 for b after another second of matmul.
    """
    at = hlo.Address(1, False, "", ())
    v5p = topology()

    def sent(kind, seconds, awaited):
        return [hlo.Collective(kind, int(seconds * v5p.sends), 2, "", False, awaited, at)]

    def matmul(seconds):
        return [hlo.Matmul("bf16", 1, int(seconds * v5p.flops), "", at)]

    operations = (
        of(collectives=sent("all-gather", 5, "a")),
        of(collectives=sent("all-gather", 4, "b")),
        of(matmul(3)),
        of(collectives=sent("collective-permute", 1, "")),
        of(waits=("a",)),
        of(matmul(1), waits=("b",)),
    )
    whole, spent = bound.seconds(hlo.Program(operations, (), ()), v5p, multiplied, lambda o: False, 0)
    assert spent == pytest.approx({"compute": 4, "memory": 0, "interconnect": 1 + 2 + 3, "network": 0})
    assert whole == pytest.approx({"compute": 4, "memory": 0, "interconnect": 10, "network": 0})
    never_ended = bound.seconds(hlo.Program(operations[:2], (), ()), v5p, multiplied, lambda o: False, 0)
    assert never_ended[1]["interconnect"] == pytest.approx(9)


@pytest.mark.parametrize(
    ("mesh", "room"),
    [(dict(expert=1), 1), (dict(expert=4), 4), (dict(expert=4, exchange="all_to_all", buffer=1.5), 1.5)],
)
def test_empty_places_of_experts_buffers_are_not_counted_as_multiplied(mesh, room):
    """A kernel's estimate is of all places; balanced experts fill one of `room`."""
    config = examples.make("mot")
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **mesh))
    found = forecast.plan(config, topology(), lambda config, topology: compiled())
    assert found.matmul_flops == 4 * 2 * 64 * 128 * 256 + 4 * 1000 / room
    assert found.places == room
    crowded = forecast.plan(config, topology(), lambda config, topology: compiled(temporaries=200 * GIB))
    assert any("all_to_all" in remedy for remedy in crowded.remedies) == (room == 4)


@pytest.mark.parametrize(
    ("name", "rings"),
    [
        ("v5p:2x2x1", (False, False, False)),
        ("v5p:2x4x4", (False, False, False)),
        ("v5p:4x4x4", (True, True, True)),
        ("v5p:4x8x12", (True, True, True)),
        ("v4:4x4x8", (True, True, True)),
        ("tpu7x:4x4x4", (True, True, True)),
        ("v5e:8x8", (False, False, False)),
        ("v5e:8x16", (False, True, False)),
        ("v6e:16x16", (True, True, False)),
    ],
)
def test_which_sides_of_a_slice_are_rings(name, rings):
    """As in MaxText's table."""
    assert chips.wrap(name) == rings


@pytest.mark.parametrize(("norm", "last"), [("post", 0), ("pre", 2 * 2 * 16 * 24)])
def test_recomputed_blocks_are_counted(norm, last):
    """A block's last matmul is recomputed where its result is normed."""
    config = examples.make("mot", remat="block", norm=norm)
    found = forecast.plan(config, topology(), lambda config, topology: compiled())
    tokens = {"text": 4 * 24, "image": 4 * 24}
    head = 2 * sum(tokens.values()) * config.vocab * 16
    last *= sum(tokens.values())
    assert found.recomputed_flops == (flops.train_step(config, tokens, 0) / 3 - head - last) / 4


def test_attention_counts_the_blocks_that_its_kernel_visits():
    """4,096 tokens in blocks of 1,024: 10 of 16, the 4 on the diagonal whole."""

    def computed(attention):
        config = examples.make("mot", (2048, 2048), attention=attention)
        return config, forecast.plan(config, topology(), lambda config, topology: compiled()).roofline["compute"]

    (config, some), (_, pairs) = computed("splash"), computed("chunked")
    more = 10 * 1024**2 - 4096 * 4097 // 2
    each = 3 * flops.attention_per_pair(config) * 4 / 4  # four rows on four devices
    assert some - pairs == pytest.approx(more * each * 7 / 6 / 459e12)


def test_towers_are_counted_apart():
    found = forecast.plan(examples.make("mot"), topology(), lambda config, topology: compiled())
    assert found.towers["ffn/text"] == found.towers["ffn/image"] == 2 * 3 * 16 * 24
    assert sum(found.towers.values()) == found.parameters


def test_too_large_by_the_compilers_word():
    message = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.12G of 15.75G hbm. Exceeded hbm capacity by 4.37G.

Total hbm usage >= 20.62G:

Largest program allocations in hbm:

  1. Size: 9.31G
     Operator: op_name="jit(step)/while" stack_frame_id=3
     Shape: f32[50000,50000]{1,0:T(8,128)}
     Unpadded size: 9.31G

  2. Size: 512.5M
     Shape: bf16[16,4096]{1,0:T(8,128)}
"""  # noqa: E501

    def refuse(config, topology):
        raise forecast.TooLarge(message)

    found = forecast.plan(examples.make("mot"), topology(), refuse)
    assert not found.fits
    assert "Used 20.12G of 15.75G hbm" in found.trouble
    first = dict(bytes=int(9.31 * GIB), shape="f32[50000,50000]{1,0:T(8,128)}", source="jit(step)/while")
    assert found.buffers[0] == first
    assert found.buffers[1]["bytes"] == int(512.5 * 2**20)
    assert any("remat" in x for x in found.remedies)
    assert any("mesh.context=2" in x for x in found.remedies)  # a row on each device: it has no half
    assert any("fsdp" in x for x in found.remedies)


def test_where_the_compiler_names_no_buffer_parameters_are():
    def refuse(config, topology):
        raise forecast.TooLarge("RESOURCE_EXHAUSTED: Ran out of memory on HBM, temporaries (31.05G) exceed 15.75G.")

    config = examples.make("mot", remat="dots")
    found = forecast.plan(config, topology(), refuse)
    assert found.buffers[0]["bytes"] == 16 * 2 * 16 * 4 * 8  # both layers' wq, of one tower, on every device
    assert found.buffers[0]["source"].startswith("blocks/main/")
    assert "remat='block'" in found.remedies[0]


def test_the_command_ends_with_0_where_it_fits(absent, tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert command.main([CONFIG, "--topology", "v5p:2x2x1", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "by what binds its operations" in told
    assert json.loads(out.read_text(encoding="utf-8"))["memory"]["peak"] == 20 * GIB


def test_the_command_ends_with_1_where_it_does_not_fit(absent, monkeypatch, capsys):
    monkeypatch.setattr(forecast, "compile_step", lambda config, topology: compiled(temporaries=200 * GIB))
    assert command.main([CONFIG, "--topology", "v5p:2x2x1"]) == 1
    told = capsys.readouterr().out
    assert "does not fit: it takes 225.5 GB of 102.8 GB" in told
    assert "model.remat='dots'" in told


def told(capsys, *arguments):
    assert guarded(command.main, list(arguments)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v7:2x2", ["no such chip as 'v7'", "v4, v5e, v5p, v6e, tpu7x", "v5e:16x16"]),
        ("v5p:4x4", ["3 axes"]),
        ("v5e:4x4x4", ["2 axes"]),
        ("v5e", ["2 axes"]),
        ("v6e:32x32", ["1024 chips", "256 at most", "mesh.slices"]),
        pytest.param(f"v5p:{'9' * 5000}x1x1", ["3 axes"], id="more digits than int() takes"),
    ],
)
def test_an_unknown_topology_is_refused(name, words, capsys):
    said = told(capsys, CONFIG, "--topology", name)
    assert all(word in said for word in words), said


def test_options_that_the_whole_table_would_ignore_are_refused(capsys):
    said = told(capsys, "--ladder", "--search", "--topology", "v5p:2x2x1", "--config.mesh.fsdp=4")
    assert "--ladder is of all rungs, and takes no --topology, --search, --config.mesh.fsdp; leave" in said


def test_a_folder_for_the_figures_is_refused_before_compiling(tmp_path, capsys):
    assert "is a folder; name a file in it" in told(capsys, CONFIG, "--topology", "v5p:2x2x1", "--out", str(tmp_path))


def test_float32_matmuls_are_none_too_many_where_they_were_asked_for():
    wide = dataclasses.replace(compiled(), text=TEXT.replace("bf16[64,128]", "f32[64,128]"))

    def of(dtype):
        return forecast.plan(examples.make("mot", dtype=dtype), topology(), lambda config, topology: wide)

    assert of("bfloat16").float32_matmuls
    assert not of("float32").float32_matmuls


def test_a_topology_is_asked_for(capsys):
    assert "v5p:4x4x4" in told(capsys, CONFIG)


def test_without_the_compiler_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    said = told(capsys, CONFIG, "--topology", "v5p:2x2x1")
    assert "pip install -e '.[tpu]'" in said
    assert "no TPU is needed" in said


def test_a_mesh_that_does_not_fill_the_slice_is_refused(absent, capsys):
    said = told(capsys, CONFIG, "--topology", "v5p:2x2x1", "--config.mesh.fsdp=3")
    assert "fsdp 3" in said
    assert "4 devices" in said


def test_a_mesh_on_which_the_least_effort_aborts_is_refused(monkeypatch):
    """Else the screen is full of the compiler's stacks: a ladder's mesh is one of data until another is chosen."""
    monkeypatch.setattr(forecast, "_effort", lambda: -1.0)
    with pytest.raises(UserError, match=r"--quick: .* mesh.fsdp is 1 of 4 devices; .*--config.mesh.fsdp=4"):
        forecast.compile_step(examples.make("mot"), topology())
    for mesh in (dict(data=1, fsdp=1), dict(data=2, fsdp=2), dict(data=1, fsdp=4)):
        forecast._refuse_hurried(types.SimpleNamespace(size=math.prod(mesh.values()), shape=mesh))
    monkeypatch.setattr(forecast, "_effort", lambda: 0.0)
    forecast._refuse_hurried(types.SimpleNamespace(size=4, shape=dict(data=4, fsdp=1)))


def test_no_figure_of_a_chip_is_missing():
    for name, chip in chips.CHIPS.items():
        assert min(chip.flops, chip.memory, chip.bandwidth, chip.links, chip.network, chip.most) > 0, name
    with pytest.raises(UserError):
        chips.parse("cpu:1x1")


def test_the_files_that_a_forecast_names_are_there():
    """Else what they multiply in float32 on purpose would be told as a fault, and attention counted twice."""
    there = {path.name for path in (ROOT / "mot").rglob("*.py")}
    assert {*forecast.OF_ATTENTION, *forecast.IN_FLOAT32} <= there

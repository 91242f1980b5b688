"""A profile names what took the time, and changes nothing."""

import pytest

from configs import digits
from mot.config import resolve
from mot.data import embedded
from mot.runs import profile, rundir
from mot.train import loop


def make(root, steps):
    tree = digits.get_config("arch=dense,size=smoke").unlock()
    tree.run.update(root=str(root), steps=6, eval_every=6, save_every=6)
    return resolve(tree, embedded.faults)


def rows(path, kind):
    return [row for row in rundir.read_metrics(path) if row["kind"] == kind]


def test_a_profiled_run_names_its_operations_and_computes_the_same(tmp_path, one_device, capsys):
    profiled = loop.run(make(tmp_path / "a", 6), devices=one_device, profiled=True)
    plain = loop.run(make(tmp_path / "b", 6), devices=one_device)
    assert list((profiled / "profile").rglob("*.xplane.pb"))
    (event,) = [row for row in rows(profiled, "event") if row["event"] == "profile"]
    assert event["step"] == 5
    operations = event["operations"]
    assert len(operations) == profile.TOP
    assert 0.1 < sum(op["share"] for op in operations) <= 1
    assert all(op["seconds"] > 0 and op["name"] for op in operations)
    assert any(
        "attention.py:" in op["where"] or "flash.py:" in op["where"] or "ops.py:" in op["where"] for op in operations
    )
    assert operations[0]["name"][:8] in capsys.readouterr().err
    for key in ("loss", "grad_norm", "lr"):
        assert [row[key] for row in rows(profiled, "train")] == [row[key] for row in rows(plain, "train")]
    assert not (plain / "profile").exists()


def test_a_run_that_ends_before_the_traced_steps_says_so(tmp_path, one_device, capsys):
    path = loop.run(make(tmp_path, 6), until=2, devices=one_device, profiled=True)
    assert (
        "no profile: the run ended at step 2, and it would trace steps 3 to 5; give a run more steps"
        in capsys.readouterr().err
    )
    assert not [row for row in rows(path, "event") if row["event"] == "profile"]


class Event:
    def __init__(self, begin, end, name, **stats):
        self.start_ns, self.duration_ns, self.name, self.stats = begin, end - begin, name, stats.items()


class Line:
    def __init__(self, name, *events):
        self.name, self.events = name, events


class Plane:
    def __init__(self, name, *lines):
        self.name, self.lines = name, lines


class Data:
    def __init__(self, *planes):
        self.planes = planes


PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/somewhere/mot/ops.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=94 end_line=94 column=3 end_column=43}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

  %dot.1 = f32[2]{0} dot(%a, %b), metadata={op_name="jit(step)/jvp(x)/while/body/dot_general" stack_frame_id=1}
"""


def test_an_operations_time_is_without_those_inside_it_and_other_programs():
    ops = [
        Event(0, 100, "while.1", hlo_op="while.1", hlo_module="jit_step"),
        Event(10, 40, "dot.1", hlo_op="dot.1", hlo_module="jit_step"),
        Event(40, 50, "dot.1", hlo_op="dot.1", hlo_module="jit_step"),
        Event(120, 400, "dot.1", hlo_op="dot.1", hlo_module="jit_sums"),
        Event(100, 150, "end: dot.1"),
    ]
    found = profile.operations(Data(Plane("/host:CPU", Line("python"), Line("tf_XLA/1", *ops))), PROGRAM, 2)
    assert [(op.name, round(op.share, 6)) for op in found] == [("while.1", 0.6), ("dot.1", 0.4)]
    assert found[1].seconds == pytest.approx(20e-9)
    assert found[1].where == "while/body/dot_general, ops.py:94"
    parted = PROGRAM.replace("is_scheduled=true", "is_scheduled=true, num_partitions=2")  # on two devices of a CPU
    of_each = profile.operations(Data(Plane("/host:CPU", Line("tf_XLA/1", *ops))), parted, 2)
    assert of_each[1].seconds == pytest.approx(10e-9)


def test_devices_come_before_the_host_and_a_tpus_operations_before_its_programs():
    host = Plane("/host:CPU", Line("tf_XLA/1", Event(0, 9, "x", hlo_op="x", hlo_module="jit_step")))
    tpu = Plane(
        "/device:TPU:0",
        Line("XLA Modules", Event(0, 100, "jit_step")),
        Line("XLA Ops", Event(0, 30, "%dot.1 = f32[2]{0} dot(%a, %b)"), Event(30, 40, "%copy.2 = f32[2] copy(%c)")),
    )
    found = profile.operations(Data(host, tpu), PROGRAM, 1)
    assert [(op.name, round(op.share, 2)) for op in found] == [("dot.1", 0.75), ("copy.2", 0.25)]
    gpu = Plane("/device:GPU:0", Line("Stream #1", Event(0, 5, "gemm", hlo_op="dot.1", hlo_module="jit_step")))
    assert [op.name for op in profile.operations(Data(host, gpu), PROGRAM, 1)] == ["dot.1"]


def test_a_trace_without_operations_is_empty():
    assert profile.operations(Data(Plane("/host:CPU", Line("python"))), "", 1) == []

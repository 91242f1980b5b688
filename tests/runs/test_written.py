"""What is told of a folder that is no run, and of a configuration that no run wrote."""

import json

import pytest

from launch import cli
from mot.errors import Damaged
from mot.runs import rundir, written
from tests.support import examples


@pytest.fixture
def config(tmp_path):
    """A run's, as it is written."""
    return rundir.plain(examples.make())


@pytest.mark.parametrize("section", ["run", "optim", "data", "streams"])
@pytest.mark.parametrize("value", [None, 3, []])
def test_a_section_that_is_no_group_is_named_with_its_value(tmp_path, config, section, value):
    (tmp_path / "config.json").write_text(json.dumps(config | {section: value}), encoding="utf-8")
    with pytest.raises(Damaged) as caught:
        written.read_config(tmp_path)
    says = f"({section} is {json.dumps(value)}; every section must be a group of keys)"
    assert says in str(caught.value)


def test_sections_that_are_not_there_are_named(tmp_path, config):
    for content, says in (
        ({}, "(it needs the sections attn, data, ffn, init, "),
        ({"run": {}}, "(it lacks attn, data, ffn, init, "),
        ({key: value for key, value in config.items() if key != "mesh"}, "(it lacks mesh; a run of an earlier"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(Damaged) as caught:
            written.read_config(tmp_path)
        assert says in str(caught.value)


def test_a_config_json_that_is_a_folder_is_said_to_be_one(tmp_path, capsys):
    (tmp_path / "config.json").mkdir()
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "is no run directory: its config.json is a folder; name a run's own folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"kind": "event", "event": "start", "mesh": 5}, "mesh is 5"),
        ({"kind": "event", "event": "start", "mesh": {"data": -1}}, "mesh is {'data': -1}"),
        ({"kind": "event", "event": "accepted"}, "it accepts no kinds"),
        ({"kind": "event", "event": "accepted", "kinds": [[]]}, r"kinds is \[\[\]\]"),
        ({"kind": "train", "wall_seconds": "long"}, "wall_seconds is 'long'"),
    ],
)
def test_a_row_that_lacks_what_is_read_later_is_named(tmp_path, row, why):
    (tmp_path / "metrics.jsonl").write_text(rundir.line_of({"schema": 1, "step": 1} | row), encoding="utf-8")
    with pytest.raises(Damaged, match=f"metrics.jsonl is damaged or foreign \\(line 1: {why}"):
        rundir.read_metrics(tmp_path)


def test_the_mesh_of_several_runs_in_one_program_is_one(tmp_path):
    row = {"schema": 1, "step": 1, "kind": "event", "event": "start", "mesh": {"runs": 2}}
    (tmp_path / "metrics.jsonl").write_text(rundir.line_of(row), encoding="utf-8")
    assert rundir.read_metrics(tmp_path) == [row]

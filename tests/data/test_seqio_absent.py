"""Without the extra `seqio`: what is said to those who need it (`make test-seqio` tests the rest)."""

import sys

import pytest

from launch import data as command
from mot.config import ConfigError, resolve
from mot.data import sources
from mot.errors import UserError
from tests.support import examples

REMEDY = r"it is an extra: pip install -c constraints\.txt -e '\.\[seqio\]'"


@pytest.fixture(autouse=True)
def absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqio", None)


def test_an_export_names_the_extra(tmp_path):
    with pytest.raises(UserError, match=REMEDY):
        command.main(["prepare", "--seqio=c4", f"--out={tmp_path / 'c4'}"])
    assert not (tmp_path / "c4").exists()


def test_a_configuration_that_streams_names_the_extra():
    tree = examples.tree()
    tree.data.sources.a = "seqio:c4"
    with pytest.raises(ConfigError, match=r"data\.sources\.a: 'seqio:c4'; seqio cannot be .*" + REMEDY):
        resolve(tree, sources.faults)


@pytest.mark.parametrize("arguments", [[], ["README.md", "--seqio=c4"]])
def test_files_or_a_task_are_given(tmp_path, arguments, capsys):
    with pytest.raises(SystemExit):
        command.main(["prepare", *arguments, f"--out={tmp_path / 'c4'}"])
    assert "give files or folders, or --seqio=NAME" in capsys.readouterr().err

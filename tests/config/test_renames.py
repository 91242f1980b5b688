"""Keys that once had another name: old runs are read and go on, and an old name on the command line is answered."""

import dataclasses
import json

import pytest

from mot.config import ConfigError, renames, resolve
from mot.runs import rundir
from tests.support import vectors


def old_names(tree, path=""):
    """The tree as an earlier version wrote it."""
    names = {}
    for key, value in tree.items():
        here = f"{path}.{key}" if path else key
        old = [
            o for o in renames.RENAMED if renames.RENAMED[o] == key and renames.renamed(f"{path}.{o.split('.')[-1]}")
        ]
        value = old_names(value, here) if isinstance(value, dict) else value
        names[old[0].rpartition(".")[2] if old else key] = value
    return names


def test_a_run_with_the_old_names_is_read_and_says_so(tmp_path, capsys):
    c = dataclasses.replace(vectors.make(), run=dataclasses.replace(vectors.make().run, root=str(tmp_path)))
    path = rundir.open_run(c)
    written = json.loads((path / "config.json").read_text(encoding="utf-8"))
    del written["digest"]  # of what is changed here
    old = old_names(written)
    for key in ("longest", "wins", "centre", "walls", "most_left_out"):
        assert f'"{key}"' in json.dumps(old)
    del old["run"]["flops"], old["run"]["save_minutes"]  # and without the keys that came later
    (path / "config.json").write_text(json.dumps(old), encoding="utf-8")
    assert rundir.read_config(path) == written
    assert rundir.config_of(path).streams == c.streams
    assert rundir.open_run(c) == path
    told = capsys.readouterr().err
    assert "is of an earlier version, with other names: " in told
    assert "streams.text.longest -> streams.text.max_tokens" in told
    assert told.count("data.most_left_out -> data.max_skipped") == 1


def test_an_old_name_is_answered_with_the_new():
    tree = vectors.tree("mot").unlock()
    tree.data.most_left_out = 3
    with pytest.raises(
        ConfigError, match=r"data.most_left_out: unknown key, value 3; .*; it is called max_skipped now"
    ):
        resolve(tree)

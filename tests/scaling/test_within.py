"""Probes are read back and shown by layer; damaged lines are said."""

import json

import numpy as np
import pandas as pd
import pytest

from scaling import runs, within
from tests.support.reports import LAYERS, page, planted, probed, prose


def test_probes_are_rows_with_step_and_what(tmp_path):
    path = planted(tmp_path, "dense")
    assert runs.read(path).probes == []
    probed(path)
    rows = runs.read(path).probes
    assert [(row["step"], row["what"]) for row in rows] == [(20, "all"), (60, "all")]
    assert rows[0]["representation/linear/2"] == 0.9


@pytest.mark.parametrize(
    "line",
    ['{"step": 1, "wh', '{"what": "x"}\n', "[]\n", "7\n", '{"step": 1, "what": "x", "crc32": "00000000"}\n', "\x00\n"],
)
def test_a_line_that_is_cut_or_damaged_is_left_out_and_said(tmp_path, line):
    path = planted(tmp_path, "dense")
    probed(path)
    with (path / "probes.jsonl").open("a", encoding="utf-8") as file:
        file.write(line)
    run = runs.read(path)
    assert len(run.probes) == 2
    assert run.faults == ()
    assert "probes.jsonl, line 3 is left out" in prose(page(tmp_path)[1])


def test_a_page_shows_where_in_the_network(tmp_path):
    for seed in range(2):
        for arch, shift in (("dense", 0.0), ("moe_tc4", 0.3)):
            probed(planted(tmp_path, arch, seed), shift + 0.01 * seed)
    shown = prose(page(tmp_path)[1])
    assert "Where in the network" in shown
    for kind in ("gradients/cosine", "gradients/ratio", "representation/gap", "representation/linear", "attention"):
        assert within.KINDS[kind].title in shown
        name = f"where_{kind.replace('/', '_')}"
        for file in (f"{name}.png", f"{name}_steps.png")[: 1 + (kind in within.MOVES)]:
            assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
    assert within.KINDS["representation/cka"].title not in shown
    found = pd.read_parquet(tmp_path / "probes.parquet")
    assert len(found) == 4 * 2 * LAYERS * (2 + 2 + 1 + 1 + 4 + 2 + 1)
    one = found[(found.group == "moe_tc4") & (found.kind == "gradients/cosine") & (found.series == "text, image, ffn")]
    assert one[(one.layer == 1) & (one.step == 60)].value.tolist() == pytest.approx([1.1, 1.11])


def test_lines_are_of_each_runs_newest_step_and_over_training_a_mean_over_layers(tmp_path):
    probed(planted(tmp_path, "dense"), steps=(20, 60))
    probed(planted(tmp_path, "mot"), steps=(40,))
    found = within.table(runs.sound(runs.find([f"{tmp_path}/*"])))
    by_layer = within.by_layer(found, "gradients/cosine")["text, image, attn"]
    np.testing.assert_allclose(by_layer["dense"], [[0.9, 0.8, 0.7, 0.6]])
    np.testing.assert_allclose(by_layer["mot"], [[0.7, 0.6, 0.5, 0.4]])
    over = within.over_training(found, "gradients/cosine")["text, image, attn"]
    assert within.steps(found, "gradients/cosine") == [20, 40, 60]
    np.testing.assert_allclose(over["dense"], [[0.35, np.nan, 0.75]])
    assert {series for series in within.by_layer(found, "attention")} == {
        "text to text",
        "text to image",
        "image to text",
        "image to image",
    }
    assert set(within.by_layer(found, "experts/share")) == {"ffn text text", "ffn text image"}


def test_a_number_that_is_none_is_left_out(tmp_path):
    path = planted(tmp_path, "dense")
    row = {
        "schema": 1,
        "step": 1,
        "what": "x",
        "attention/text/text/0": "nan",
        "attention/text/image/0": 2.0,
        "embed/all": 1.0,
    }
    (path / "probes.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = within.table(runs.sound(runs.find([path])))
    assert sorted(found.value) == [1.0, 2.0]
    assert "Who looks at whom?" in prose(page(tmp_path)[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("gradients/cosine/text/image/ffn/1", 10**400, id="a number that no float holds"),
        ("gradients/cosine/text/image/ffn/1", 1e300),
        pytest.param(f"gradients/cosine/text/image/ffn/{'1' * 5000}", 0.5, id="a layer of 5000 digits"),
        ("gradients/cosine/text/image/ffn/99999999999999999999", 0.5),
        ("gradients/cosine/$\\frac{$/image/ffn/0", 0.5),
        ("gradients/cosine/<script>alert(1)</script>/image/ffn/0", 0.5),
        ("/", 0.5),
    ],
)
def test_an_odd_name_or_number_ends_no_page(tmp_path, name, value):
    path = planted(tmp_path)
    probed(path)
    with (path / "probes.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"schema": 1, "step": 60, "what": "odd", name: value}) + "\n")
    _, text = page(tmp_path)
    assert "Do modalities pull shared parameters the same way?" in text
    assert "<script>alert" not in text


def test_a_layer_that_only_an_earlier_step_has_stays_empty(tmp_path):
    path = planted(tmp_path)
    probed(path)
    row = {"schema": 1, "step": 10, "what": "odd", "gradients/cosine/text/image/ffn/9": 0.5}
    with (path / "probes.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    found = within.table({"dense": [runs.read(path)]})
    lines = within.by_layer(found, "gradients/cosine")["text, image, ffn"]["dense"]
    assert lines.shape == (1, len(within.layers(found, "gradients/cosine")))
    assert np.isnan(lines[0, -1])
    assert page(tmp_path)


def test_a_step_that_no_run_has_and_a_folder_in_the_files_place_are_said(tmp_path):
    path = planted(tmp_path)
    (path / "probes.jsonl").write_text(
        json.dumps({"schema": 1, "step": 10**30, "what": "odd", "attention/a/b/0": 1}) + "\n"
    )
    assert "probes.jsonl, line 1 is left out" in prose(page(tmp_path)[1])
    (path / "probes.jsonl").unlink()
    (path / "probes.jsonl").mkdir()
    assert "probes.jsonl cannot be read" in prose(page(tmp_path)[1])


def test_runs_of_one_name_are_not_taken_for_one(tmp_path):
    for seed in range(2):
        probed(planted(tmp_path / f"seed{seed}", seed=seed, name="one"), shift=seed)
    probed(planted(tmp_path / "mot", "mot", name="one"), steps=(20,))
    found = within.table(runs.sound(runs.find([f"{tmp_path}/*/one"])))
    lines = within.by_layer(found, "gradients/cosine")["text, image, ffn"]
    assert lines["dense"][1] - lines["dense"][0] == pytest.approx([1.0] * LAYERS)  # and no mean of both
    assert lines["mot"].shape == (1, LAYERS)  # though the others were measured later

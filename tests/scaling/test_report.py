"""The page about runs: what is shown, what is left out of means and said so, and that a browser can show it."""

import base64
import csv
import dataclasses
import html
import json
import re
import shutil
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest

from configs import archs, digits, search, transfusion
from launch import cli
from mot.config import Sections, Towers, resolve
from mot.config.routers import ROUTERS
from mot.data import preview
from mot.generate import results
from scaling import architectures, best, pictures, questions, report, runs
from scaling.match import Slope
from tests.support.reports import STEPS, page, planted, probed, prose, rewritten, swept

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_the_headline_says_what_was_planted(tmp_path):
    for seed in range(3):
        planted(tmp_path, "dense", seed)
        planted(tmp_path, "mot", seed, speed=2.0)
    sentence, text = page(tmp_path)
    found = [int(x) for x in re.findall(r"mot needed (\d+) % of dense's steps", sentence)]
    assert len(found) == 2
    assert all(44 <= x <= 52 for x in found), sentence  # 50, and what noise takes off a first crossing
    assert sentence in prose(text)
    with (tmp_path / "slopes.csv").open(encoding="utf-8", newline="") as file:
        assert {row["seeds"] for row in csv.DictReader(file)} == {"3"}
    for name in ("runs", "losses", "slopes"):
        assert (tmp_path / f"{name}.csv").stat().st_size > 100
    for name in ("headline", "curves_text", "curves_image"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_setting_has_its_own_units_and_its_own_published_slopes(tmp_path):
    for setting, unit, slopes, left_out in (
        (digits, "nats", ("0.199 to 0.35", "0.53 to 0.662"), "Transfusion setting"),
        (transfusion, "squared error", ("0.175 to 0.254", "0.93 to 0.98"), "Chameleon setting"),
    ):
        root = tmp_path / unit
        for arch in ("dense", "mot"):
            planted(root, arch, setting=setting)
        _, text = page(root)
        shown = prose(text)
        assert f"held-out image loss ({unit})" in shown
        assert "held-out text loss (nats)" in shown
        assert all(s in shown for s in slopes)
        assert left_out not in shown
        groups = runs.sound(runs.find([f"{root}/*"]))
        figure = pictures.curves(groups, pictures.colours(groups), "image", "step")
        assert figure.axes[0].get_ylabel() == f"image loss ({unit})"


def test_documents_that_were_sampled_are_shown(tmp_path):
    folder = planted(tmp_path, "dense") / "samples" / "2"
    results.write(folder, {"documents.png": preview.png(np.zeros((4, 4, 3), np.uint8))}, {"documents": [{}] * 3})
    _, text = page(tmp_path)
    assert "step 2: 3 documents, what was given and what follows" in prose(text)
    assert base64.b64encode((folder / "documents.png").read_bytes()).decode() in text
    assert "is damaged" not in text


def test_the_newest_samples_of_a_step_are_shown(tmp_path):
    run = planted(tmp_path, "dense")
    for name in ("2", "2-2", "2-10", "10", "mine", "3-x"):
        (run / "samples" / name).mkdir(parents=True)
        (run / "samples" / name / "samples.json").write_text("{}", encoding="utf-8")
    assert [p.name for p in report._sampled(run)] == ["2-10", "10"]


def test_the_page_needs_nothing_beside_it(tmp_path):
    planted(tmp_path, "dense")
    planted(tmp_path, "mot")
    _, text = page(tmp_path)
    sources = re.findall(r'(?:src|srcset)="([^"]{0,30})', text)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.findall(r"<(?:script|link)\b|@import|url\(", text)
    for link in re.findall(r'href="([^"#][^"]*)"', text):
        assert (tmp_path / link).exists(), link
    anchors = set(re.findall(r'href="#([^"]+)"', text))
    assert anchors <= set(re.findall(r'id="([^"]+)"', text))
    assert {"group-dense", "group-mot"} <= anchors


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (dict(events=("skipped", "diverged"), steps=30), "left out: diverged at step 30"),
        (dict(data="d2"), "left out: trained on other data: digest d2, most have d1"),
        (dict(steps=20), "left out: unfinished: step 20 of 60"),
        (dict(steps=0), "left out: no training steps recorded"),
        (dict(lr=1e-2), "no dense partner: every dense run differs in optim.lr"),
    ],
)
def test_a_run_that_cannot_be_compared_is_shown_with_its_reason_and_changes_no_number(tmp_path, make, says):
    for seed in range(2):
        planted(tmp_path, "dense", seed)
        planted(tmp_path, "mot", seed, speed=2.0)
    before, _ = page(tmp_path)
    slopes = (tmp_path / "slopes.csv").read_text(encoding="utf-8")
    apart = "mot-seed2" if "lr" not in make else "other-seed2"
    planted(tmp_path, "mot", 2, speed=0.3, name=apart, **make)
    after, text = page(tmp_path)
    assert says in prose(text)
    assert apart in prose(text)
    if "lr" not in make:
        assert before == after
        assert slopes == (tmp_path / "slopes.csv").read_text(encoding="utf-8")
    else:
        assert "other" not in after


def test_what_is_worth_knowing_of_a_sound_run_is_said(tmp_path):
    planted(tmp_path, "mot")
    cut = planted(tmp_path, "dense")
    with (cut / "metrics.jsonl").open("a", encoding="utf-8") as f:
        f.write('{"schema": 1, "kind": "tr')
    _, text = page(tmp_path)
    for remark in (
        "no checkpoints, so no samples can be drawn",
        "one seed: no interval",
        "metrics.jsonl was cut mid-line",
    ):
        assert remark in prose(text), remark


def test_without_dense_the_page_says_why_there_is_no_answer(tmp_path):
    planted(tmp_path, "mot")
    sentence, text = page(tmp_path)
    assert "can be compared with a dense one" in sentence
    assert "<h1>Runs of mot</h1>" in text
    assert "no dense partner: no faultless run of a dense model" in prose(text)


def test_only_broken_runs_still_make_a_page(tmp_path):
    planted(tmp_path, "dense", events=("diverged",), steps=5)
    _, text = page(tmp_path)
    assert "left out: diverged at step 5" in prose(text)


def test_a_run_that_never_gets_there_is_a_bound(tmp_path):
    planted(tmp_path, "dense")
    planted(tmp_path, "mot", speed=0.5)
    sentence, _ = page(tmp_path)
    assert "mot did not reach dense's text training loss in the time given (one seed: no verdict)" in sentence


def test_of_several_seeds_it_is_said_how_many_never_got_there(tmp_path):
    for seed, speed in ((0, 0.5), (1, 1.2)):
        planted(tmp_path, "dense", seed=seed)
        planted(tmp_path, "mot", seed=seed, speed=speed)
    sentence, _ = page(tmp_path)
    assert (
        "mot did not reach dense's text training loss in the time given with 1 of 2 seeds (2 pairs of runs)" in sentence
    )


def test_a_run_that_was_there_when_first_measured_is_a_bound_and_never_0(tmp_path):
    for seed in range(2):
        planted(tmp_path, "dense", seed)
        path = planted(tmp_path, "mot", seed)
        rewritten(path, lambda row: row | {key: row[key] / 100 for key in row if key.startswith("loss")})
    sentence, text = page(tmp_path)
    assert "mot was at dense's text training loss when first measured, within 2 % of dense's steps" in sentence
    assert sentence.count(": ahead") == 2
    assert "< 0.02" in prose(text)
    assert not re.search(r"\b0\.00\b", prose(text))


@pytest.mark.parametrize(
    ("argument", "says"), [("nowhere/*", "nowhere/*"), ("mine", "is no run directory"), ("file", "file: no run")]
)
def test_no_runs_there_is_one_message(tmp_path, monkeypatch, capsys, argument, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert cli.main(["report", argument]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.rglob("report.html"))


def test_files_beside_runs_are_passed_over(tmp_path):
    planted(tmp_path, "dense")
    first = page(tmp_path)
    assert page(tmp_path, *tmp_path.iterdir()) == first


def test_a_run_of_one_modality_is_sound(tmp_path):
    path = planted(tmp_path, "dense")
    file = path / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def one(row):
        return {k: 0 if k == "tokens/image" else v for k, v in row.items() if k != "loss/image"}

    file.write_text("".join(json.dumps(one(row)) + "\n" for row in rows), encoding="utf-8")
    assert runs.read(path).faults == ()
    page(tmp_path)


def test_tables_for_a_notebook(tmp_path):
    planted(tmp_path, "dense")
    planted(tmp_path, "mot")
    tables = runs.load(f"{tmp_path}/*")
    assert tables.runs["arch"].tolist() == ["dense", "mot"]
    last = tables.losses.query("kind == 'eval' and modality == 'image'").groupby("group").loss.last()
    assert set(last.index) == {"dense", "mot"}
    assert set(tables.slopes.group) == {"mot"}
    assert set(tables.slopes.cost) == {"step", "flops", "seconds"}
    assert len(tables.losses.query("kind == 'train'")) == 2 * 2 * STEPS


def test_what_a_run_is_called_is_text_and_nothing_else(tmp_path):
    planted(tmp_path / "<script>", "mot")
    _, text = page(tmp_path, tmp_path / "<script>" / "*")
    assert "<script" not in text
    assert "<script>" in prose(text)


@pytest.mark.parametrize(
    ("slope", "word"),
    [
        (Slope(0.7, "", 0.6, 0.8, 3), "ahead"),
        (Slope(1.3, "", 1.1, 1.5, 3), "behind"),
        (Slope(0.9, "", 0.7, 1.1, 3), "undecided"),
        (Slope(1.2, ">", 1.04, np.inf, 3), "behind"),  # every seed's slope is above 1.04
        (Slope(1.2, ">", 0.9, np.inf, 3), "undecided"),
        (Slope(0.05, "<", 0, 0.06, 3), "ahead"),
        (Slope(np.nan, "?", seeds=3), "undecided"),
        (Slope(0.5), "one seed: no verdict"),
        (Slope(0.7, "", 0.6, 0.8, 3, points=3), "too short: no verdict"),
    ],
)
def test_a_verdict_is_a_word_by_the_interval(slope, word):
    assert report.verdict(slope) == word


def test_the_page_says_what_was_run(tmp_path):
    planted(tmp_path, "dense")
    planted(tmp_path, "mot")
    _, text = page(tmp_path)
    said = prose(text)
    assert "one set of parameters serves all modalities" in said
    assert "each modality has its own attention projections, FFN and norms" in said
    for what in (
        "data drawn, manual, read (digest d1)",
        "steps 60",
        "fastest matmul on the machine 100.0 GFLOP/s",
    ):
        assert what in said, said
    assert "against model FLOPs" not in said  # a step costs both the same


def test_where_held_out_loss_disagrees_the_sentence_says_so(tmp_path):
    def worse(row):
        more = 2 if row["kind"] == "eval" else 0  # above all that dense has
        return row | {key: row[key] + more for key in row if key.startswith("loss")}

    for seed in range(2):
        planted(tmp_path, "dense", seed)
        rewritten(planted(tmp_path, "mot", seed, speed=2.0), worse)
    sentence, text = page(tmp_path)
    assert re.search(r"over 2 pairs of runs\): ahead, but on held-out loss behind \(> 1\.\d\d\)", sentence), sentence
    assert "mot overfits text: its training loss ends" in prose(text)
    assert "dense overfits" not in prose(text)


def test_the_page_says_where_the_time_went(tmp_path):
    path = planted(tmp_path, "dense")
    planted(tmp_path, "mot")  # of a version that did not record it
    split = dict(start=6, compile=20, data=0.25, step=6000, evaluation=50, save=1.5, lost=500, other=0)
    saved = {f"wall/{kind}": seconds for kind, seconds in split.items()}
    with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for row in ({f"wall/{kind}": 1.0 for kind in split}, saved):
            file.write(json.dumps({"schema": 1, "kind": "event", "step": STEPS, "event": "saved"} | row) + "\n")
    text = page(tmp_path)[1]
    (row,) = re.findall(r"<tr><td>dense-seed0</td><td><div class=\"bar\">.*?</tr>", text, re.DOTALL)
    shares = [float(x) for x in re.findall(r"width: ([\d.]+)%", row)]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert shares[0] == pytest.approx(100 * 6000 / 6577.75, abs=0.01)
    told = "1 h 50 min 91 % 1 h 40 min 6.0 s 20 s 0.2 s 50 s 1.5 s 8 min 20 s 0 s"
    assert prose(row).split() == ["dense-seed0", *told.split()]
    (dense, mot) = (tmp_path / "runs.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert ",500.0," in dense
    assert ",500.0," not in mot


def test_the_page_says_how_often_the_data_were_seen(tmp_path):
    size = {
        "training": {"documents": 1200, "tokens": {"text": 38400, "image": 7680}},
        "held_out": {"documents": 64, "tokens": {"text": 1, "image": 1}},
    }
    rewritten(planted(tmp_path, "dense"), lambda row: row | ({"size": size} if row.get("event") == "start" else {}))
    assert "passes over the training data 2 over text, 10 over image" in prose(page(tmp_path)[1])
    assert "documents 1,200 for training, 64 held out" in prose(page(tmp_path)[1])
    rewritten(tmp_path / "dense-seed0", lambda row: {k: v for k, v in row.items() if k != "size"})
    assert "passes over" not in prose(page(tmp_path)[1])


def test_a_fact_that_differs_is_told_of_the_runs_that_have_it(tmp_path):
    for arch, seed, host in (("dense", 0, "a"), ("dense", 1, "b"), ("mot", 0, "b"), ("mot", 1, "b")):
        start = {"host": host, "command": f"mot train --seed={seed} --a-long-option"}
        path = planted(tmp_path, arch, seed, lr=1e-3 if arch == "dense" else 2e-3)
        rewritten(path, lambda row, start=start: row | (start if row.get("event") == "start" else {}))
    _, text = page(tmp_path)
    said = prose(text)
    assert "learning rate dense 0.001, cosine schedule mot 0.002, cosine schedule" in said
    assert "machine dense (seed 0) a dense (seed 1) mot b" in said
    assert "steps 60 " in said
    assert "seeds of each architecture 2 (0, 1)" in said
    assert "<span>--a-long-option</span>" in text  # a line breaks before it, and not at its hyphens


def test_architectures_that_are_equal_are_drawn_once_in_one_order_of_streams(tmp_path):
    for arch, rate in (("dense", 1e-3), ("dense", 2e-3), ("mot", 1e-3)):
        planted(tmp_path, arch, name=f"{arch}-{rate:g}", lr=rate)
    _, text = page(tmp_path)
    assert text.count('<div class="towers"') == 2
    assert re.findall(r'class="tower">([^<]*)', text) == ["text + image"] * 3 + ["text", "image"] * 3
    assert "all streams share the embedding and the head" in prose(text)


def test_samples_are_spread_over_the_steps_of_a_run(tmp_path):
    path = planted(tmp_path, "dense")
    for step in (2, 4, 5, 6, 7, 41, 58, 59, 60):
        record = {"documents": [{}] * 3, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "seed": 3}
        results.write(path / "samples" / str(step), {}, record)
    _, text = page(tmp_path)
    assert re.findall(r"step (\d+): 3 documents", prose(text)) == ["2", "41", "60"]
    assert prose(text).count("temperature 0.7, seed 3") == 1


def test_what_stands_nowhere_has_no_column(tmp_path):
    step = planted(tmp_path, "dense") / "checkpoints" / "60"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}", encoding="utf-8")
    assert "one seed" in prose(page(tmp_path)[1])
    entries = [{"name": "a", "group": "dense", "path": "a", "config": "c", "metrics": "m", "notes": []}]
    shown = report._template().render(runs=entries, title="", sentence="", pictures={}, colour={"dense": "#000"})
    assert "remarks</th>" not in shown


@pytest.mark.parametrize(
    ("number", "words"),
    [(67_234, "67.2 K"), (999_600, "1.00 M"), (999_400, "999 K"), (1.2345e9, "1.23 B"), (12.34e6, "12.3 M"), (7, "7")],
)
def test_sizes_have_three_digits(number, words):
    assert questions.short(number) == words


def test_where_rates_vary_the_best_is_compared_with_the_best_beside_equal_with_equal(tmp_path):
    for seed in range(2):
        for arch, rate, speed in (("dense", 1e-3, 1.0), ("dense", 2e-3, 2.0), ("mot", 1e-3, 4.0), ("mot", 2e-3, 2.0)):
            planted(tmp_path, arch, seed, speed, name=f"{arch}-{rate:g}-seed{seed}", lr=rate)
    _, text = page(tmp_path)
    groups = runs.sound(runs.find([f"{tmp_path}/*"]))
    assert set(groups) == {f"{arch} (rate {rate})" for arch in ("dense", "mot") for rate in ("0.001", "0.002")}
    found = runs.slopes(groups)
    at = {
        (key.group, key.rates): slope.value
        for key, slope in found.items()
        if key[1:5] == ("text", "train", "step", 0.02)
    }
    # At equal rates mot is four times and once as fast, and at the best ones twice.
    assert at[("mot (rate 0.001)", "equal")] == pytest.approx(0.25, abs=0.04)
    assert at[("mot (rate 0.002)", "equal")] == pytest.approx(1, abs=0.1)
    assert at[("mot (rate 0.001)", "best")] == pytest.approx(0.5, abs=0.06)
    assert ("mot (rate 0.002)", "best") not in at
    assert "0.001 of 0.001, 0.002" in prose(text)
    assert "0.002 of 0.001, 0.002" in prose(text)


def test_runs_of_one_name_and_two_rates_are_two_groups(tmp_path):
    for folder, rate in (("a", 1e-3), ("b", 2e-3)):
        planted(tmp_path / folder, "dense", lr=rate)
    found = runs.find([f"{tmp_path}/*/*"])
    assert not any(run.faults for run in found)
    assert set(runs.sound(found)) == {"dense (rate 0.001)", "dense (rate 0.002)"}


def test_a_longer_run_beside_the_reported_ones_shows_what_it_drew(tmp_path):
    planted(tmp_path / "demo", "dense")
    drew = planted(tmp_path / "draw", "dense", name="long") / "samples" / "800"
    verdicts = {"drawn": {"right": 47, "asked": 50}, "read": {"right": 9, "asked": 10}, "judge": 0.98}
    results.write(drew, {"digits.png": preview.png(np.zeros((4, 4, 3), np.uint8))}, verdicts)
    _, text = page(tmp_path / "demo")
    assert base64.b64encode((drew / "digits.png").read_bytes()).decode() not in text  # no samples are shown of the demo
    results.write(
        tmp_path / "demo/dense-seed0/samples/60", {"digits.png": preview.png(np.zeros((4, 4, 3), np.uint8))}, verdicts
    )
    _, text = page(tmp_path / "demo")
    assert "step 800: 47 of 50 digits as asked" in prose(text)


def test_tables_have_a_column_for_each_key_in_which_runs_differ(tmp_path):
    planted(tmp_path, "dense")
    planted(tmp_path, "mot", lr=0.5)
    table = runs.load(f"{tmp_path}/*").runs.set_index("arch")
    assert table.loc["mot", "optim.lr"] == table.loc["mot", "lr"] == 0.5
    assert table.loc["dense", "towers.ffn.image"] == "text"
    assert table.loc["mot", "towers.ffn.image"] == "image"
    assert "optim.warmup" not in table.columns


@pytest.mark.parametrize(
    ("changes", "name"),
    [(dict(capacity=1.25), "dense ffn:tc4,capacity=1.25"), (dict(shared=8), "dense ffn:tc4,shared=8")],
)
def test_experts_that_differ_from_a_presets_have_a_name_of_their_own(changes, name):
    tree = digits.get_config("arch=moe_tc4,size=smoke").unlock()
    tree.ffn.text.update(changes)
    assert architectures.name(resolve(tree)) == name


def test_a_router_that_nobody_named_is_called_by_its_name(monkeypatch):
    monkeypatch.setitem(ROUTERS, "hash", ROUTERS["token"]._replace(short="hash"))
    c = resolve(digits.get_config("arch=moe_tc4,size=smoke"))
    new = Sections(**vars(c) | {"ffn": {"text": dataclasses.replace(c.ffn["text"], router="hash")}})
    assert architectures.name(new) == "dense ffn:hash4"


@pytest.mark.parametrize(
    ("arch", "streams", "name"),
    [
        ("dense", "ab", "dense"),
        ("mot", "ab", "mot"),
        ("mot_ffn", "ab", "mot_ffn"),
        ("mot_attn_ffn", "abc", "mot_attn_ffn"),
    ]
    + [("loo_b", "abc", "loo_b"), ("loo_b", "ab", "mot")],
)
def test_an_architecture_is_known_by_its_maps(arch, streams, name):
    sections = dict.fromkeys(field.name for field in dataclasses.fields(Sections))
    towers = Towers(stop_gradients=(), **archs.towers(arch, list(streams)))
    sections |= {"attn": {}, "ffn": {}, "streams": dict.fromkeys(streams), "towers": towers}
    assert architectures.name(Sections(**sections)) == name


WRAPPER = """<iframe id=f src="report.html" width={width} height=900 style="border:0"></iframe>
<pre id=out></pre><script>
f.onload = () => {{
  const d = f.contentDocument, wide = [];
  for (const e of d.body.querySelectorAll("*"))
    if (!e.closest(".scroll") && e.getBoundingClientRect().right > {width} + 1) wide.push(e.outerHTML.slice(0, 80));
  const images = [...d.images];
  out.textContent = JSON.stringify({{
    images: images.length, broken: images.filter(i => !(i.complete && i.naturalWidth)).length, wide,
    scrolls: d.documentElement.scrollWidth > {width} }});
}}</script>"""


@pytest.mark.parametrize(
    ("width", "dark", "sweep"),
    [
        (1280, False, ""),
        (390, False, ""),
        (390, True, ""),
        (390, False, "archs"),
        (1280, False, "untying"),
        (390, False, "untying"),
    ],
)
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_in_a_browser_every_picture_loads_and_nothing_overflows(tmp_path, width, dark, sweep):
    for arch in ("dense", "mot", "mot_ffn", "mot_attn_ffn"):
        path = planted(tmp_path, arch)
        if sweep:
            probed(path)
    if sweep:
        swept(tmp_path, f"configs/sweeps.py:{sweep}")
    page(tmp_path)
    (tmp_path / "wrapper.html").write_text(WRAPPER.format(width=width), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", "--no-first-run", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--virtual-time-budget=5000"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command += ["--dump-dom", f"file://{tmp_path}/wrapper.html"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert found["images"] >= 3
    assert found["broken"] == 0
    assert found["wide"] == []
    assert not found["scrolls"]


def test_one_run_by_two_names_and_a_copy_are_no_further_evidence(tmp_path):
    planted(tmp_path, "dense")
    run = planted(tmp_path, "mot", speed=2.0)
    before, _ = page(tmp_path)
    (tmp_path / "link").symlink_to(run)
    shutil.copytree(run, tmp_path / "zcopy")
    after, text = page(tmp_path)
    assert before == after
    assert "the same architecture and seeds as" in prose(text)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("loss/text", "nan", "losses are not finite at the end"),
        ("loss/text", "inf", "losses are not finite at the end"),
        ("tokens/text", None, "metrics.jsonl has rows without tokens/text"),
        ("mfu", None, "metrics.jsonl has rows without mfu"),
        ("tokens", 0, "metrics.jsonl has steps that trained on no token"),
        ("step", 7, "metrics.jsonl has steps twice"),
    ],
)
def test_rows_that_say_nothing_leave_the_run_out(tmp_path, key, value, says):
    planted(tmp_path, "dense")
    path = planted(tmp_path, "mot", steps=STEPS)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        for k in [k for k in row if k == key or k.startswith(f"{key}/")] if row["kind"] == "train" else []:
            row[k] = value
    rows = [{k: v for k, v in row.items() if v is not None} for row in rows if row["kind"] != "eval"]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sentence, text = page(tmp_path)
    assert says in prose(text)
    assert "can be compared with a dense one" in sentence


@pytest.mark.parametrize("content", [b"\xff\x00", b"", b"[]", b"{}", b"[" * 100_000])
def test_damaged_samples_are_named_and_the_page_is_made(tmp_path, content):
    folder = planted(tmp_path, "dense") / "samples" / "2"
    folder.mkdir(parents=True)
    (folder / "samples.json").write_bytes(content)
    _, text = page(tmp_path)
    assert f"{folder} is damaged" in prose(text)


def test_what_others_wrote_is_not_overwritten(tmp_path, capsys):
    planted(tmp_path, "dense")
    (tmp_path / "report.html").write_text("mine", encoding="utf-8")
    assert cli.main(["report", str(tmp_path / "dense-seed0")]) == 2
    assert "was not written by mot report and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "mine"
    assert not list(tmp_path.glob("*.csv"))


def test_a_bad_row_is_named_by_file_and_line(tmp_path, capsys):
    path = planted(tmp_path, "dense")
    good = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for bad in ('{"schema": 1, "kind": "train", "step": "3"}', '{"schema": 1, "kind": "train", "step": 3, "loss": []}'):
        (path / "metrics.jsonl").write_text("\n".join([good[0], bad, ""]), encoding="utf-8")
        assert cli.main(["report", str(path)]) == 2
        assert "metrics.jsonl is damaged or foreign (line 2: " in capsys.readouterr().err
    (path / "config.json").write_text(
        (path / "config.json").read_text(encoding="utf-8").replace('"steps": 60', '"steps": "60"'), encoding="utf-8"
    )
    assert cli.main(["report", str(path)]) == 2
    assert "config.json is damaged or foreign" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("train", "flops", "x"),
        ("eval", "flops", None),
        pytest.param("train", "seconds", 10**400, id="seconds that no float holds"),
        ("train", "tokens/text", "many"),
        ("train", "fill/text", [1]),
        pytest.param("eval", "loss/text", 10**400, id="a loss that no float holds"),
        ("eval", "step", 10**30),
        ("event", "wall/step", "x"),
        ("event", "host", ["a"]),
        ("event", "time", 5),
        ("event", "matmul_peak", "fast"),
        ("event", "size", {"training": {"tokens": {"text": "x"}}}),
    ],
)
def test_what_is_no_number_is_named_by_its_line(tmp_path, capsys, kind, key, value):
    path = planted(tmp_path, "dense")
    rewritten(path, lambda row: row | ({key: value} if row["kind"] == kind else {}))
    assert cli.main(["report", str(path)]) == 2
    error = capsys.readouterr().err
    assert "metrics.jsonl is damaged or foreign (line " in error
    assert key in error


def test_evaluations_out_of_order_and_losses_below_0_are_left_out(tmp_path):
    paths = [planted(tmp_path, seed=seed) for seed in range(3)]
    rows = (paths[0] / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    held_out = [row for row in rows if '"eval"' in row]
    others = [row for row in rows if row not in held_out]
    (paths[0] / "metrics.jsonl").write_text("".join(others + held_out[::-1]), encoding="utf-8")
    rewritten(paths[1], lambda row: row | ({"loss/text": -1.0} if row["kind"] == "eval" else {}))
    reversed_, below, sound = (runs.read(path).faults for path in paths)
    assert reversed_ == ("metrics.jsonl has evaluations twice or out of order",)
    assert below == ("metrics.jsonl has losses below 0, first at step 0: no loss of mot is",)
    assert sound == ()


@pytest.mark.parametrize("name", ["proj [v2]", "a*b?", "[!x]"])
def test_a_glob_below_a_folder_that_reads_like_one_finds_its_runs(tmp_path, name):
    for seed in (0, 1):
        planted(tmp_path / name / "runs", seed=seed)
    assert [run.path.name for run in runs.find([f"{tmp_path / name}/runs/*"])] == ["dense-seed0", "dense-seed1"]


def searched(root, count=16, lucky=0.0):
    """Of dense and mot as many runs at the same points; mot's losses lie lower, or but for one point alike."""
    points = search.points({"optim.lr": search.log(1e-3, 1e-1), "optim.beta2": search.linear(0.9, 0.99)}, count)
    rng = np.random.default_rng(0)
    for arch in ("dense", "mot"):
        for i, point in enumerate(points):
            values = {key.partition(".")[2]: value for key, value in point.items()}
            speed = float(np.exp(0.3 * rng.standard_normal())) * (1 if lucky or arch == "dense" else 4)
            speed = lucky if lucky and arch == "mot" and i == 5 else speed
            planted(root, arch, speed=speed, name=f"{arch}-point{i}", **values)


def test_a_search_is_told_as_best_of_n_and_the_page_shows_the_best_points_alone(tmp_path):
    searched(tmp_path)
    sentence, text = page(tmp_path)
    shown = prose(text)
    assert "mot needed 24 % of dense's steps" in sentence  # best against best; dense at mot's best point: 18 %
    assert "Best of n points" in shown
    assert shown.count("ahead of dense at equal n, from n = 1 on") == 2  # text and image
    assert (tmp_path / "best_image.png").read_bytes().startswith(b"\x89PNG")
    assert "of the best of 16 points" in shown
    groups = runs.sound(best.without_the_rest(found := runs.find([f"{tmp_path}/*"]), best.searches(found)))
    assert len(found) == 32
    assert 2 <= len(groups) <= 3
    assert len((tmp_path / "runs.csv").read_text(encoding="utf-8").splitlines()) == 33


def test_one_lucky_point_is_no_gain(tmp_path):
    searched(tmp_path, lucky=9.0)
    _, text = page(tmp_path)
    assert "ahead of dense" not in prose(text)
    assert "undecided: draws overlap" in prose(text)


def test_a_point_that_diverged_counts_and_few_points_are_no_search(tmp_path):
    searched(tmp_path / "few", count=7)
    assert best.searches(runs.find([f"{tmp_path}/few/*"])) == {}
    searched(tmp_path / "many", count=8)
    planted(tmp_path / "many", "mot", name="mot-lost", lr=0.5, events=("diverged",))
    found = best.searches(runs.find([f"{tmp_path}/many/*"]))
    assert [(arch, len(of.points), of.keys) for arch, of in found.items()] == [
        ("dense", 8, ("optim.lr", "optim.beta2")),
        ("mot", 9, ("optim.lr", "optim.beta2")),
    ]
    assert found["mot"].losses("image")[-1] == np.inf or np.inf in found["mot"].losses("image")


def test_the_docstring_of_load_names_every_column(tmp_path):
    planted(tmp_path, "dense", sources={"text": {"manual": 0.1}})
    planted(tmp_path, "mot", lr=0.5)
    for table in runs.load(f"{tmp_path}/*"):
        for column in table.columns:
            kinds = {"active": "<stream>", "fill": "<stream>", "wall": "<kind>"}
            first, slash, _ = column.partition("/")
            name = f"{first}/{kinds[first]}" if first in kinds else "held_out/loss..." if slash else column
            assert name in runs.load.__doc__ or "." in column, column


def test_of_many_groups_pictures_show_the_best_of_each_architecture_and_tables_show_all(tmp_path):
    for i in range(7):
        for arch, speed in (("dense", 1.0), ("mot", 2.0)):
            planted(tmp_path, arch, name=f"{arch}-{i}", speed=speed * (1 + 0.1 * (i == 3)), lr=1e-3 * (i + 1))
    _, text = page(tmp_path)
    groups = runs.sound(runs.find([f"{tmp_path}/*"]))
    assert len(groups) == 14
    assert set(report._shown(groups)) == {"dense (rate 0.004)", "mot (rate 0.004)"}
    assert "12 more groups of runs are in the tables" in prose(text)
    assert prose(text).count("mot (rate 0.006)") >= 2


@pytest.mark.slow
def test_sixty_runs_take_twenty_seconds_and_five_megabytes(tmp_path):
    """Processor time, as other tests run beside it; routed architectures have pictures of their experts, too."""
    for seed in range(10):
        for arch in ("dense", "mot", "mot_ffn", "moe_ec4", "moe_tc4", "mot_moe"):
            probed(planted(tmp_path, arch, seed, keys={"run.steps": 500}, speed=1 + 0.01 * seed))
    swept(tmp_path, "configs/sweeps.py:archs")
    began = time.process_time()
    page(tmp_path)
    assert time.process_time() - began < 20
    assert (tmp_path / "report.html").stat().st_size < 5e6


def test_without_a_dense_run_the_command_tells_losses(tmp_path, capsys):
    planted(tmp_path, "mot", name="slow", lr=1e-3)
    planted(tmp_path, "mot", name="fast", lr=2e-3)
    assert cli.main(["report", f"{tmp_path}/*"]) == 0
    told = capsys.readouterr().out
    assert "held-out text" in told
    assert "No run here can be compared with a dense one" in told


def test_of_a_step_that_was_sampled_twice_the_newest_samples_are_shown(tmp_path):
    folders = [tmp_path / name for name in ("2", "50-2")]
    assert report._spread_out(folders) == folders


def test_a_run_without_a_loss_of_tokens_begins_no_curve():
    """One that contrasts alone."""

    def run(*steps):
        return SimpleNamespace(series=lambda kind, key: (np.array(steps), np.zeros(len(steps))))

    assert report._begins({"a": [run(1, 2, 8)], "b": [run()]}) == "2"
    assert report._begins({"b": [run()]}) == ""

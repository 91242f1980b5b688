"""What a sweep asked is answered first: planted effects come back, and what cannot be compared is said."""

import inspect
import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest

from configs import ladder, sweeps
from launch import cli
from scaling import questions
from tests.support.reports import STEPS, page, planted, prose, rewritten, swept

ALONE = {m: {f"streams.{other}.loss_weight": 0.0} for m, other in (("text", "image"), ("image", "text"))}


def mixed(root, seeds=3, archs=("dense", "mot"), tax=0.1, spread=0.02):
    """A mixture sweep: dense pays `tax` of text and gains half of it for images; mot pays nothing."""
    for arch in archs:
        for seed in range(seeds):
            for modality, keys in ALONE.items():
                planted(root, arch, seed, name=f"{arch}-{modality}-seed{seed}", keys=keys)
            more = (tax + spread * (seed - 1)) * (arch == "dense")
            planted(root, arch, seed, name=f"{arch}-joint-seed{seed}", above={"text": more, "image": -more / 2})
    swept(root, "configs/sweeps.py:mixture,size=smoke")


def answers(root):
    return pd.read_csv(root / "answer.csv").set_index(["what", "group", "modality"])


def test_the_tax_that_was_planted_comes_back_with_its_interval(tmp_path):
    mixed(tmp_path)
    sentence, text = page(tmp_path)
    found = answers(tmp_path)
    tax = found.loc[("tax", "dense", "text")]
    assert tax.value == pytest.approx(0.1)
    assert (tax.low, tax.high) == pytest.approx((0.1 - 0.04968, 0.1 + 0.04968), abs=1e-4)  # 4.303 * 0.02 / sqrt(3)
    assert found.loc[("tax", "dense", "image")].value == pytest.approx(-0.05)
    assert found.loc[("tax", "mot", "text")].value == pytest.approx(0, abs=1e-9)
    assert found.loc[("of dense's tax it takes away", "mot", "text")].value == pytest.approx(0.1)
    assert "in dense text pays 0.100 [0.050, 0.150]" in sentence or "text pays 0.100 [0.050, 0.150]" in sentence
    assert "image gains 0.050 [0.025, 0.075]" in sentence
    assert sentence in prose(text)
    assert text.index("because others are trained with it") < text.index("What was run")
    assert (tmp_path / "answer.png").read_bytes().startswith(b"\x89PNG")
    assert set(tax.runs.split()) == {f"dense-{arm}-seed{i}" for arm in ("text", "joint") for i in range(3)}
    assert all(f'href="#run-{name}"' in text and f'id="run-{name}"' in text for name in tax.runs.split())


def test_the_tax_is_of_equal_tokens(tmp_path):
    """A joint run that saw half of the tokens is compared with the lone one as it was then."""
    for arm, keys, every in (("text", ALONE["text"], 1), ("joint", {}, 2)):
        path = planted(tmp_path, name=f"dense-{arm}-seed0", keys=keys)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [r | ({"tokens/text": r["tokens/text"] // every} if "tokens/text" in r else {}) for r in rows]
        (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    swept(tmp_path, "configs/sweeps.py:mixture")
    page(tmp_path)
    expected = 4 * (STEPS + 2) ** -0.5 - 4 * (STEPS // 2 + 2) ** -0.5
    assert answers(tmp_path).loc[("tax", "dense", "text")].value == pytest.approx(expected)


def test_a_modality_that_was_not_trained_has_no_slope_and_no_loss(tmp_path):
    mixed(tmp_path, seeds=1)
    _, text = page(tmp_path)
    slopes = pd.read_csv(tmp_path / "slopes.csv")
    assert set(slopes[slopes.group == "mot (mot-text)"].modality) == {"text"}
    assert "one seed: no verdict" in prose(text)


def test_a_folder_of_a_sweep_is_named_as_it_is(tmp_path, capsys):
    mixed(tmp_path, seeds=2)
    assert cli.main(["report", str(tmp_path)]) == 0
    assert "When all are trained together, in dense" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"sweep": "mine.py:mixture', "is damaged or foreign"),
        ('{"rows": []}', "is damaged or foreign"),
        ('{"sweep": "no name", "rows": [{"run.name": "dense-text-seed0"}]}', "must be FILE:NAME,arg"),
        ("[" * 100_000, "is damaged or foreign"),
        ("7", "is damaged or foreign"),
    ],
)
def test_a_sweep_that_cannot_be_read_gives_the_general_page_with_a_caution(tmp_path, content, says, capsys):
    mixed(tmp_path, seeds=1)
    (tmp_path / "sweep.json").write_text(content, encoding="utf-8")
    assert cli.main(["report", str(tmp_path)]) == 0
    shown = prose((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert says in shown
    assert "what follows is general" in shown
    assert not (tmp_path / "answer.csv").exists()


def test_a_sweep_of_a_users_own_has_the_general_page(tmp_path):
    mixed(tmp_path, seeds=1)
    for text in ("mine.py:mixture,size=smoke", "configs/sweeps.py:mine"):
        swept(tmp_path, text)
        shown = prose(page(tmp_path)[1])
        assert "what follows is general" not in shown
        assert "How much do modalities compete" in shown


def test_what_is_left_out_of_an_answer_is_said_and_changes_no_number(tmp_path):
    mixed(tmp_path)
    page(tmp_path)
    before = answers(tmp_path)
    planted(tmp_path, "dense", 3, name="dense-text-seed3", keys=ALONE["text"], events=("diverged",), steps=30)
    planted(tmp_path, "dense", 3, name="dense-joint-seed3", steps=20)
    planted(tmp_path, "dense", 4, name="dense-text-seed4", keys=ALONE["text"], data="d2")
    planted(tmp_path, "dense", 5, name="dense-text-seed5", keys=ALONE["text"] | {"data.batch": 3})
    planted(tmp_path, "dense", 5, name="dense-joint-seed5")
    planted(tmp_path, "dense", 6, name="dense-text-seed6", keys=ALONE["text"])
    swept(tmp_path, "configs/sweeps.py:mixture")
    shown = prose(page(tmp_path)[1])
    for says in (
        "dense-text-seed3: diverged at step 30",
        "dense-joint-seed3: unfinished: step 20 of 60",
        "dense-text-seed4: trained on other data: digest d2, most have d1",
        "dense-text-seed5 and dense-joint-seed5 differ in data.batch",
        "dense-text-seed6: it has no partner with its seeds",
    ):
        assert says in shown, says
    pd.testing.assert_frame_equal(answers(tmp_path), before)


def test_the_language_of_captions_is_told_from_their_images(tmp_path):
    """0.2 nats of captions and 0.02 of images are planted on the sources of text alone."""
    off = {"streams.image.loss_weight": 0.0}
    alone = off | {"data.sources": {"manual": "embedded"}, "data.shares": {"manual": 1.0}}
    for seed in range(2):
        for arm, keys, more, data in (
            ("text", alone, 0, "d2"),
            ("captions", off, 0.2, "d1"),
            ("joint", {}, 0.22, "d1"),
        ):
            sources = {"text": {"manual": more + 0.01 * seed * (arm == "captions"), "drawn": 9}}
            planted(tmp_path, "mot", seed, name=f"mot-{arm}-seed{seed}", keys=keys, data=data, sources=sources)
    swept(tmp_path, "configs/sweeps.py:caption_shift")
    sentence, text = page(tmp_path)
    found = answers(tmp_path).value
    assert found["what captions cost, on manual", "mot", "text"] == pytest.approx(0.205)
    assert found["what images cost, on manual", "mot", "text"] == pytest.approx(0.015)
    assert "captions cost +0.205 nats" in sentence
    assert "trained on other data" not in prose(text)


def of_speech(arch):
    return SimpleNamespace(get_config=lambda _: ladder.get_config(f"setting=chameleon_speech,rung=0.3m,arch={arch}"))


def test_leave_one_out_stands_beside_the_published_map(tmp_path):
    speeds = {
        "dense": dict(text=1, image=1, speech=1),
        "loo_text": dict(text=2, image=1.5, speech=1),
        "loo_image": dict(text=1, image=3, speech=1),
        "loo_speech": dict(text=1, image=1, speech=4),
        "mot": dict(text=2, image=3, speech=4),
    }
    for arch, speed in speeds.items():
        planted(tmp_path, arch, setting=of_speech(arch), speed=speed)
    swept(tmp_path, "configs/sweeps.py:leave_one_out")
    sentence, text = page(tmp_path)
    found = answers(tmp_path).loc["share of dense's steps, training loss"]
    assert found.value["loo_image", "image"] == pytest.approx(1 / 3, abs=0.05)
    assert found.value["loo_text", "text"] == pytest.approx(1 / 2, abs=0.05)
    assert found.published["loo_image", "image"] == 0.272
    assert found.published["mot", "speech"] == 0.151
    assert "steps were needed with image apart alone" in sentence
    assert (tmp_path / "answer.png").read_bytes().startswith(b"\x89PNG")
    assert "443M, text, image and speech" in prose(text)


def test_what_attention_apart_adds_to_the_ffn_apart(tmp_path):
    for seed in range(2):
        for arch, speed in (("dense", 1), ("mot_ffn", 2), ("mot_attn_ffn", 3), ("mot", 3)):
            planted(tmp_path, arch, seed, speed=speed * (1 + 0.1 * seed * (arch != "dense")))
    swept(tmp_path, "configs/sweeps.py:untying")
    sentence, _ = page(tmp_path)
    more = answers(tmp_path).loc[("attention apart, too", "mot_attn_ffn", "image")]
    assert more.value == pytest.approx(2 / 3, abs=0.05)
    assert more.published == "about 0.67"
    assert more.low < more.value < more.high
    assert sentence.index("mot_attn_ffn") < sentence.index("mot_ffn ")
    assert sentence.startswith("Dense's text loss took mot")


def test_routers_are_told_by_equal_parameters_too(tmp_path):
    for arch, speed in (("dense", 1), ("mot", 2), ("moe_tc4", 3), ("moe_tc4_total", 1.5)):
        planted(tmp_path, arch, speed=speed)
    swept(tmp_path, "configs/sweeps.py:routing")
    sentence, _ = page(tmp_path)
    assert re.search(r"or text, towers by modality needed (4\d|5\d) % of dense's steps", sentence), sentence
    assert re.search(r"of learned routers moe_tc4 was best, with 3\d %", sentence), sentence
    assert re.search(r"of those with as many parameters in all, with 6\d %", sentence), sentence


def test_a_ladder_is_told_by_size(tmp_path):
    for layers, speed in ((1, 2.0), (4, 1.25)):
        for arch in ("dense", "mot"):
            keys = {"model.layers": layers}
            planted(tmp_path, arch, name=f"r{layers}-{arch}-seed0", keys=keys, speed=speed if arch == "mot" else 1.0)
    swept(tmp_path, "configs/sweeps.py:ladder")
    sentence, _ = page(tmp_path)
    told = r"rom [\d.]+ K to [\d.]+ K parameters, mot went from (\d+) % to (\d+) % of dense's steps for (text|image)"
    found = re.findall(told, sentence)
    assert [modality for *_, modality in found] == ["text", "image"]
    for first, last, _ in found:
        assert int(first) == pytest.approx(50, abs=6)
        assert int(last) == pytest.approx(80, abs=8)


def test_budgets_are_told_by_their_best_size_and_an_edge_is_a_bound(tmp_path):
    for budget, cost in (("1e14", 1e9), ("1e15", 1e10)):
        for arch, less in (("dense", 0), ("mot", 0.1)):
            for layers, more in ((1, 0.2), (2, 0.0), (4, 0.3 if budget == "1e15" else -0.1)):
                above = dict.fromkeys(("text", "image"), more - less)
                name = f"{budget}-{layers}-{arch}"
                planted(tmp_path, arch, name=name, keys={"model.layers": layers}, above=above, cost=cost)
    swept(tmp_path, "configs/sweeps.py:isoflop")
    sentence, text = page(tmp_path)
    found = pd.read_csv(tmp_path / "answer.csv")
    assert set(found.what) == {"least held-out loss at 6e+10 FLOPs", "least held-out loss at 6e+11 FLOPs"}
    assert set(found[found.what.str.contains("e\\+10")].bound) == {"<"}
    assert set(found[found.what.str.contains("e\\+11")].bound.fillna("")) == {""}
    assert "at the edge of the sizes that were run" in prose(text)
    assert re.search(r"at 6e\+11 FLOPs is for image 1\.\d+ by mot at .* and 1\.\d+ by dense", sentence), sentence


def test_a_search_is_told_by_best_of_n(tmp_path):
    for i in range(8):
        for arch, speed in (("dense", 1), ("mot", 3)):
            planted(tmp_path, arch, name=f"{arch}-point{i}", lr=1e-3 * (i + 1), speed=speed * (1 + 0.02 * i))
    swept(tmp_path, "configs/sweeps.py:search")
    sentence, text = page(tmp_path)
    assert sentence.count("mot is ahead of dense at equal n, from n = 1 on") == 2
    assert set(pd.read_csv(tmp_path / "answer.csv").what) == {"held-out loss, best of 4"}
    assert "each has its own best rate" in prose(text)


@pytest.mark.parametrize("name", questions.ASKED)
def test_every_question_has_an_answer_to_one_broken_and_one_lone_run(tmp_path, name):
    """It says that there is nothing to tell, and draws no line through nothing."""
    planted(tmp_path / "broken", "dense", events=("diverged",), steps=5)
    planted(tmp_path / "lone", "mot")
    for root in (tmp_path / "broken", tmp_path / "lone"):
        swept(root, f"configs/sweeps.py:{name}")
        sentence, text = page(root)
        assert sentence in prose(text)
    assert "diverged at step 5" in prose((tmp_path / "broken" / "report.html").read_text(encoding="utf-8"))


def test_every_sweep_that_comes_with_mot_has_a_question():
    shipped = {name for name, value in vars(sweeps).items() if getattr(value, "__module__", "") == sweeps.__name__}
    asked = {name for name in shipped if next(iter(inspect.signature(getattr(sweeps, name)).parameters), "") == "arg"}
    assert {name for name in asked if not name.startswith("_")} == set(questions.ASKED)


def test_a_pair_without_held_out_curves_is_said(tmp_path):
    mixed(tmp_path, seeds=2, archs=("dense",))
    rewritten(
        tmp_path / "dense-text-seed1",
        lambda row: {k: v for k, v in row.items() if row["kind"] != "eval" or k != "loss/text"},
    )
    shown = prose(page(tmp_path)[1])
    assert "dense-text-seed1 and dense-joint-seed1: one has fewer than two held-out losses of text" in shown
    assert answers(tmp_path).loc[("tax", "dense", "text")].n == 1


def test_a_trial_of_two_steps_is_said_to_be_one(tmp_path):
    for seed in range(2):
        for arch in ("dense", "mot"):
            planted(tmp_path, arch, seed, keys={"run.steps": 2})
    swept(tmp_path, "configs/sweeps.py:archs")
    sentence, _ = page(tmp_path)
    assert sentence.startswith("These runs are too short for a verdict")

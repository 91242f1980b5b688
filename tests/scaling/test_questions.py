"""What a sweep asked is answered first: planted effects come back, and what cannot be compared is said."""

import json

import pandas as pd
import pytest

from launch import cli
from tests.support.reports import STEPS, page, planted, prose, swept

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

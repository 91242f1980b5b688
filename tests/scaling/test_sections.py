"""What a report tells beside slopes: planted laws, best sizes, predictions, and what could not be told."""

import re

import pytest

from mot.runs import evaluated
from scaling import report, runs, sections
from tests.support import laws
from tests.support.reports import planted, prose

RUNGS, STEPS = ("0.3m", "1m", "3m"), (500, 1000, 2000)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    root = tmp_path_factory.mktemp("ladder")
    for rung in RUNGS:
        for steps in STEPS:
            for arch in ("dense", "mot"):
                for seed in range(2):
                    laws.run(root, rung, seed, steps, arch, noise=1e-3)
    laws.run(root, "10m", 0, 1000, "dense", noise=1e-3, role="test")
    return runs.sound(runs.find([f"{root}/*"])), root


@pytest.fixture(scope="module")
def told(ladder):
    return {section.title: section for section in sections.of(ladder[0], ladder[0], {})}


def cell(section, arch, modality, column):
    return next(cells[section.columns.index(column)] for of, m, cells in section.rows if (of, m) == (arch, modality))


def test_planted_laws_stand_in_the_table(told):
    section = told["Scaling laws"]
    assert {row[:2] for row in section.rows} == {(a, m) for a in ("dense", "mot") for m in ("text", "image")}
    for arch in ("dense", "mot"):
        value, low, high = map(float, re.findall(r"[\d.]+", cell(section, arch, "text", "beta")))
        assert low <= laws.TEXT.beta <= high
        assert value == pytest.approx(laws.TEXT.beta, rel=0.1)
    assert len(section.pictures) == 8  # the law and its residuals
    assert not section.notes


def test_sizes_are_predicted_and_what_was_held_out_beside_what_it_came_to(told):
    section = told["Predictions, and what came of them"]
    held_out = [cells for _, _, cells in section.rows if cells[2] == "test, held out beforehand"]
    assert len(held_out) == 2  # of text and image
    assert all(abs(float(cells[-1].removesuffix(" %"))) < 5 for cells in held_out)
    why = "without it: 2 sizes, and E, A and alpha need 3 or more; train more"
    assert sum(note.endswith(why) for note in section.notes) == 2 * 2 * len(RUNGS)  # of three sizes none can be missed


def test_losses_at_equal_flops_are_told_and_why_there_are_none(told):
    section = told["At equal cost"]
    ratios = [float(cells[0].partition(" ")[0]) for *_, cells in section.rows]
    assert ratios == pytest.approx([1] * len(ratios), abs=0.01)
    assert any("dense was trained with" in note for note in section.notes)


def test_the_page_shows_them(ladder, tmp_path):
    report.write([run for group in ladder[0].values() for run in group], tmp_path)
    text = prose((tmp_path / "report.html").read_text(encoding="utf-8"))
    for words in ("Scaling laws", "Predictions, and what came of them", "At equal cost", "dense was trained with"):
        assert words in text
    assert (tmp_path / "law_0.png").exists()


def test_runs_of_one_size_have_no_laws(tmp_path):
    for arch in ("dense", "mot"):
        planted(tmp_path, arch)
    groups = runs.sound(runs.find([f"{tmp_path}/*"]))
    assert [section.title for section in sections.of(groups, groups, {})] == ["At equal cost"]


def test_what_tells_no_law_is_said_with_the_reason(tmp_path):
    for rung in ("0.3m", "1m"):
        laws.run(tmp_path, rung)
    groups = runs.sound(runs.find([f"{tmp_path}/*"]))
    (section,) = [one for one in sections.of(groups, groups, {}) if one.title == "Scaling laws"]
    assert all(set(cells[1:]) == {"-"} for *_, cells in section.rows)
    assert any("train more" in note for note in section.notes)
    assert not section.pictures


def test_a_mixture_over_sizes_tells_what_modalities_do_to_each_other(tmp_path):
    of = {"text": laws.TEXT, "image": laws.IMAGE}
    together = {modality: law._replace(E=law.E + 0.1) for modality, law in of.items()}
    for trained in (("text",), ("image",), None):
        for rung in RUNGS:
            for steps in STEPS:
                name = f"{rung}-{steps}-{'-'.join(trained or ('joint',))}"
                laws.run(tmp_path, rung, 0, steps, trained=trained, name=name, of=of if trained else together)
    groups = runs.sound(runs.find([f"{tmp_path}/*"]))
    titles = {one.title: one for one in sections.of(groups, groups, {})}
    section = titles["Competition as models grow"]
    ((arch, modalities, cells),) = section.rows
    assert (arch, modalities) == ("dense", "text and image")
    assert len(cells) == len(section.columns)
    assert not section.notes


def test_what_was_evaluated_beyond_the_loss_is_told_of_the_newest_step(tmp_path):
    path = planted(tmp_path, "mot")
    for step, value in ((20, 0.2), (60, 0.75)):
        figures = {"accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1, "chance": 0.25, "n": 40}}
        evaluated.write(path, step, "ranking", {"figures": figures})
    (path / "evaluations" / "60" / "judged.json").write_text("{", encoding="utf-8")
    groups = runs.sound(runs.find([path]))
    section = sections.evaluations(groups)
    assert section.rows == [("mot", "ranking", ["mot-seed0", "60", "accuracy", "0.75 [0.65, 0.85]", "0.25"])]
    assert "judged.json is left out: it is damaged" in section.notes[0]
    assert sections.evaluations(runs.sound(runs.find([planted(tmp_path, "dense")]))) is None

"""Pictures of fits: a line where there is a law, and none, with the reason, where there is not."""

import numpy as np
import pytest

from scaling import fit, fit_pictures, isoflop, pictures
from scaling.fit import Measured, Scaling
from tests.support import laws as planted


def scaling(points, C, cell):
    given = Measured(points, C, cell.astype(str), cell.astype(str), np.full(len(C), "fit"))
    one = fit.fitted(given)
    at = isoflop.budgets(points, C, one.law, one.drawn, one.draws) if fit.has_both(one) else []
    return Scaling("dense", "text", one, at, [], [], [])


GOOD = scaling(*planted.grid(planted.TEXT, 4, sizes=5))
points, C, cell = planted.grid(planted.TEXT, 4, sizes=5)
NONE = scaling(points._replace(n=np.full(len(C), 1e6)), C, cell)
DRAWN = [
    (fit_pictures.law, (GOOD, "loss"), (NONE, "loss")),
    (fit_pictures.isoflops, (GOOD, "loss"), (NONE, "loss")),
    (fit_pictures.residuals, (GOOD.fit,), (NONE.fit,)),
]


@pytest.mark.parametrize(("draw", "good", "none"), DRAWN)
def test_without_a_law_there_is_no_line_and_a_reason(draw, good, none):
    assert draw(*good).axes[0].get_title() == ""
    figure = draw(*none)
    assert figure.axes[0].get_title().replace("\n", " ").startswith("no law: all runs have one size")
    lines = [line for axis in figure.axes for line in axis.get_lines() if line.get_linestyle() != "None"]
    assert all(np.ptp(line.get_ydata()) == 0 for line in lines)  # the residuals' zero


def test_residuals_are_what_the_law_leaves():
    axis = fit_pictures.residuals(GOOD.fit).axes[0]
    drawn = np.array(axis.get_lines()[0].get_ydata())
    expected = 100 * np.log(GOOD.fit.measured.points.loss / GOOD.fit.law.loss(*GOOD.fit.measured.points[:2]))
    assert drawn == pytest.approx(expected)


def test_best_sizes_are_marked():
    axis = fit_pictures.isoflops(GOOD, "loss").axes[0]
    stars = [line for line in axis.get_lines() if line.get_marker() == "*"]
    assert [line.get_xdata()[0] for line in stars] == [budget.n for budget in GOOD.budgets]


def test_both_themes_are_drawn():
    images = pictures.both(fit_pictures.law, GOOD, "loss")
    assert {theme: png[:4] for theme, png in images.items()} == {"light": b"\x89PNG", "dark": b"\x89PNG"}


@pytest.mark.parametrize(
    ("number", "text"), [(67, "67"), (67_000, "67 K"), (500_000, "500 K"), (1.23e6, "1.2 M"), (1.2e17, "1.2e+17")]
)
def test_counts_are_short(number, text):
    assert fit_pictures.count(number) == text

"""What every recipe has: a docstring, a size of two steps, a row in the reference, and a test of its own."""

import re

import pytest

from mot.config import load
from mot.errors import UserError
from tests.conftest import ROOT
from tests.support import recipes

NAMES = sorted(path.stem for path in (ROOT / load.RECIPES).glob("*.py") if path.stem != "__init__")
ROW = re.compile(r"^\| `(\w+)` \|.*`mot \w+", re.MULTILINE)


def listed(page: str) -> list[str]:
    """The recipes of a page's rows, which begin with a name in code and hold a command."""
    return ROW.findall(page)


def test_every_recipe_has_a_row_in_the_order_of_names():
    page = (ROOT / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
    assert listed(page) == NAMES


def test_a_row_without_a_command_is_none():
    assert listed("| `a` | what | how | `mot train --config=x` | 1 |\n| `b` | what | how | later | 2 |\n") == ["a"]


def test_every_recipe_has_a_test_of_its_own():
    assert {path.stem for path in (ROOT / "tests" / "recipes").glob("test_*.py")} >= {f"test_{name}" for name in NAMES}


def test_every_recipe_says_what_it_is_and_has_a_size_of_two_steps():
    for name in NAMES:
        namespace = load.run(load.SHIPPED / "recipes" / f"{name}.py", name)
        assert f"{load.RECIPES}/{name}.py" in namespace["__doc__"], f"{name}: its docstring has no command"
        assert re.search(r"\d{4}\.\d{4,5}", namespace["__doc__"]), f"{name}: its docstring names no paper"
        assert {"smoke", "cpu"} <= set(namespace["ARGUMENTS"]["size"].allowed), name


def test_a_recipe_that_is_not_there_is_one_message_that_names_what_is_near(tmp_path, monkeypatch):
    shipped = tmp_path / "configs"
    (shipped / "recipes").mkdir(parents=True)
    for file in (shipped / "digits.py", shipped / "recipes" / "mine.py"):
        file.write_text("\ndef get_config(arg=''):\n    pass\n", encoding="utf-8")
    monkeypatch.setattr(load, "SHIPPED", shipped)
    with pytest.raises(UserError, match=r"did you mean 'configs/recipes/mine\.py'.*come configs/digits\.py, and those"):
        load.file_of("configs/recipes/mien.py")
    monkeypatch.chdir(tmp_path / "configs")  # from where no configs/ is seen
    assert load.file_of("configs/recipes/mine.py:size=smoke") == shipped / "recipes" / "mine.py"


def test_what_needs_data_is_skipped_where_it_is_not_there():
    skip = recipes.needs("no such file.npz")
    assert skip.args == (True,)
    assert "../shared/data: no such file.npz" in skip.kwargs["reason"]

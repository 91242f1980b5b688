"""The pages of docs/: those that follow from the code are as the code makes them, and what pages name is there."""

import dataclasses
import re
from pathlib import Path

import pytest

from docs import generate
from mot import batches, model
from mot.data import packing

ROOT = Path(__file__).parent.parent
PAGES = sorted(p for room in ("concepts", "reference") for p in (ROOT / "docs" / room).glob("*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def read(path):
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["configuration.md", "commands.md"])
def test_generated_pages_are_what_the_code_says(name):
    assert read(generate.PAGES / name) == generate.pages()[name], "run `python -m docs.generate`"


def slug(title):
    """The anchor that Markdown gives a heading."""
    return re.sub(r"[^\w -]", "", re.sub(r"`", "", title).lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    for link in LINK.findall(read(page)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", read(target), re.MULTILINE)
            there = {slug(title) for title in titles} | set(re.findall(r'<a id="([^"]+)">', read(target)))
            assert anchor in there, f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_files_that_pages_name_are_there(page):
    for name in re.findall(r"`((?:mot|configs|launch|scaling|tests|docs)/[\w/.]+\.(?:py|md|txt|json))`", read(page)):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_page_of_shapes_has_the_key_of_the_code():
    letters = re.compile(r"(?:^|  )([A-Z1])  (\S.*?)(?=  +[A-Z1]  |$)", re.MULTILINE)
    key = {letter: about.strip() for letter, about in letters.findall(model.__doc__)}
    rows = re.findall(r"^\| `([A-Z1])` \| (.*?) \|$", read(ROOT / "docs" / "concepts" / "shapes.md"), re.MULTILINE)
    assert dict(rows) == key


def test_the_glossary_is_in_order():
    words = re.findall(r"^\*\*(.+?)\*\*", read(ROOT / "docs" / "reference" / "glossary.md"), re.MULTILINE)
    assert len(words) > 60
    assert words == sorted(set(words), key=str.lower)


def test_the_worked_row_is_what_the_packer_makes():
    first = packing.document(
        0,
        11,
        [1, 40, 41, 3, 1030, 1024, 1040, 1027, 4, 2],
        [0, 0, 0, 0, 1, 1, 1, 1, 0, 0],
        weight=[1, 1, 1, 1, 1, 1, 1, 1, 0, 1],
        unit=[0, 0, 0, 0, 2, 2, 2, 2, 0, 0],
    )
    second = packing.document(1, 5, [1, 50, 2], [0, 0, 0])
    batch = packing.pack([[first, second]], ["text", "image"], [10, 6])
    batches.check(batch)
    page = read(ROOT / "docs" / "concepts" / "streams-and-units.md")
    for name, tokens in batch.items():
        table = page.partition(f"\n| {name} |")[2].partition("\n\n")[0]
        rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE)
        assert len(rows) == 9
        for field, values in rows:
            assert [float(x) for x in values.split(" | ")] == getattr(tokens, field)[0].ravel().tolist(), field


def test_the_batch_of_integers_is_listed_whole():
    table = read(ROOT / "docs" / "concepts" / "streams-and-units.md").partition("## The batch of integers")[2]
    fields = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert fields == [field.name for field in dataclasses.fields(batches.Tokens)]

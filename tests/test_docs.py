"""The pages of docs/: those that follow from the code are as the code makes them, and what pages name is there."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from configs import archs, base
from docs import generate
from launch import cli
from launch.flags import judged
from mot import batches, model
from mot.checkpoint import Position
from mot.config import load, schema
from mot.data import manifest, mixture, packing, roles
from mot.model import flops, params, router
from mot.objectives import contrastive
from mot.runs import log, peak
from mot.runs.goodput import Clock
from mot.train import evaluate

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
        if "://" in link or (link.startswith("../howto/") and not (ROOT / "docs" / "howto").exists()):
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


def documented(page, title):
    """Patterns of the keys in the first column of the tables below a heading of a page."""
    section = page.partition(f"{title}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
    keys = [key for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for key in re.findall(r"`([^`]+)`", row)]
    return {key: re.compile(re.sub(r"<\w+>", "[^/]+", key)) for key in keys}


class Kept:
    """In place of a writer: keeps what is written."""

    def __init__(self):
        self.rows = []
        self.evaluations = []

    def write(self, kind, step, values):
        self.rows.append(values)


def test_every_key_of_metrics_is_documented_and_no_other():
    page = read(ROOT / "docs" / "reference" / "run-directory.md")
    c = judged(load.read("configs/digits.py:arch=moe_ec4,size=smoke", {}))
    M, O, L, B, E = 2, 3, 2, 2, 4
    some = dict.fromkeys(router.Report._fields, np.ones((L, B)))
    some |= {"load_BME": np.ones((L, M, E)), "tokens_BM": np.ones((L, M)), "wanted_BM": np.ones((L, M))}
    sums = {"loss_sum": np.ones((M, O)), "weight": np.ones((M, O)), "routing": {"ffn/text": router.Report(**some)}}
    sums |= {"spread": {"image": {"std": 1.0, "rank": 2.0, "count": 1.0}}}
    told = dict.fromkeys(["loss", "accuracy/text/image", "temperature", "bias", "gap"], 1.0)
    sums |= {"contrastive": contrastive.OfPairs(2.0, 1.0, told)}
    measured = {"loss": 1.0, "lr": 1.0, "grad_norm": 1.0, "sums": sums, "ok": True}
    measured |= {"grad_norms": {"text": 1.0, "embed": 1.0}, "grad_norm_limit": 1.0}
    kept, machine = Kept(), peak.Peak(1.0, 512, 1.0, "")
    names = tuple(c.data.sources)
    logged = log.Log(c, names, Position(left_out={names[0]: 1}), kept, print, machine, Clock({}, 0.0))
    row = logged.advance({}, 0.0, 0.0)
    trained = logged.write(log.Dispatched(1, measured, np.array([9, 9, 99, 0]), row, {}), 1.0)
    sources = mixture.Sources(tuple(mixture.InMemory(name, 0, (), np.ones(2)) for name in names), np.ones(1), "")
    logged.write_evaluation(evaluate.report(c, sources, np.ones(O), lambda causal: sums))
    evaluated = kept.rows[-1]
    assert not c.causal
    routed = documented(page, "### Routers")
    for title, found in (("### Rows of kind `train`", trained), ("### Rows of kind `eval`", evaluated)):
        keys = documented(page, title)
        of_routers = [key.removeprefix("router/ffn/text/") for key in found if key.startswith("router/")]
        others = [key for key in found if not key.startswith("router/")]
        for known, seen in ((keys, others), (routed, of_routers)):
            assert not [key for key in seen if not any(p.fullmatch(key) for p in known.values())]
            assert not [name for name, p in known.items() if not any(map(p.fullmatch, seen)) and "router" not in name]
    logged.start({"data": "", "size": {}, "reachable_fill": {}})
    start = page.partition("A `start` event")[2].partition("\n## ")[0]
    listed = {key for row in re.findall(r"^\| (`.*?) \|", start, re.MULTILINE) for key in re.findall(r"`([^`]+)`", row)}
    assert kept.rows[-1].keys() - {"event", "time"} == listed


def test_every_key_of_a_dataset_is_documented(tmp_path):
    texts = [f'{{"text": "document {n} has some words"}}\n' for n in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(texts) + '{"text": 3}\n', encoding="utf-8")
    options = ["--text-ids", "300", "--workers", "1", "--held-out", "0.2", "--out", str(tmp_path / "made")]
    assert cli.main(["data", "prepare", str(tmp_path / "a.jsonl"), *options]) == 0
    about = manifest.read_json(tmp_path / "made")
    page = read(ROOT / "docs" / "reference" / "dataset-format.md").partition("## dataset.json")[2]
    whole, tokenizer, split = (
        re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)
        for part in re.split(r"A tokenizer's entry:|A split's entry:", page.partition("## The tokenizers' files")[0])
    )
    assert about["left_out"]
    assert set(whole) == about.keys()
    assert set(tokenizer) >= about["tokenizers"]["text"].keys()
    assert set(split) == about["splits"]["train"].keys()
    listed = {path.name for path in (tmp_path / "made").iterdir()} | {"preview.png"}
    named = re.findall(r"^  (\S+) ", read(ROOT / "docs" / "reference" / "dataset-format.md"), re.MULTILINE)
    assert {name.rstrip("/") for name in named} == listed


def test_the_parameter_table_and_the_counts_of_the_page_of_towers():
    page = read(ROOT / "docs" / "concepts" / "towers.md")
    dense, mot = (judged(load.read(f"configs/digits.py:arch={arch},size=smoke", {})) for arch in ("dense", "mot"))
    table = params.table(mot)
    rows = re.findall(r"^\| `([\w/]+/\w+)` \| ([\d, ]+) \| ([\w, ]+) \|$", page, re.MULTILINE)
    assert len(rows) == 8
    for path, shape, axes in rows:
        assert table[path].shape == tuple(map(int, shape.split(", "))), path
        assert table[path].axes == tuple(axes.split(", ")), path
    costs = [f"{flops.total_parameters(c):,}" for c in (dense, mot)]
    (weights,) = {w for c in (dense, mot) for w in flops.matmul_weights(c).values()}
    assert f"dense has {costs[0]} parameters and MoT {costs[1]}; in both" in page
    assert f"multiplied by {weights:,} weights" in page


def test_the_presets_of_the_page_of_towers_are_those_of_the_code():
    page = read(ROOT / "docs" / "concepts" / "towers.md")
    for arch in ("dense", "mot", "mot_ffn", "mot_attn_ffn"):
        maps = archs.towers(arch, ["text", "image"])
        row = " | ".join(f"{maps[component]['text']}, {maps[component]['image']}" for component in archs.COMPONENTS)
        assert f"| `{arch}` | {row} |" in page


def expanded(cell, n):
    """The n values of a cell: `4 to 7`, `1 1 1 0`, or one for all."""
    words = cell.replace("yes", "1").replace("no", "0").split()
    if "to" in words:
        return [float(x) for x in range(int(words[0]), int(words[2]) + 1)]
    return [float(x) for x in (words if len(words) == n else words * n)]


@pytest.mark.parametrize(("copies", "sizes"), [("noised", [4, 4, 3]), ("both", [4, 4, 4, 3])])
def test_the_rows_with_vectors_are_what_roles_and_the_packer_make(copies, sizes):
    how = {"copies": copies, "max_noise": 0.5}
    made = [base.stream("text", 8, 8, ids=1024), base.stream("image", 8, 8, how, latent=3, objective="flow")]
    streams = [schema.Stream(**one | {"diffusion": schema.Diffusion(**one["diffusion"])}) for one in made]
    stream = np.repeat([0, 1, 0], [4, 4, 3])
    unit = np.where(stream == 1, 2, 0)
    weight = np.where(np.arange(11) == 8, 0, 1)
    values = {1: np.zeros((4, 3))}
    given = packing.document(0, 11, np.where(stream == 1, 0, 5), stream, weight=weight, unit=unit, values=values)
    batch = packing.pack([[roles.assign(given, streams, "units", 0)]], ["text", "image"], [7, sum(sizes) - 7], [0, 3])
    position = np.concatenate([tokens.position[0] for tokens in batch.values()])
    page = read(ROOT / "docs" / "concepts" / "objectives-and-noise.md")
    table = page.partition(f'\n| `copies = "{copies}"` |')[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)`.*? \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) >= 4
    for field, cells in rows:
        wanted = [x for cell, n in zip(cells.split(" | "), sizes, strict=True) for x in expanded(cell, n)]
        found = np.concatenate([getattr(tokens, field)[0].ravel() for tokens in batch.values()])
        assert found[np.argsort(position)].tolist() == wanted, field

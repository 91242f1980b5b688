"""What each recipe shows at size=cpu: the commands of its docstring, as they stand there, and what came of them.

They take about an hour together. A recipe's own test has what needs no training.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.recipes import text_as_pixels as recipe
from tests.conftest import DATA, ROOT
from tests.support import commands, recipes
from tests.support.devices import devices
from tests.support.training import rows

WAYS = ("first/second", "second/first")


def last(name: str) -> dict:
    """The last held-out losses of a run."""
    return rows(Path("runs") / name, "eval")[-1]


def figures(name: str, kind: str) -> dict[str, dict]:
    """What `mot evaluate --what KIND` found of a run."""
    (file,) = (Path("runs") / name / "evaluations").glob(f"*/{kind}.json")
    return json.loads(file.read_text(encoding="utf-8"))["figures"]


def asynchronous():
    """What was there stays to the bit while the new stream learns; the base run's program rounds otherwise."""
    first, after = rows(Path("runs/asynchronous-added-cpu"), "eval")[0], last("asynchronous-added-cpu")
    assert after["loss/text/manual"] == first["loss/text/manual"]
    assert after["loss/text/manual"] == pytest.approx(last("asynchronous-base-cpu")["loss/text/manual"], rel=1e-6)
    assert after["loss/image"] < 0.5 * first["loss/image"]


def clip():
    """Of a hundred; the bar is 60 %."""
    for way in ("text/image", "image/text"):
        assert figures("clip-cpu", "retrieval")[f"{way}/numbers/recall_1"]["low"] > 0.6


def siglip():
    for way in ("text/image", "image/text"):
        assert figures("siglip-cpu", "retrieval")[f"{way}/numbers/recall_1"]["low"] > 0.6


def flamingo():
    """Of ten captions."""
    assert figures("flamingo-see-cpu", "retrieval")["image/text/read/recall_1"]["low"] > 0.3


def llava():
    assert figures("llava-all-cpu", "retrieval")["image/text/read/recall_1"]["low"] > 0.3


def lmfusion():
    """Frozen, the text's loss stays to the bit; the pictures' falls, and captions are best read where text learns."""
    text, frozen, slow = (last(f"lmfusion-{name}-cpu") for name in ("text", "fusion", "slow"))
    assert frozen["loss/text/manual"] == text["loss/text/manual"]
    assert frozen["loss/image"] < 0.5 * text["loss/image"]
    assert slow["loss/text/read"] < 0.5 * frozen["loss/text/read"]


def jepa():
    """A probe of predicted states tells the digits better than one of flow's, or of initial weights'."""
    ema, flow = (figures(f"jepa-{form}-cpu", "labels") for form in ("ema", "flow"))
    assert ema["image/read/trained"]["value"] > 0.85
    assert ema["image/read/trained"]["low"] > ema["image/read/untrained"]["value"]
    assert ema["image/read/trained"]["value"] > flow["image/read/trained"]["value"]


def llada():
    """An upper bound of the bits, but far from knowing nothing."""
    bound = figures("llada-cpu", "bits")["bits_per_byte/books"]["value"]
    assert last("llada-cpu-next")["bits_per_byte/books"] < bound < 4.0


def cosmos3():
    judged = figures("cosmos3-cpu", "judged")
    assert judged["image/drawn"]["low"] > 0.8
    assert judged["text/read"]["low"] > 0.4


def bagel():
    assert figures("bagel-mot_role-cpu", "judged")["image/drawn"]["low"] > 0.8


def llm2vec():
    """Of a hundred halves of passages, both ways."""
    before, after = (figures(f"llm2vec-cpu-{step}", "retrieval") for step in ("text", "simcse"))
    found = [[x[f"{way}/passages/recall_1"]["value"] for way in WAYS] for x in (before, after)]
    assert sum(found[1]) > 1.2 * sum(found[0])


def mio():
    """The bar: each paired direction beats its control on 100 held-out documents."""
    found = figures("mio-dense-cpu", "conditioning")
    signs = {name.removesuffix("/p"): figure["value"] for name, figure in found.items() if name.endswith("/p")}
    assert len(signs) == 11
    assert max(signs.values()) < 0.05, signs


def show_o():
    assert figures("show-o-cpu", "judged")["image/drawn"]["low"] > 0.8


def rae():
    """Drawn features lie nearer to held-out ones than those of drawn pixels do."""
    drawn = {name: figures(f"rae-{name}-digits-mot-cpu", "distances") for name in ("latents", "pixels")}
    assert drawn["latents"]["image/digits/frechet"]["value"] < drawn["pixels"]["image/digits/frechet"]["value"]


def text_as_pixels():
    """Both are judged in bits a byte, and text is ahead."""
    split = json.loads(Path("data/pixels/lines/dataset.json").read_text(encoding="utf-8"))["splits"]["held_out"]
    lines = recipe.bits_per_byte(last("pixels-lines-cpu"), split)
    assert last("pixels-text-cpu")["bits_per_byte/text"] < lines < 7.5


def video_order():
    """In nats a token; and the share of films whose order a probe tells."""
    loss = {order: last(f"order-{order}-cpu")["loss/video"] for order in ("ordered", "shuffled")}
    assert loss["ordered"] < loss["shuffled"] - 0.2
    probe = figures("order-mixed-cpu", "labels")
    assert probe["video/source/trained"]["low"] > probe["video/source/untrained"]["value"]


def whisper():
    assert figures("whisper-cpu", "retrieval")["latents/text/spoken/recall_1"]["low"] > 0.8


POINTS: dict[str, Callable[[], None]] = {
    point.__name__: point
    for point in (
        asynchronous,
        bagel,
        clip,
        cosmos3,
        flamingo,
        jepa,
        llada,
        llava,
        llm2vec,
        lmfusion,
        mio,
        rae,
        show_o,
        siglip,
        text_as_pixels,
        video_order,
        whisper,
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("name", POINTS)
def test_it_shows_its_point(name, tmp_path, monkeypatch, optimised):
    if not recipes.SHARED.is_dir() and any(
        "../shared/data" in word for line in recipes.of_docstring(name) for word in line
    ):
        pytest.skip(f"needs {DATA}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench").symlink_to(ROOT / "bench")  # as in the repository's root
    if name == "text_as_pixels":  # what its docstring takes by `head`
        Path("books.txt").write_bytes((recipes.SHARED / "books.train.txt").read_bytes()[:2_000_000])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for program, *words in recipes.of_docstring(name):
        if program == "mot":
            with devices(1):
                commands.succeeds(*words)
        else:
            subprocess.run([sys.executable, *words], check=True)
    POINTS[name]()

"""A linear probe of what units show: labels, states that depend on nothing beside a unit, and known answers."""

import jax
import numpy as np
import pytest

from configs import transfusion
from mot.config import resolve
from mot.data import embedded, layout
from mot.data.layout import Stretch
from mot.data.mixture import InMemory
from mot.data.packing import pack
from mot.errors import UserError
from mot.measures import labels
from mot.measures.labels import Labelled
from mot.model import params, transformer
from mot.objectives import losses
from tests.support import recipes


@pytest.fixture(scope="module")
def digits():
    """A configuration of pictures in patches, its format, and some of the documents that caption after the picture."""
    c = resolve(transfusion.get_config("arch=mot,size=smoke"), embedded.faults)
    training, _ = embedded.load(c)
    read = training.all[2]
    return c, layout.of(c), InMemory("read", 2, read.documents[:60], np.array([1, 16]))


def test_units_have_the_digit_that_their_text_names(digits):
    c, format, source = digits
    tokenizer = embedded.load_tokenizer()

    def label(words):
        digit = embedded.named(tokenizer.decode(words.data.tolist()))
        return "" if digit == 7 else str(digit)  # a seven has none

    found = labels.labelled(source, c, format, label)
    assert list(found) == ["image"]
    units, said = found["image"]
    sevens = sum(embedded._digits()[1][d.doc_id] == 7 for d in source.documents)
    assert len(units) == len(said) == 60 - sevens
    assert set(said) <= set("012345689")


@pytest.mark.parametrize(
    ("recipe", "stage", "has"), [("flamingo", "see", False), ("llava", "align", True), ("bagel", "", True)]
)
def test_what_is_seen_by_cross_attention_alone_has_no_states(tmp_path, recipe, stage, has):
    c = recipes.config(recipe, tmp_path, *[f"stage={stage}"] * bool(stage))
    vectors = next(name for name, s in c.streams.items() if s.latent)
    assert c.has_states(vectors) == has
    assert not c.has_states("text")


def test_units_alone_have_the_name_of_their_source(digits):
    c, format, source = digits
    units = [Stretch("image", d.values[1]) for d in source.documents[:3]]
    words = layout.document([Stretch("text", np.arange(3))], c, format)
    alone = [*(layout.document([unit], c, format) for unit in units), words]
    sources = [InMemory(name, i, alone[i : i + 3], np.array([1, 16])) for i, name in enumerate("ab")]
    units, said = labels.by_source([*sources, source], c, format)["image"]
    assert said.tolist() == ["a"] * 3 + ["b"] * 2, "what has words is not alone, and words are no unit"
    assert len(units) == 5
    assert not labels.by_source(sources[:1], c, format), "one source alone tells nothing"


def test_states_are_the_means_of_a_unit_that_stands_alone(digits):
    c, format, source = digits
    weights = jax.jit(lambda: params.init(params.table(c), 1))()
    units = [Stretch("image", d.values[1]) for d in source.documents[:7]]
    found = labels.make_states(weights, c, format)(units, "image")
    assert found.shape == (7, c.streams["image"].width)
    alone = labels.make_states(weights, c, format)(units[3:4], "image")
    np.testing.assert_allclose(found[3], alone[0], atol=1e-5)
    # The velocity that the model tells of a clean picture is its head on those states, before any mean.
    d = layout.document([units[3]], c, format)
    batch = pack([[d]], list(c.streams), [8, 16], [0, 4])
    told = transformer.forward(weights, losses.noised(batch, c, 0).batch, c).latents["image"][0, :16]
    np.testing.assert_allclose(found[3] @ weights["latent"]["image"]["out"], told.mean(0), atol=1e-4)


def test_a_probe_finds_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    of = rng.integers(0, 3, 300)
    x = rng.standard_normal((300, 5))
    x[:, 2] += 5.0 * of
    y = of.astype(str)
    right = labels._right(x[:200], x[200:], y[:200], y[200:])
    assert right.value > 0.9 > 0.6 > right.chance
    assert right.n == 100
    blind = labels._right(x[:200, 3:], x[200:, 3:], y[:200], y[200:])
    assert blind.value < 0.6
    with pytest.raises(UserError, match="one label"):
        labels._right(x[:200], x[200:], np.full(200, "a"), y[200:])


def test_probed_compares_with_an_untrained_model_and_the_vectors(digits):
    c, format, source = digits
    weights = jax.jit(lambda: params.init(params.table(c), c.model.seed))()
    said = np.array([str(i % 2) for i in range(60)])
    units = [Stretch("image", d.values[1] + i % 2) for i, d in enumerate(source.documents)]
    sides = Labelled(units[:40], said[:40]), Labelled(units[40:], said[40:])
    found = labels.probed(weights, c, format, "image", *sides)
    assert found["trained"] == found["untrained"]
    assert found["input"].value > 0.8

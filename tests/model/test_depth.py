"""Towers by depth: maps that differ by range of layers, against a reference that asks each layer for its own."""

import jax
import numpy as np
import pytest

from configs import archs
from mot import optim, sharding
from mot.config import COMPONENTS, resolve
from mot.data.packing import pack
from mot.model import caches, flops, params, transformer
from mot.objectives import losses
from mot.train import state, upcycle
from tests.oracles import reference
from tests.support import examples, vectors
from tests.support.arrays import in_document_order, loss_of
from tests.support.devices import devices

MIXED = {
    "attn": "0:1 image, 1:3 text, 3:4 image",
    "ffn": "0:2 text, 2:4 image",
    "norm": "image",
}


def tree(written, arch="mot", **model):
    """Of two streams; the image's towers as they are written, in all components or in each."""
    c = examples.tree(arch, **{"layers": 4} | model)
    for component in COMPONENTS:
        c.towers[component].image = written if isinstance(written, str) else written[component]
    return c


def make(written, **choices):
    return resolve(tree(written, **choices))


def by_layer(c):
    """What the reference needs: the maps of each layer, each layer's stack and its number in it."""
    maps = [{x: c.component(x).at(layer) for x in COMPONENTS} for layer in range(c.model.layers)]
    return maps, [(stack, c.stacks[:layer].count(stack)) for layer, stack in enumerate(c.stacks)]


def oracle(c, flat, batch):
    tokens = jax.tree.map(lambda *x: np.concatenate(x, 1), *batch.values())
    stream = np.repeat(np.arange(len(batch)), [t.token.shape[1] for t in batch.values()])
    m = c.model
    maps, places = by_layer(c)
    o = dict(layers=m.layers, eps=m.norm_eps, theta=m.rope_theta, norm=m.norm, qk_norm=m.qk_norm, places=places)
    fields = ("token", "position", "segment", "span", "private")
    for b in range(tokens.token.shape[0]):
        row = {f: np.asarray(getattr(tokens, f)[b]) for f in fields}
        row |= {"stream": stream, "rope_position": tokens.rope_position[b, :, 0]}
        yield reference.hidden(flat, row, maps, list(c.streams), o)[np.argsort(tokens.position[b])]


@pytest.mark.parametrize(
    ("written", "choices"),
    [
        ("0:1 image, 1:3 text, 3:4 image", {"scan": True}),
        (MIXED, {"norm": "post", "qk_norm": "layer"}),
        pytest.param(MIXED, {"scan": True, "remat": "block"}, marks=pytest.mark.slow),
    ],
)
def test_each_layer_has_the_towers_that_are_written_for_it(written, choices):
    c = make(written, **choices)
    batch, weights = examples.batch(rows=2), examples.weights(c)
    flat = params.paths(weights)
    real = np.sort(np.concatenate([t.segment for t in batch.values()], 1) == 0, axis=1)  # padding comes last
    g = np.where(real[..., None], 0, np.random.default_rng(0).standard_normal((*real.shape, 16))).astype("f")

    def ours(w):
        return (in_document_order(transformer.forward(w, batch, c).hidden) * g).sum()

    def theirs(flat):
        return sum((states * g[b]).sum() for b, states in enumerate(oracle(c, flat, batch)))

    got, got_grads = jax.jit(jax.value_and_grad(ours))(weights)
    want, want_grads = jax.jit(jax.value_and_grad(theirs))(flat)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-4)
    assert examples.leaf_error(params.paths(got_grads), want_grads) < 3e-5


def test_a_stack_is_the_layers_whose_maps_are_alike():
    assert make("0:1 image, 1:3 text, 3:4 image").stacks == ("main", "main_1", "main_1", "main")
    assert make(MIXED).stacks == ("main", "main_1", "main_2", "main_3")
    assert make("0:2 image, 2:4 image").stacks == ("main",) * 4
    table = params.table(make("0:1 image, 1:3 text, 3:4 image"))
    assert table["blocks/main/ffn/image/w1"].shape == table["blocks/main_1/ffn/text/w1"].shape == (2, 16, 24)
    assert not [path for path in table if path.startswith("blocks/main_1/") and "/image/" in path]
    assert {path for path in table if path.startswith("final_norm/")} == {
        "final_norm/text/scale",
        "final_norm/image/scale",
    }


def test_ranges_of_one_tower_are_that_tower_bit_for_bit():
    batch = examples.batch()
    plain, ranged = make("image"), make("0:1 image, 1:3 image, 3:4 image")
    assert params.table(plain) == params.table(ranged)
    weights = examples.weights(plain)
    (a, da), (b, db) = (jax.jit(jax.value_and_grad(loss_of(c, batch)))(weights) for c in (plain, ranged))
    np.testing.assert_array_equal(a, b)
    jax.tree.map(np.testing.assert_array_equal, da, db)


def copied(weights, c):
    """A dense model's weights for the layers and towers of another."""
    source = params.paths(weights)

    def value(path):
        parsed = params.parse(path)
        if not parsed.stack:
            return source[path.replace("/image/", "/text/")]
        layers = np.array([i for i, stack in enumerate(c.stacks) if stack == parsed.stack])
        return source[f"blocks/main/{parsed.component}/text/{parsed.weight}"][layers]

    return params.nest({path: value(path) for path in params.table(c)})


def test_tied_towers_equal_dense():
    dense, ends, batch = examples.make("dense", layers=4), make(MIXED), examples.batch(3, 4)
    weights = examples.weights(dense)
    found = [
        jax.jit(lambda w, c=c: in_document_order(transformer.forward(w, batch, c).hidden))(w)
        for c, w in ((dense, weights), (ends, copied(weights, ends)))
    ]
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "choices"),
    [
        ("mot", {}),
        ("mot_moe", dict(layers=6, dense_layers=2, sparse_every=2)),
        pytest.param("mot_moe_both", dict(layers=5, sparse_every=1, remat="block"), marks=pytest.mark.slow),
    ],
)
def test_scan_equals_unrolled(arch, choices):
    """Of mot_moe the border lies within a period of dense and sparse layers."""
    batch = examples.batch()
    layers = choices.get("layers", 4)
    both = [make(f"0:3 image, 3:{layers} text", arch=arch, scan=scan, **choices) for scan in (True, False)]
    weights = examples.weights(both[0])
    (a, da), (b, db) = (jax.jit(jax.value_and_grad(loss_of(c, batch)))(weights) for c in both)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    assert examples.leaf_error(da, db) < 1e-5
    reports = [jax.jit(lambda w, c=c: transformer.forward(w, batch, c).routing)(weights) for c in both]
    assert reports[0].keys() == reports[1].keys()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), *reports)


def test_a_router_is_reported_by_the_layers_in_which_it_serves_the_same_streams():
    """A tower with experts serves text alone, then both: each has its own tokens, over which its losses are a mean."""
    c = make("0:2 image, 2:4 text", arch="mot_moe")
    batch = examples.batch()
    reports = jax.jit(lambda w: transformer.forward(w, batch, c).routing)(examples.weights(c))
    tokens = losses.routed_tokens(batch, c)
    real = {s: int((t.segment != 0).sum()) for s, t in batch.items()}
    assert {name: int(n) for name, n in tokens.items()} == {
        "ffn/text": real["text"],
        "ffn/text@2": real["text"] + real["image"],
    }
    for name, report in reports.items():
        np.testing.assert_array_equal(report.tokens_BM.sum((1, 2)), [tokens[name]] * 2)
    assert params.of_report("ffn/text@2") == ("ffn/text", "sparse_2")


def lowered(written, layers):
    c = make(written, scan=True, layers=layers)
    shapes = jax.eval_shape(lambda: params.init(params.table(c), 0))
    return len(jax.jit(jax.grad(loss_of(c, examples.batch(rows=1)))).lower(shapes).as_text().splitlines())


def test_a_deeper_model_is_the_same_program():
    """So the time to compile it is flat in depth."""
    assert lowered("0:1 image, 1:4 text", 4) == lowered("0:4 image, 4:12 text", 12)


def test_walls_stand_in_every_layer():
    """The loss of images trains no keys and values of text, in whichever range its tower lies."""
    c = vectors.tree("mot", walls=[("image", "text")], layers=2)
    c.towers.norm.image = c.towers.ffn.image = "0:1 image, 1:2 text"
    c = resolve(c)
    batch, weights = vectors.batch(c, 1), vectors.weights(c)

    def of_images(w):
        predicted = transformer.forward(w, losses.noised(batch, c, 0).batch, c).latents["image"]
        return (predicted**2).sum()

    grads = params.paths(jax.jit(jax.grad(of_images))(weights))
    of_text = {path: g for path, g in grads.items() if "/attn/text/w" in path and path[-1] in "kv"}
    assert len(of_text) == 4
    assert not any(np.any(g) for g in of_text.values())


def test_two_devices_give_the_gradients_of_one():
    batch, c = examples.batch(), make(MIXED, scan=True)
    weights = examples.weights(c)
    alone = jax.jit(jax.grad(loss_of(c, batch)))(weights)
    split = tree(MIXED, scan=True)
    split.mesh.update(data=1, fsdp=2)
    split = resolve(split)
    with devices(2):
        mesh = sharding.make_mesh(split)
    with jax.set_mesh(mesh):
        placed = jax.device_put(weights, state.state_shardings(split, mesh).params)
        on_two = jax.jit(lambda w, rows: jax.grad(loss_of(split, rows))(w))
        grads = on_two(placed, sharding.to_global(batch, split, mesh))
    assert examples.leaf_error(jax.device_get(grads), alone) < 1e-5


def test_a_token_is_multiplied_as_often_wherever_towers_are_apart():
    dense, mot, ends = (examples.make(arch, layers=4) for arch in ("dense", "mot", "mot_ends"))
    assert flops.matmul_weights(dense) == flops.matmul_weights(ends) == flops.matmul_weights(mot)
    counts = [params.count(params.table(c)) for c in (dense, ends, mot)]
    assert counts[0] < counts[1] < counts[2]
    assert flops.active_parameters(ends) == flops.active_parameters(dense)


def test_streams_that_are_inputs_only_go_with_text():
    c = vectors.tree("mot")
    c.streams.sound.objective = "none"
    archs.choose(c, "mot_role")
    assert c.towers.attn.to_dict() == {"text": "text", "image": "image", "sound": "text"}
    assert sorted(c.ffn) == ["image", "text"]
    with pytest.raises(ValueError, match=r"arch=mot_role: none of text, image, sound is an input only, so it would be"):
        vectors.tree("mot_role")


# --- what follows from the table -----------------------------------------------------------------------------------


def test_a_model_grows_into_ranges_and_back_and_what_was_not_given_is_told():
    """Of each layer the tower that serves the stream there: dense into ranges computes the same, and so does its way
    back; of mot the image's towers in the layers that are shared are left."""
    dense, ends, mot = (examples.make(arch, layers=4) for arch in ("dense", "mot_ends", "mot"))
    batch = examples.batch(budgets=(8, 8))
    weights = examples.weights(dense)
    grown = upcycle.weights(dense, weights, ends)
    back = upcycle.weights(ends, grown, dense)
    jax.tree.map(np.testing.assert_array_equal, back, weights)
    wider = upcycle.weights(ends, grown, mot)
    found = [loss_of(c, batch)(w) for c, w in ((dense, weights), (ends, grown), (mot, wider))]
    np.testing.assert_allclose(found, found[0], rtol=1e-6)
    assert upcycle.told(dense, ends) == upcycle.told(ends, mot) == []
    shared = "attn/image in layers 1:3, ffn/image in layers 1:3, norm/image in layers 1:3"
    assert upcycle.told(mot, ends) == [f"not taken from init.run: {shared}"]
    assert upcycle.told(ends, dense)[0].startswith("not taken from init.run: attn/image in layers 0:1 3:4, ffn/image")


def test_what_a_frozen_stream_uses_is_frozen_in_every_layer():
    """In shared layers text's FFN is the image's too: it stays, and so the text's loss can."""
    c = tree("0:1 image, 1:3 text, 3:4 image")
    c.optim.freeze = "text.ffn"
    is_trained = optim.trainable(resolve(c))
    ffns = {path: is_trained(path) for path in params.table(resolve(c)) if "/ffn/" in path and path.endswith("w1")}
    assert ffns == {
        "blocks/main/ffn/text/w1": False,
        "blocks/main/ffn/image/w1": True,
        "blocks/main_1/ffn/text/w1": False,
    }


def test_a_cached_prompt_is_what_the_whole_row_says():
    c = make(MIXED)
    (d,) = [examples.random_document(np.random.default_rng(0), 14, 0, spans=False)]
    batch, weights = pack([[d]], examples.STREAMS, (24, 24)), examples.weights(c)
    whole = in_document_order(transformer.forward(weights, batch, c).hidden)
    cache = caches.empty(c, 1, 48)
    cached = in_document_order(transformer.forward(weights, batch, c, cache=cache).hidden)
    np.testing.assert_allclose(cached[:, :14], whole[:, :14], atol=1e-5)

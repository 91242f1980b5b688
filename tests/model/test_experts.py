"""Experts inside the whole model: stacks, causality, balance, meshes, upcycling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import archs
from configs.base import moe
from mot import checkpoint, optim, sharding
from mot.config import Experts, resolve
from mot.data.packing import pack
from mot.errors import UserError
from mot.model import flops, kernels, params, router, transformer
from mot.objectives import losses
from mot.runs import metrics, rundir
from mot.train import loop, state, upcycle
from mot.train.state import init_state
from mot.train.step import make_step
from tests.support import examples
from tests.support.arrays import copies, in_document_order, loss_of
from tests.support.devices import devices
from tests.support.training import one_step, restored, smoke
from tests.support.training import rows as rows_of
from tests.support.unwritten import leaves_nan

ROUTED = ("moe_ec4", "moe_tc4", "mot_moe", "mot_moe_both", "learned_mot")


def fine(**options):
    """A small fine-grained model: 8 experts of a quarter, 4 active, one that is always on."""
    tree = examples.tree("dense", **options)
    tree.ffn.text = moe(8, width=6, active=4, shared=6, normalise=True, balance="bias", balance_rate=0.01)
    return resolve(tree)


@pytest.mark.parametrize(
    "arch",
    [
        "mot_moe",
        pytest.param("moe_ec4", marks=pytest.mark.slow),
        pytest.param("moe_tc4", marks=pytest.mark.slow),
        pytest.param("mot_moe_both", marks=pytest.mark.slow),
        pytest.param("learned_mot", marks=pytest.mark.slow),
        pytest.param("moe_fine", marks=pytest.mark.slow),
    ],
)
def test_every_routed_preset_trains_two_steps(tmp_path, arch, one_device):
    c = smoke(tmp_path, arch)
    path = loop.run(c, devices=one_device)
    rows = rundir.read_metrics(path)
    done, evals = ([row for row in rows if row["kind"] == kind] for kind in ("train", "eval"))
    assert done[1]["loss"] < done[0]["loss"]
    tower = next(name for name, s in c.ffn.items() if s.experts)
    assert 0 < done[1][f"router/ffn/{tower}/load_min"] <= 1 <= done[1][f"router/ffn/{tower}/load_max"]
    loads = evals[-1]["experts"][f"ffn/{tower}"]
    assert {np.array(x).shape for x in loads.values()} == {(2, c.ffn[tower].experts)}
    assert c.causal != any("causal_loss/image" in row for row in evals)


def test_a_number_of_experts_is_all_that_a_hybrid_needs():
    tree = examples.tree("mot")
    tree.ffn.text.experts, tree.ffn.image.experts = 4, 0
    shapes = {path: spec.shape for path, spec in params.table(resolve(tree)).items()}
    assert shapes["blocks/sparse/ffn/text/w1"] == (2, 4, 16, 24)
    assert shapes["blocks/sparse/ffn/image/w1"] == (2, 16, 24)


@pytest.mark.parametrize("arch", ["moe_ec4", "moe_tc4", "moe_fine", "mot_moe", "mot_moe_both", "learned_mot"])
def test_total_variants_have_as_many_parameters_as_mot(arch):
    def build(name):
        tree = examples.tree("mot")
        for stream in ("text", "image"):
            tree.streams[stream].update(width=512, ffn=1408)
        tree.model.update(heads=8, kv_heads=8, head_size=64, layers=8)
        archs.choose(tree, name)
        return resolve(tree)

    mot, dense = build("mot"), build("dense")
    name = arch if arch == "learned_mot" else f"{arch}_total"
    assert abs(flops.total_parameters(build(name)) / flops.total_parameters(mot) - 1) < 0.01
    if not arch.startswith("mot_moe"):  # they match what is active as well
        active = flops.active_parameters(build(name))["text"] / flops.active_parameters(dense)["text"]
        assert abs(active - 1) < 0.01
    plain = flops.active_parameters(build(arch))["text"] / flops.active_parameters(dense)["text"]
    assert abs(plain - 1) < 0.02


@pytest.mark.parametrize("arch", ["moe_tc4", pytest.param("learned_mot", marks=pytest.mark.slow)])
def test_dropless_results_do_not_depend_on_packing(arch):
    c = examples.make(arch)
    weights, rng = examples.weights(c), np.random.default_rng(0)
    mine, other = (examples.random_document(rng, 14, i, spans=False) for i in range(2))
    run = jax.jit(lambda w, batch: transformer.forward(w, batch, c).hidden[0])
    states = []
    for row in ([mine], [other, mine]):
        (h_RD, tokens) = run(weights, pack([row], ["text", "image"], (24, 24)))
        states.append(np.asarray(h_RD)[np.asarray(tokens.segment[0]) == len(row)])
    np.testing.assert_allclose(*states, atol=1e-5)


@pytest.mark.slow
def test_some_layers_are_dense_and_scan_equals_unrolled():
    batch = examples.batch()
    layers = dict(layers=6, dense_layers=2, sparse_every=2)
    both = [examples.make("moe_tc4", scan=scan, **layers) for scan in (True, False)]
    assert both[0].stacks == ("main", "main", "main", "sparse", "main", "sparse")
    weights = examples.weights(both[0])
    assert params.paths(weights)["blocks/sparse/ffn/text/w1"].shape == (2, 4, 16, 24)
    assert params.paths(weights)["blocks/main/ffn/text/w1"].shape == (4, 16, 24)
    (a, da), (b, db) = (jax.jit(jax.value_and_grad(loss_of(c, batch)))(weights) for c in both)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    assert examples.leaf_error(da, db) < 1e-5
    reports = [transformer.forward(weights, batch, c).routing["ffn/text"] for c in both]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), *reports)


@pytest.mark.slow
def test_rematerialisation_changes_nothing_with_experts():
    batch, weights = examples.batch(), examples.weights(examples.make("moe_tc4"))

    def run(**m):
        return jax.jit(jax.grad(loss_of(examples.make("moe_tc4", **m), batch)))(weights)

    assert examples.leaf_error(run(remat="block", scan=True), run()) < 1e-5


@pytest.mark.parametrize("choices", [{}, {"activation": "geglu", "qkv_bias": True}])
def test_equal_experts_with_weights_of_one_equal_dense(choices):
    """Copies of one FFN, or of QKV and O, whose weights add up to 1, are that one, whatever the router says."""
    dense = examples.make("dense", **choices)
    weights, batch = examples.weights(dense), examples.batch()
    tree = examples.tree("dense", **choices)
    tree.ffn.text = moe(4, width=24, active=2, normalise=True)
    if choices:
        tree.attn.text = moe(2, active=2, normalise=True)
    routed = resolve(tree)
    grown = upcycle.weights(dense, weights, routed)

    def run(c, w):
        return in_document_order(jax.jit(lambda w: transformer.forward(w, batch, c).hidden)(w))

    np.testing.assert_allclose(run(routed, grown), run(dense, weights), atol=1e-5)


def test_weights_of_a_block_that_computes_otherwise_are_refused():
    source = examples.make("dense")
    target = examples.make("mot", norm_offset=True, activation="geglu")
    with pytest.raises(UserError, match=r"activation: 'geglu', there it is 'swiglu'; model\.norm_offset: True"):
        upcycle.weights(source, examples.weights(source), target)


def test_a_single_set_of_qkv_and_o_for_each_modality_is_mot_where_the_router_tells_modalities_apart():
    """learned_mot with a router that reads the modality off the input and is sure of it, against mot."""
    tree = examples.tree("dense", qk_norm="none")
    tree.attn.text = moe(2)
    learned, mot = resolve(tree), examples.make("mot", qk_norm="none")
    batch, weights = examples.batch(spans=False), examples.weights(mot)
    flat, table = params.paths(weights), params.table(learned)
    flat = {p: flat[p.replace("/image/", "/text/")] if "/attn/" not in p else x for p, x in flat.items()}
    tokens = flat["embed/tokens"].at[:, 0].set(jnp.where(jnp.arange(24) < examples.IDS, 40.0, -40.0))
    flat = {p: x.at[..., 0].set(1.0) if "/norm/" in p else x for p, x in flat.items()} | {"embed/tokens": tokens}
    target = {}
    for path, spec in table.items():
        stacked = path.replace("/sparse/", "/main/")
        if path.endswith("router"):
            target[path] = jnp.zeros(spec.shape).at[:, 0].set(jnp.array([[30.0, -30.0]] * 2))
        elif "/attn/" in path:
            target[path] = jnp.stack([flat[stacked], flat[stacked.replace("/text/", "/image/")]], axis=1)
        else:
            target[path] = flat[stacked]

    def run(c, w):
        return in_document_order(jax.jit(lambda w: transformer.forward(w, batch, c).hidden)(params.nest(w)))

    np.testing.assert_allclose(run(learned, target), run(mot, flat), atol=1e-4)


@pytest.mark.slow
def test_biases_move_towards_even_loads_and_survive_a_resume(tmp_path, one_device):
    def run(root, steps):
        tree = smoke(root, "dense", run__steps=steps, run__save_every=2, run__keep=5)
        routed = moe(4, width=64, active=2, score="sigmoid", balance="bias", balance_rate=0.05)
        tree = dataclasses.replace(tree, ffn={"text": Experts(**routed)})
        return loop.run(tree, until=None, devices=one_device), tree

    whole, c = run(tmp_path / "whole", 6)
    part = dataclasses.replace(c, run=dataclasses.replace(c.run, root=str(tmp_path / "parts")))
    loop.run(part, until=2, devices=one_device)
    resumed = loop.run(part, devices=one_device)
    jax.tree.map(np.testing.assert_array_equal, restored(whole, 6), restored(resumed, 6))
    bias = restored(whole, 6)["params"]["blocks"]["sparse"]["ffn"]["text"]["router_bias"]
    assert set(np.abs(np.round(bias / 0.05, 4)).ravel()) <= {0, 1, 2, 3, 4, 5, 6}
    assert bias.any()
    assert not optim.trainable(c)("blocks/sparse/ffn/text/router_bias")


def test_the_bias_rises_where_an_expert_has_less_than_the_mean(one_device):
    after, measured = one_step(fine(), examples.batch(), one_device)
    load_LE = np.asarray(measured["sums"]["routing"]["ffn/text"].load_BME).sum(1)
    assert len(set(load_LE[0])) > 2
    bias_LE = params.paths(after.params)["blocks/sparse/ffn/text/router_bias"]
    np.testing.assert_allclose(bias_LE, 0.01 * np.sign(load_LE.mean(-1, keepdims=True) - load_LE), rtol=1e-6)


@pytest.mark.slow
def test_the_imitators_leave_the_model_as_it_would_be():
    """Trained with and without causal routers' gradients, everything else is equal but for rounding."""
    c, batch = examples.make("moe_ec4"), examples.batch()
    frozen = examples.tree("moe_ec4")
    frozen.optim.rules = (dict(match="/causal_", lr=0.0, decay=0.0), *frozen.optim.rules)
    ends = []
    for each in (c, resolve(frozen)):
        state, step = jax.jit(lambda each=each: init_state(each))(), jax.jit(make_step(each, 2))
        for _ in range(3):
            state, _ = step(state, batch)
        ends.append(params.paths(state.params))
    for path in ends[0]:
        is_equal = np.allclose(ends[0][path], ends[1][path], rtol=0, atol=1e-7)  # steps are of 1e-5
        assert is_equal == (not params.is_causal(path)), path


def test_jitter_changes_training_by_step_and_not_evaluation():
    tree = examples.tree("moe_tc4")
    tree.ffn.text.jitter = 0.3
    c, batch = resolve(tree), examples.batch()
    weights = examples.weights(c)
    run = jax.jit(lambda key: transformer.forward(weights, batch, c, key).routing["ffn/text"].z_B)
    calm = jax.jit(lambda: transformer.forward(weights, batch, c).routing["ffn/text"].z_B)()
    a, b = run(jax.random.key(0)), run(jax.random.key(1))
    assert not np.allclose(a, b)
    assert not np.allclose(a, calm)
    np.testing.assert_array_equal(a, run(jax.random.key(0)))


def test_statistics_from_loads():
    def report(load):
        return {
            "ffn/text": router.Report(
                load_BME=np.array(load, float)[None],
                tokens_BM=np.array([[4.0, 4.0]]),
                wanted_BM=np.array([[4.0, 8.0]]),
                entropy_B=np.array([8.0]),
                imitation_B=np.zeros(1),
                balance_B=np.array([8.0]),
                z_B=np.array([16.0]),
                lost_B=np.zeros(1),
            )
        }

    row = metrics.routing(report([[4, 0], [0, 4]]), ("text", "image"))

    def key(name):
        return row[f"router/ffn/text/{name}"]

    assert (key("specialisation"), key("load_max"), key("entropy")) == (1, 1, 1)
    np.testing.assert_allclose(key("mutual_information"), np.log(2))
    assert (key("dropped/text"), key("dropped/image")) == (0, 0.5)
    assert (key("experts_per_token/text"), key("balance"), key("z")) == (1, 1, 2)
    row = metrics.routing(report([[2, 2], [2, 2]]), ("text", "image"))
    assert (key("specialisation"), key("mutual_information")) == (0, 0)


# --- upcycling -----------------------------------------------------------------------------------------------------


def test_mot_grown_from_dense_computes_the_same():
    dense, mot = examples.make("dense"), examples.make("mot")
    weights = examples.weights(dense)
    grown = upcycle.weights(dense, weights, mot)
    jax.tree.map(np.testing.assert_array_equal, grown, copies(weights, params.table(mot)))


def test_mot_moe_grown_from_mot_copies_each_towers_ffn_and_noise_parts_the_copies():
    mot, tree = examples.make("mot"), examples.tree("mot_moe")
    source = params.paths(examples.weights(mot))
    grown = params.paths(upcycle.weights(mot, params.nest(source), resolve(tree)))
    text = grown["blocks/sparse/ffn/text/w1"]
    np.testing.assert_array_equal(text, np.repeat(source["blocks/main/ffn/text/w1"][:, None], 4, axis=1))
    np.testing.assert_array_equal(grown["blocks/sparse/ffn/image/w1"], source["blocks/main/ffn/image/w1"])
    tree.init.update(run="x", noise=0.1)
    noisy = params.paths(upcycle.weights(mot, params.nest(source), resolve(tree)))["blocks/sparse/ffn/text/w1"]
    np.testing.assert_array_equal(noisy[:, 0], text[:, 0])
    np.testing.assert_allclose((noisy - text)[:, 1:].std() / text.std(), 0.1, rtol=0.1)
    tree.ffn.text.width = 12  # each half once as it is, and once more with noise
    noisy = params.paths(upcycle.weights(mot, params.nest(source), resolve(tree)))["blocks/sparse/ffn/text/w1"]
    halves = np.stack(np.split(source["blocks/main/ffn/text/w1"], 2, axis=-1), axis=1)
    np.testing.assert_array_equal(noisy[:, :2], halves)
    assert (noisy[:, 2:] != halves).mean() > 0.9


def test_narrow_experts_are_slices_and_what_does_not_fit_is_refused():
    dense, tree = examples.make("dense"), examples.tree("dense")
    weights = examples.weights(dense)
    tree.ffn.text = moe(4, width=12, active=2)
    grown = params.paths(upcycle.weights(dense, weights, resolve(tree)))["blocks/sparse/ffn/text/w1"]
    w1 = params.paths(weights)["blocks/main/ffn/text/w1"]
    np.testing.assert_array_equal(grown[:, 1], w1[..., 12:])
    np.testing.assert_array_equal(grown[:, 2], w1[..., :12])
    tree.ffn.text = moe(4, width=10, active=2)
    with pytest.raises(ValueError, match=r"w1: \(4, 16, 10\), which blocks/main/ffn/text/w1, \(16, 24\)"):
        upcycle.weights(dense, weights, resolve(tree))


@pytest.mark.parametrize("bases", [dict(base_width=8, base_layers=1), dict(base_width=16, base_head_size=2)])
def test_weights_of_another_transfer_are_refused_where_they_would_mean_something_else(bases):
    source, tree = examples.make("dense"), examples.tree("dense")
    tree.optim.update(transfer="mup", base_width=8)  # of an untied model without other bases: no multipliers
    upcycle.weights(source, examples.weights(source), resolve(tree))
    tree.optim.update(bases)
    with pytest.raises(
        ValueError, match=r"trained with transfer='', .* with transfer='mup', .*; give this run the same"
    ):
        upcycle.weights(source, examples.weights(source), resolve(tree))


def test_parts_come_from_another_run_by_their_paths_and_the_rest_is_new():
    dense, tree = examples.make("dense"), examples.tree("mot")
    weights = examples.weights(dense)
    tree.init.update(run="runs/dense", match="/text/|^embed")
    grown = params.paths(upcycle.weights(dense, weights, resolve(tree)))
    whole = params.paths(upcycle.weights(dense, weights, examples.make("mot")))
    new = params.paths(jax.jit(lambda: params.init(params.table(resolve(tree)), tree.model.seed))())
    taken = [path for path in grown if "/text/" in path or path.startswith("embed")]
    assert 10 < len(taken) < len(grown) - 10
    for path, value in grown.items():
        np.testing.assert_array_equal(value, whole[path] if path in taken else new[path])
    tree.model.layers = 3  # what does not match need not fit, and what does must
    tree.init.match = "^embed"
    np.testing.assert_array_equal(upcycle.weights(dense, weights, resolve(tree))["embed"]["tokens"], grown[taken[0]])
    tree.init.match = "/text/"
    with pytest.raises(UserError, match=r"does not fit this one; name a run .*\n  model.layers: 3, the source has 2"):
        upcycle.weights(dense, weights, resolve(tree))


def test_a_match_of_nothing_is_refused_with_near_paths():
    dense, tree = examples.make("dense"), examples.tree("moe_ec4")
    weights = examples.weights(dense)
    tree.init.update(run="runs/dense", match="final_norm/txt/scale")
    with pytest.raises(UserError, match=r"init.match: 'final_norm/txt/scale' matches no .* are final_norm/text/scale"):
        upcycle.weights(dense, weights, resolve(tree))
    tree.init.match = "router"
    with pytest.raises(UserError, match=r"matches blocks/.*router.*, and runs/dense has no such parameter"):
        upcycle.weights(dense, weights, resolve(tree))
    tree.init.match = "(/text/"
    with pytest.raises(UserError, match=r"init.match: '\(/text/' is no regular expression"):
        resolve(tree)
    tree.init.update(run="", match="/text/")
    with pytest.raises(UserError, match=r"init.match: '/text/', but init.run is ''"):
        resolve(tree)


def test_a_run_begins_from_another_runs_weights(tmp_path, one_device, capsys):
    path = loop.run(smoke(tmp_path, "dense"), devices=one_device)
    source = rows_of(path, "eval")[-1]
    grown = smoke(tmp_path, "mot", init__run=str(path), run__name="grown")
    rows = rundir.read_metrics(loop.run(grown, devices=one_device))
    assert f"begins with the weights of {path}, step 2\n" in capsys.readouterr().err
    first = next(row for row in rows if row["kind"] == "eval")
    np.testing.assert_allclose(first["loss/image"], source["loss/image"], rtol=1e-5)
    missing = smoke(tmp_path, "mot", init__run=str(tmp_path / "nowhere"), run__name="never")
    with pytest.raises(ValueError, match="there is no such run directory"):
        loop.run(missing, devices=one_device)
    assert not (tmp_path / "never").exists()
    assert checkpoint.steps(path / "checkpoints") == [2]


# --- meshes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "how", "meshes"),
    [
        ("moe_tc4", "blocked", ("4/4/gather", "8/8/all_to_all", "8/1/gather")),
        ("learned_mot", "gmm", ("4/4/all_to_all",)),
        pytest.param("moe_tc4", "blocked", ("1/1/gather", "2/2/gather", "8/8/gather"), marks=pytest.mark.slow),
        pytest.param("moe_ec4", "ragged", ("8/2/gather", "4/4/all_to_all"), marks=pytest.mark.slow),
        pytest.param("learned_mot", "einsum", ("4/2/gather", "8/4/all_to_all"), marks=pytest.mark.slow),
    ],
)
def test_every_mesh_gives_one_devices_gradients_leaf_by_leaf(arch, how, meshes, monkeypatch):
    """Devices / of them along `expert` / how rows meet experts. What the kernel does not write is NaN here."""
    monkeypatch.setitem(kernels._GROUPED, "gmm", leaves_nan)
    tree = examples.tree(arch)
    tree.data.batch = 8
    tree.model.dispatch = how
    tree.ffn.text.experts = 8
    if arch == "learned_mot":
        tree.attn.text.experts = 8
    batch, base = examples.batch(rows=8), resolve(tree)
    weights = examples.weights(base)
    want, want_grads = jax.jit(jax.value_and_grad(loss_of(base, batch)))(weights)
    for text in meshes:
        number, expert, exchange = text.split("/")
        tree.mesh.update(expert=int(expert), exchange=exchange, buffer=8.0 * int(expert))
        c = resolve(tree)
        with devices(int(number)):
            mesh = sharding.make_mesh(c)
        with jax.set_mesh(mesh):
            placed = jax.device_put(weights, state.state_shardings(c, mesh).params)
            step = jax.jit(lambda w, rows, c=c: jax.value_and_grad(loss_of(c, rows))(w))
            got, grads = step(placed, sharding.to_global(batch, c, mesh))
        assert float(got) == pytest.approx(float(want), abs=1e-5), text
        assert examples.leaf_error(jax.device_get(grads), want_grads) < 1e-5, text


def test_what_overflows_a_buffer_between_devices_is_counted():
    tree = examples.tree("moe_tc4")
    tree.mesh.update(expert=4, exchange="all_to_all", buffer=0.25)
    c, batch = resolve(tree), examples.batch()
    weights = params.paths(examples.weights(c))
    weights["blocks/sparse/ffn/text/router"] *= 0  # ties: all tokens ask the first expert
    with jax.set_mesh(sharding.make_mesh(c, jax.devices()[:4])):
        report = jax.jit(lambda w: transformer.forward(w, batch, c).routing["ffn/text"])(params.nest(weights))
    room = -(-0.25 * 48 // 4)
    real = np.stack([np.concatenate([t.segment for t in batch.values()], 1) != 0]).sum(-1)
    np.testing.assert_array_equal(report.lost_B, np.repeat(np.maximum(real - room, 0), 2, axis=0))
    assert metrics.routing(jax.tree.map(lambda x: np.asarray(x).sum(1), {"ffn/text": report}), c.modalities)[
        "router/ffn/text/overflowed"
    ] == pytest.approx(1 - 4 * room / real.sum(), abs=1e-6)


def test_an_expert_axis_that_does_not_divide_the_devices_is_refused(tmp_path):
    tree = examples.tree("moe_tc4")
    tree.ffn.text.experts = tree.mesh.expert = 3
    with pytest.raises(ValueError, match=r"mesh: data 0 x .*expert 3 .* does not fill 4 devices"):
        sharding.make_mesh(resolve(tree), jax.devices()[:4])


@pytest.mark.parametrize("arch", ["moe_tc4", "moe_ec4"])
def test_the_losses_of_routers_are_in_the_objective(arch):
    """Of token choice balance and the z-loss; of experts' choice imitation, whose gradient alone counts."""
    c, batch = examples.make(arch), examples.batch()
    weights = examples.weights(c)
    output = jax.jit(lambda: transformer.forward(weights, batch, c))()
    routing = output.routing
    got = losses.routing(routing, losses.routed_tokens(batch, c), c)
    r = routing["ffn/text"]
    assert (np.asarray(r.imitation_B).sum() > 0) == (arch == "moe_ec4")
    want = (0.01 * r.balance_B.sum() + 1e-3 * r.z_B.sum()) / r.tokens_BM[0].sum() if arch == "moe_tc4" else 0
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert len(output.hidden) == 1


def test_a_loss_beside_a_bias_is_that_of_rows_and_a_pooled_one_is_of_all_layers():
    """Over stacks, too; and two microbatches have each a loss of its own, of which the step's is the mean by tokens."""

    def judged(rows, **balance):
        tree = examples.tree("moe_tc4", layers=3)
        tree.towers.norm.image = "0:2 text, 2:3 image"  # the last layer is a stack of its own
        tree.ffn.text.update(z_loss=0.0, active=2, **balance)
        c = resolve(tree)
        weights, batch = examples.weights(c), examples.batch(rows=2)
        tokens = losses.routed_tokens(batch, c)
        part = jax.tree.map(lambda x: x[rows], batch)
        routing = jax.jit(lambda part: transformer.forward(weights, part, c).routing)(part)
        return losses.routing(routing, tokens, c), routing

    both = slice(None)
    for balance in (dict(balance="loss", balance_rate=0.3), dict(balance="bias", balance_rate=0.1, balance_loss=0.3)):
        got, reports = judged(both, **balance)
        want = sum(0.3 * r.balance_B.sum() / r.tokens_BM[0].sum() for r in reports.values())
        np.testing.assert_allclose(got, want, rtol=1e-6)
        assert got > 0.3 * 2.9, "about 1 a layer"

    def pooled(rows):
        got, reports = judged(rows, balance="pooled", balance_rate=0.3)
        assert set(reports) == {"ffn/text", "ffn/text@2"}
        wanted_E, score_E = (sum(np.asarray(r.pooled[i]).sum((0, 1)) for r in reports.values()) for i in (0, 1))
        n = sum(float(r.tokens_BM.sum()) for r in reports.values())
        return float(got), 0.3 * 4 * (wanted_E / n * score_E / n).sum(), n

    got, want, _ = pooled(both)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert abs(got - 0.3 * 2) < 0.3, "about `active`, not times the layers"
    parts = [pooled(slice(i, i + 1)) for i in range(2)]
    total = sum(n for *_, n in parts)
    np.testing.assert_allclose(sum(got for got, *_ in parts), sum(w * n / total for _, w, n in parts), rtol=1e-6)

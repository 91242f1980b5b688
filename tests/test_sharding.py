"""One device's losses and gradients on every mesh; what cannot be split is refused before anything is allocated."""

import socket
import subprocess
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import digits, ladder, sizes
from launch import flags
from mot import checkpoint, sharding
from mot.config import ConfigError, resolve
from mot.errors import UserError
from mot.model import params, transformer
from mot.objectives import losses
from mot.runs import rundir
from mot.train import loop, state
from tests.conftest import ROOT
from tests.support import commands, examples, vectors
from tests.support.devices import same_on_meshes
from tests.support.training import ENV, TRAIN, rows, smoke

SINGLE = ("data=2", "fsdp=2", "expert=2", "context=2", "tensor=2")
PAIRS = ("data=2,fsdp=2", "fsdp=2,expert=2", "fsdp=2,context=2", "fsdp=2,tensor=2", "expert=2,tensor=2")
PAIRS += ("data=2,expert=2", "data=2,context=2", "data=2,tensor=2", "expert=2,context=2", "context=2,tensor=2")
# Every pair of axes is in one of these.
TRIPLES = (
    "fsdp=2,context=2,tensor=2",
    "data=2,expert=2,context=2",
    "data=2,fsdp=2,expert=2",
    "data=2,expert=2,tensor=2",
)
SOME = [
    ("ids", "mot", TRIPLES),
    pytest.param("ids", "dense", ("fsdp=4,tensor=2", "context=4,fsdp=2"), marks=pytest.mark.slow),
    ("ids", "moe_ec4", ("fsdp=2,context=2", "expert=2,context=2,tensor=2")),
    pytest.param("ids", "mot_moe", ("fsdp=2,expert=2,tensor=2",), marks=pytest.mark.slow),
    pytest.param("vectors", "dense", ("fsdp=2,context=2",), marks=pytest.mark.slow),
    ("vectors", "mot", ("context=2,tensor=2",)),
    ("states", "mot", ("context=2,fsdp=2",)),
    ("published", "moe_tc4", ("context=2,tensor=2", "fsdp=2,expert=2")),
]
ALL = [("ids", arch, SINGLE + PAIRS) for arch in ("dense", "mot", "moe_ec4", "moe_tc4", "mot_moe")]


def loss_of(c):
    def loss(weights, batch):
        given = losses.noised(batch, c, 3, weights)
        output = transformer.forward(weights, given.batch, c)
        Z_M, routed = losses.totals(batch, c), losses.routed_tokens(batch, c)
        total, _ = losses.loss(weights, output, given, Z_M, c, 2)
        return total + (losses.routing(output.routing, routed, c) if output.routing else 0)

    return jax.value_and_grad(loss)


@pytest.mark.parametrize(("kind", "arch", "meshes"), [*SOME, *(pytest.param(*x, marks=pytest.mark.slow) for x in ALL)])
def test_every_mesh_gives_one_devices_gradients_leaf_by_leaf(kind, arch, meshes):
    """Of ids, of vectors, of predicted states, or of what published models have; on as many devices as a mesh has."""
    is_ids = kind in ("ids", "published")
    tree = examples.tree(arch) if is_ids else vectors.tree(arch, budgets=(36, 24, 12))
    if kind == "published":  # Gemma 2's block, OLMoE's norm of queries, a router of DeepSeek-V3's kind
        tree.model.update(norm="both", qk_norm="rms_flat", attention_cap=0.7, logits_cap=2.0, query_size=3)
        chosen = dict(active=2, groups=2, active_groups=2, score="sigmoid", weight_scale=2.0)
        tree.ffn.text.update(balance="pooled", balance_rate=0.1, **chosen)
    if kind == "states":  # of images, whose hidden parts' are predicted, the model's own
        tree.streams.image.objective = "latent"
        prediction = dict(targets="own", sigreg=0.1, slices=4, columns=2, layers=1, width=8, ffn=12)
        tree.streams.image.prediction.update(prediction)
    tree.data.batch = 8 if is_ids else 4
    tree.model.scan = True
    tree.model.remat = "block" if kind == "ids" else "none"  # which gathers in another way
    # With others (0; on JAX 0.12 also 1 and 4) rounding on one mesh swaps two tokens whose scores are nearly equal.
    tree.model.seed = 3
    for experts in (*tree.attn.values(), *tree.ffn.values()):
        experts.experts = 4 if experts.experts else 0
    base = resolve(tree)
    batch = examples.batch(rows=8) if is_ids else vectors.batch(base)
    weights = examples.weights(base)
    axes = [{axis: int(n) for axis, n in (part.split("=") for part in text.split(","))} for text in meshes]
    same_on_meshes(tree, loss_of, batch, weights, axes)


# --- every rung, without its memory ----------------------------------------------------------------------------------

SETTINGS = {"chameleon": sizes.CHAMELEON, "chameleon_speech": sizes.SPEECH, "transfusion": sizes.TRANSFUSION}


def abstract_mesh(**sizes):
    every = {axis: sizes.get(axis, 1) for axis in ("data", "fsdp", "expert", "context", "tensor")}
    return jax.sharding.AbstractMesh(tuple(every.values()), tuple(every))


PARTS = dict(embed=4, vocab=8, heads=8, kv_heads=8, mlp=8, expert=2)  # fsdp 4, tensor 8, expert 2


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_rungs_parameters_have_their_shardings_unallocated(setting):
    mesh = abstract_mesh(data=2, fsdp=4, expert=2, tensor=8)
    for rung in SETTINGS[setting]:
        for arch in ("dense", "mot", "moe_ec4", "mot_moe"):
            c = resolve(ladder.get_config(f"setting={setting},rung={rung},arch={arch}"))
            if c.model.heads % 8:
                with pytest.raises(UserError, match=f"its axis heads of {c.model.heads} does not divide among the 8"):
                    state.state_shardings(c, mesh)
                continue
            places = params.paths(state.state_shardings(c, mesh).params)
            for path, spec in params.table(c).items():
                local = tuple(n // PARTS.get(axis, 1) for n, axis in zip(spec.shape, spec.axes, strict=True))
                assert places[path].shard_shape(spec.shape) == local, path


def test_an_optimisers_leaf_lies_with_its_parameter():
    c = examples.make("mot")
    places = state.state_shardings(c, abstract_mesh(fsdp=2, tensor=2))
    moments = next(x for x in places.opt if hasattr(x, "mu"))
    assert moments.mu == moments.nu == places.params
    assert places.params["blocks"]["main"]["ffn"]["text"]["w2"].spec == P(None, "tensor", "fsdp")


# --- what cannot be split --------------------------------------------------------------------------------------------


def refused(changes):
    tree = examples.tree("mot")
    tree.mesh.update(changes)
    c = resolve(tree)
    mesh = sharding.make_mesh(c, jax.devices())
    state.state_shardings(c, mesh)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(fsdp=3), r"data 0 x fsdp 3 x .* does not fill 4 devices; the product of the axes must be 4"),
        (dict(data=3, fsdp=2), r"data 3 x fsdp 2 .* does not fill 4 devices"),
        (
            dict(fsdp=2**30, tensor=2**30, context=2**30),
            r"fsdp 1073741824 .* tensor 1073741824 does not fill 4 devices",
        ),
        (dict(slices=3), r"mesh\.slices: 3, the devices are of 1 and mesh\.data is 4; must be as many as there are"),
        (
            dict(tensor=4),
            r"wk: its axis kv_heads of 2 does not divide among the 4 parts of mesh\.rules\.kv_heads = 'ten",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_both_numbers(changes, told):
    with pytest.raises(UserError, match=told):
        refused(changes)


def test_rows_and_their_tokens_must_divide():
    tree = examples.tree("mot", budgets=(24, 25))
    tree.mesh.context = 4
    with pytest.raises(
        UserError, match=r"streams\.image\.budget: 25 tokens do not divide among the 4 parts of mesh\.rul"
    ):
        sharding.make_mesh(resolve(tree), jax.devices()[:4])
    tree = examples.tree("mot")
    tree.optim.accumulate = 2
    with pytest.raises(
        UserError, match=r"data\.batch / optim\.accumulate: 2 rows do not divide among the 4 parts of mesh"
    ):
        sharding.make_mesh(resolve(tree), jax.devices()[:4])


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (
            dict(embed="tensor"),
            r"mesh\.rules\.embed, mlp: 'tensor', 'tensor'; one array has both axes, and 'tensor' cannot",
        ),
        (dict(batch="data,context"), r"mesh\.rules\.batch, length: .*'context' cannot split it twice"),
        (
            dict(mlp="rows"),
            r"mesh\.rules\.mlp: 'rows' is no axis of the mesh; allowed: data, fsdp, expert, context, tensor",
        ),
        (dict(width="fsdp"), r"mesh\.rules\.width: no such logical axis; allowed: batch, length, embed"),
        (dict(kv_heads=""), r"mesh\.rules\.heads, kv_heads: 'tensor', ''; .* split alike"),
        (dict(batch="data,fsdp"), r"mesh\.rules\.batch: 'data,fsdp'; who shares experts has rows of its own"),
        (dict(length="tensor"), r"mesh\.rules\.length"),
        (dict(mlp="tensor,tensor"), r"mesh\.rules\.mlp: 'tensor,tensor' splits it twice by one axis; name each once"),
    ],
)
def test_rules_that_split_twice_or_do_not_exist_are_refused(rules, told):
    tree = examples.tree("mot")
    tree.mesh.rules.update(rules)
    with pytest.raises(ConfigError, match=told):
        resolve(tree)


def test_an_axis_that_splits_nothing_is_refused():
    tree = examples.tree("mot")
    tree.mesh.update(context=2)
    tree.mesh.rules.length = ""
    with pytest.raises(ConfigError, match=r"mesh\.context: 2, and no rule in mesh\.rules splits anything by it"):
        resolve(tree)


def test_more_slices_than_rows_are_refused():
    tree = examples.tree("mot")
    tree.mesh.slices = 1_000_000
    with pytest.raises(ConfigError, match=r"mesh\.slices: 1000000, and a microbatch has 4 rows"):
        resolve(tree)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mesh.tensor": 4}, r"its axis \w+ of \d+ does not divide among the 4 parts"),
        (
            {"model.attention": "splash"},
            r"model\.attention: 'splash' runs on tpu, and the devices are cpu; choose 'chunk",
        ),
        (
            {"model.attention": "cudnn"},
            r"model\.attention: 'cudnn' runs on gpu, and the devices are cpu; choose 'chunk",
        ),
        ({"model.dispatch": "gmm"}, r"model\.dispatch: 'gmm' runs on tpu, and the devices are cpu; choose 'ragged'"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_before_anything_is_written(tmp_path, changes, told):
    tree = digits.get_config("arch=moe_ec4,size=smoke").unlock()
    tree.update_from_flattened_dict(changes | {"run.root": str(tmp_path / "runs")})
    with pytest.raises(UserError, match=told):
        loop.run(flags.build(tree), devices=jax.devices()[: changes.get("mesh.tensor", 1)])
    assert not (tmp_path / "runs").exists()


# --- several processes -----------------------------------------------------------------------------------------------

FIGURES = ("loss", "loss/text", "loss/image", "objective", "flops", "tokens/text", "tokens/image", "fill/text")


def test_two_processes_train_as_one_with_two_devices(tmp_path):
    """The same batches, losses and counts; and together they begin from another run's weights."""
    source = loop.run(smoke(tmp_path, "mot", run__name="source"), devices=jax.devices()[:1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*TRAIN, f"--config.run.root={tmp_path}", "--config.run.name=two", "--config.mesh.fsdp=2"]
    command += [f"--config.init.run={source}"]
    env = ENV | {"JAX_NUM_CPU_DEVICES": "1"}
    processes = [
        subprocess.Popen(
            [*command, f"--distributed=127.0.0.1:{port},{i},2"], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    loop.run(smoke(tmp_path, "mot", run__name="one", mesh__fsdp=2, init__run=str(source)), devices=jax.devices()[:2])
    for process in processes:
        said = process.communicate(timeout=400)[1]
        assert process.returncode == 0, said
    one, two = (rundir.read_metrics(tmp_path / name) for name in ("one", "two"))

    def pick(rows):
        return [{k: row[k] for k in FIGURES if k in row} for row in rows if row["kind"] != "event"]

    assert pick(one) == pick(two)
    assert len(pick(one)) >= 3
    assert checkpoint.steps(tmp_path / "two" / "checkpoints") == checkpoint.steps(tmp_path / "one" / "checkpoints")
    checkpoint.verify(tmp_path / "two" / "checkpoints" / "2")
    first = next(row for row in two if row["kind"] == "eval")
    assert first["loss"] == pytest.approx(rows(source, "eval")[-1]["loss"], rel=1e-5)


@pytest.mark.parametrize("text", ["", "here", "127.0.0.1:1,2", "127.0.0.1:1,x,2", "nowhere,0,2", "127.0.0.1:1,2,2"])
def test_a_process_that_is_not_told_which_it_is(text):
    code, _, said = commands.run("train", f"--config={ROOT}/configs/digits.py:size=smoke", f"--distributed={text}")
    assert code == 2
    assert f"--distributed={text}: " in said
    assert "write HOST:PORT,I,N" in said


# --- options of the compiler ---------------------------------------------------------------------------------------


def mesh_of_kind(platform, kind):
    device = SimpleNamespace(platform=platform, device_kind=kind)
    return SimpleNamespace(devices=np.array([device], object))


def test_options_are_of_tpus_and_those_that_a_user_gives_win(monkeypatch):
    assert not sharding.compiler_options(mesh_of_kind("cpu", "cpu"))
    usual = sharding.compiler_options(mesh_of_kind("tpu", "TPU v6 lite"))
    assert usual == sharding.WHOLE | sharding.GATHERS | sharding.SUMS
    assert sharding.compiler_options(mesh_of_kind("tpu", "TPU v9")) == sharding.WHOLE
    for dashes in ("--", "-"):  # libtpu takes both
        monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--xla_of_another=1 {dashes}xla_enable_async_all_gather=false")
        given = sharding.compiler_options(mesh_of_kind("tpu", "TPU v6 lite"))
        assert given == {k: v for k, v in usual.items() if k != "xla_enable_async_all_gather"}

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mot import checkpoint, optim, sharding
from mot.config import ConfigError, Sections, resolve
from mot.config.varied import put
from mot.model import params
from mot.train import state
from mot.train.step import make_step
from tests.oracles import reference
from tests.support import examples


def make(**changes):
    tree = examples.tree()
    tree.run.steps = 100
    tree.optim.update(dict(lr=1.0, end_lr=0.1, warmup=10) | changes)
    return resolve(tree, optim.uncovered)


@pytest.mark.parametrize(
    ("changes", "points"),
    [
        ({"schedule": "cosine"}, {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.55, 100: 0.1}),
        ({"schedule": "linear"}, {9: 1.0, 55: 0.55, 100: 0.1}),
        ({"schedule": "constant", "end_lr": 2.0}, {0: 0.1, 9: 1.0, 55: 1.0, 100: 1.0}),
        ({"schedule": "wsd", "decay_steps": 20}, {9: 1.0, 50: 1.0, 80: 1.0, 90: 0.55, 100: 0.1}),
        ({"warmup": 0}, {0: 1.0, 50: 0.55, 100: 0.1}),
    ],
)
def test_schedules_pass_through_their_points(changes, points):
    rate = optim.schedule(make(**changes))
    for step, value in points.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_schedules_are_those_of_optax_to_the_bit_also_where_their_steps_are_traced(schedule):
    """Of several runs in one program, warm-up and decay are numbers that it computes with."""
    configs = [make(schedule=schedule, warmup=warmup, decay_steps=decay) for warmup, decay in ((0, 10), (7, 31))]
    n = jnp.arange(110)
    for c in configs:
        after = 100 - c.optim.warmup
        last = optax.linear_schedule(1.0, 0.1, c.optim.decay_steps)
        decays = {
            "cosine": optax.cosine_decay_schedule(1.0, after, alpha=0.1),
            "linear": optax.linear_schedule(1.0, 0.1, after),
            "wsd": optax.join_schedules([optax.constant_schedule(1.0), last], [after - c.optim.decay_steps]),
        }
        found, expected = jax.jit(optim.schedule(c))(n), jax.jit(decays[schedule])(n - c.optim.warmup)
        np.testing.assert_array_equal(found[c.optim.warmup :], expected[c.optim.warmup :])

    def traced(warmup, decay):
        sections = Sections(**vars(configs[0]))
        for key, value in {"optim.warmup": warmup, "optim.decay_steps": decay}.items():
            sections = put(sections, key, value)
        return optim.schedule(sections)(n)

    together = jax.jit(jax.vmap(traced))(jnp.array([0, 7]), jnp.array([10, 31]))
    np.testing.assert_allclose(together, [optim.schedule(c)(n) for c in configs], rtol=1e-5)


def test_a_step_equals_adamw_written_out_with_rate_and_decay_by_path():
    rules = (dict(match="norm", lr=0.5, decay=0.0), dict(match=".*", lr=0.8, decay=0.1))
    c = make(rules=rules, clip=0.5, warmup=0)
    weights = params.init(params.table(c), 0)
    grads = jax.tree.map(lambda w: jnp.cos(7 * w), weights)
    optimiser = optim.make(c)
    norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(grads)))
    updates, _ = optimiser.update(grads, optimiser.init(weights), weights, norm=norm)
    for path, update in params.paths(updates).items():
        g = np.asarray(params.paths(grads)[path], np.float64) * min(1, 0.5 / norm)
        adam = g / (np.abs(g) + c.optim.eps)  # the first step's moments, corrected, are g and g squared
        rate, decay = (0.5, 0.0) if "norm" in path else (0.8, 0.1)
        want = -rate * (adam + decay * np.asarray(params.paths(weights)[path]))
        np.testing.assert_allclose(update, want, rtol=2e-3, atol=1e-6, err_msg=path)


def test_every_parameter_needs_a_rule_and_every_rule_a_parameter():
    with pytest.raises(ConfigError, match=r"optim.rules, base_rules: no rule matches embed/tokens, .* more; .*\.\*"):
        make(base_rules=(dict(match="norm|head", lr=1.0, decay=0.0),))
    with pytest.raises(ConfigError, match=r"optim.rules\[1\].match: 'embed' decides for no parameter"):
        make(rules=(dict(match=".*", lr=1.0, decay=0.0), dict(match="embed", lr=1.0, decay=0.0)))


def moments(opt):
    (adam,) = [part for part in opt if hasattr(part, "nu")]
    return jax.tree.leaves((adam.mu, adam.nu))


def trained(c, steps, devices):
    """The state after some steps on one batch, and their losses."""
    mesh = sharding.make_mesh(c, devices)
    with jax.set_mesh(mesh):
        now = jax.jit(lambda: state.init_state(c))()
        step, losses = jax.jit(make_step(c, 2)), []
        batch = sharding.to_global(examples.batch(), c, mesh)
        for _ in range(steps):
            now, measured = step(now, batch)
            losses.append(float(measured["loss"]))
    return now, losses


def test_moments_in_bfloat16_are_kept_restored_and_train_like_float32(tmp_path, one_device):
    c = make(lr=5e-3, end_lr=5e-4, moments="bfloat16")
    shapes = jax.eval_shape(lambda: state.init_state(c))
    assert {x.dtype for x in moments(shapes.opt)} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(shapes.params)} == {jnp.dtype("float32")}
    now, losses = trained(c, 30, one_device)
    assert {x.dtype for x in moments(now.opt)} == {jnp.dtype("bfloat16")}
    trees = state.trees(now)
    checkpoint.save(tmp_path, 30, trees, {}, keep=1)
    restored, _ = checkpoint.restore(tmp_path, 30, jax.tree.map(like, trees))
    assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, trees)
    jax.tree.map(np.testing.assert_array_equal, restored, trees)
    _, want = trained(make(lr=5e-3, end_lr=5e-4), 30, one_device)
    assert want[-1] < 0.9 * want[0]
    np.testing.assert_allclose(losses, want, rtol=0.01)


def like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def test_moments_shard_as_their_parameters():
    """Also those that optax does not cast by itself."""
    tree = examples.tree()
    tree.mesh.fsdp, tree.optim.moments = 4, "bfloat16"
    c = resolve(tree)
    mesh = sharding.make_mesh(c)
    placed = state.state_shardings(c, mesh)
    (adam,) = [part for part in placed.opt if hasattr(part, "nu")]
    assert adam.mu == adam.nu == placed.params


@pytest.mark.parametrize("arch", ["mot", "learned_mot"])
def test_muon_orthogonalises_each_matrix_by_itself(arch):
    """A layer's and an expert's; q, k and v make all heads at once, and o sums over all. The rest is Adam's."""
    tree = examples.tree(arch)
    tree.optim.update(dict(name="muon", lr=1.0, warmup=0, clip=1e9))
    c = resolve(tree, optim.uncovered)
    table = params.table(c)
    weights = params.init(table, 0)
    grads = jax.tree.map(lambda w: jnp.cos(7 * w), weights)
    adam = params.paths(step_of(resolve(examples.tree(arch)), grads)[0])
    moved, state_after = step_of(c, grads)
    seen = set()
    for path, update in params.paths(moved).items():
        weight = params.parse(path).weight.removeprefix("shared_")
        if weight not in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
            np.testing.assert_allclose(update, adam[path], rtol=1e-5, err_msg=path)
            continue
        seen.add(weight)
        leading = [size for size, axis in zip(table[path].shape, table[path].axes, strict=True) if axis in LEADING]
        rows = table[path].shape[len(leading)] if weight != "wo" else np.prod(table[path].shape[-3:-1])
        gradient = np.asarray(params.paths(grads)[path]).reshape(*leading, rows, -1)
        got = np.asarray(update).reshape(gradient.shape)
        for index in np.ndindex(*leading):
            np.testing.assert_allclose(got[index], reference.muon(gradient[index]), atol=2e-4, err_msg=path)
    assert seen == {"wq", "wk", "wv", "wo", "w1", "w2", "w3"}
    assert set(params.paths(state_after.muon.mu)) | set(params.paths(state_after.adam.mu)) == set(table)


LEADING = ("layer", "expert")


def step_of(c, grads):
    """The directions of a first step, and the state of what makes them."""
    make = optim._muon(c) if c.optim.name == "muon" else optim._adam(c.optim)
    return jax.jit(make.update)(grads, make.init(grads))


def test_muon_needs_a_matrix():
    with pytest.raises(ConfigError, match=r"optim.muon: 'embed' matches no matrix .* blocks/main/attn/\w+/wq"):
        make(name="muon", muon="embed")
    with pytest.raises(ConfigError, match=r"optim.muon: 'attn' matches blocks/\S+ and others that are all frozen"):
        make(name="muon", muon="attn", freeze="text.attn,image.attn")


@pytest.mark.parametrize("transfer", [{}, {"transfer": "mup", "base_width": 8}])
def test_a_bad_pattern_of_muon_is_one_fault(transfer):
    with pytest.raises(ConfigError, match=r"optim.muon: '\[' is no regular expression") as error:
        make(name="muon", muon="[", **transfer)
    assert len(error.value.faults) == 1


def test_the_moments_of_muon_shard_as_their_parameters():
    tree = examples.tree()
    tree.mesh.fsdp = 4
    tree.optim.update(name="muon")
    c = resolve(tree)
    placed = state.state_shardings(c, sharding.make_mesh(c))
    both = params.paths(placed.opt[1].muon.mu) | params.paths(placed.opt[1].adam.nu)
    assert both == params.paths(placed.params)
    assert placed.opt[1].muon.count == placed.updates


def test_base_rules_decay_no_bias_and_own_rules_do_as_they_say():
    tree = examples.tree(qkv_bias=True, norm_offset=True)
    decided = optim.rules(resolve(tree))
    decays = {params.parse(path).weight: rule.decay for path, rule in decided.items()}
    assert [decays[name] for name in ("q_bias", "v_bias", "q_norm", "scale", "wq")] == [0, 0, 0, 0, 0.1]
    tree.optim.rules = (dict(match="q_bias", lr=1.0, decay=0.3),)
    assert optim.rules(resolve(tree))["blocks/main/attn/text/q_bias"].decay == 0.3


def test_decay_does_not_follow_a_transferred_rate():
    """At four times the base a matrix moves a quarter as far, and decays as ever."""
    weights = params.init(params.table(make()), 0)
    grads = jax.tree.map(jnp.zeros_like, weights)
    decays = []
    for changes in ({}, {"transfer": "mup", "base_width": 4}):
        optimiser = optim.make(make(warmup=0, **changes))
        decays.append(optimiser.update(grads, optimiser.init(weights), weights, norm=0.0)[0])
    jax.tree.map(np.testing.assert_array_equal, *decays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transfer": "mup"}, "optim.base_width: 0, but optim.transfer is 'mup'"),
        ({"base_layers": 2}, "optim.base_layers: 2, but optim.transfer is ''"),
        ({"name": "sgd"}, "optim.name: 'sgd'; allowed: adamw, muon"),
    ],
)
def test_keys_of_a_transfer_belong_together(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)

import jax
import numpy as np
import pytest

from mot.config import resolve
from mot.model import flops, params
from tests.support import examples, vectors


def values(c):
    return params.paths(jax.jit(lambda: params.init(params.table(c), c.model.seed))())


def test_adding_a_parameter_leaves_the_others_initial_values_bit_equal():
    small, large = values(examples.make("dense", qk_norm="none")), values(examples.make("mot", qk_norm="layer"))
    assert set(small) < set(large)
    for path, value in small.items():
        np.testing.assert_array_equal(value, large[path], err_msg=path)


def test_seeds_and_paths_give_other_values():
    a, b = values(examples.make("mot", seed=0)), values(examples.make("mot", seed=1))
    path = "blocks/main/ffn/text/w1"
    assert not np.array_equal(a[path], b[path])
    assert not np.array_equal(a[path], a[path.replace("text", "image")])
    np.testing.assert_allclose(a[path].std(), 16**-0.5, rtol=0.1)


def test_counted_parameters_equal_the_tree():
    for arch in ("dense", "mot", "mot_ffn", "loo_text"):
        for tied in (False, True):
            c = examples.make(arch, tied=tied, qk_norm="layer")
            assert params.count(params.table(c)) == sum(x.size for x in values(c).values())


def test_paths_name_stack_component_tower_and_weight_with_layers_first():
    c = examples.make("mot")
    for path, spec in params.table(c).items():
        assert len(spec.shape) == len(spec.axes), path
        if path.startswith("blocks/"):
            stack, component, tower, _ = params.parse(path)
            assert (stack, component in ("attn", "ffn", "norm"), tower in c.streams) == ("main", True, True)
            assert (spec.shape[0], spec.axes[0]) == (c.model.layers, "layer")


def test_active_parameters_are_what_a_token_meets():
    dense, mot = examples.make("dense"), examples.make("mot")
    active = flops.active_parameters(mot)
    assert set(active.values()) == {params.count(params.table(dense))}
    assert params.count(params.table(mot)) > params.count(params.table(dense))


def test_split_and_merge_are_inverse():
    tree = params.init(params.table(examples.make()), 0)
    norms, rest = params.split(tree, lambda path: "norm" in path)
    assert set(params.paths(norms)) == {p for p in params.paths(tree) if "norm" in p}
    jax.tree.map(np.testing.assert_array_equal, params.merge(norms, rest), tree)


def test_vectors_have_ways_in_and_out_and_norms_that_begin_as_they_were():
    c = vectors.make("mot", 12)
    table = params.table(c)

    def shape(path):
        return table[path].shape

    assert (shape("latent/image/in"), shape("latent/image/out")) == ((3, 12), (12, 3))
    assert shape("latent/image/time_out")[1] == shape("blocks/main/norm/image/attn_ada")[1] == params.ADA
    assert shape("blocks/main/norm/image/ffn_ada") == (2, params.ADA, 24)
    assert shape("latent/sound/time_out")[1] == 16  # added to what enters
    assert not any("ada" in p for p in table if "/image/" not in p)
    assert shape("blocks/main/attn/image/wq") == (2, 12, 4, 8)
    assert (table["blocks/main/norm/image/attn_ada"].std, table["blocks/main/norm/image/attn_ada"].fill) == (None, 0.0)
    assert not any(p.startswith("latent/text") for p in table)
    silent = vectors.tree("dense")
    silent.streams.image.objective = "none"
    assert [p for p in params.table(resolve(silent)) if "image" in p] == ["latent/image/in"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("blocks/sparse/ffn/text/w1", ("sparse", "ffn", "text", "w1")),
        ("final_norm/image/scale", ("", "norm", "image", "scale")),
        ("latent/image/time_in", ("", "latent", "image", "time_in")),
        ("embed/tokens", ("", "embed", "embed", "tokens")),
    ],
)
def test_a_path_tells_its_parts(path, says):
    assert params.parse(path) == says


def test_what_is_no_path_is_refused():
    with pytest.raises(ValueError, match="'blocks/ffn/text/w1' is no path"):
        params.parse("blocks/ffn/text/w1")


def transferred(arch="mot_moe", base=8, **changes):
    tree = examples.tree(arch, tied=changes.pop("tied", False))
    tree.optim.update(dict(transfer="mup", base_width=base) | changes)
    return params.table(resolve(tree))


def test_mup_is_a_table_of_kinds():
    """Twice the base's width: initial values, rates and multipliers of each kind, by what `_transferred` says."""
    before = params.table(examples.make("mot_moe"))
    after = transferred()
    assert after.keys() == before.keys()
    found = {}
    for path, spec in after.items():
        std = None if spec.std is None else round(spec.std / before[path].std, 3)
        found.setdefault((std, spec.lr, spec.multiplier), set()).add(params.parse(path).weight)
    assert found == {
        (1.414, 1.0, 1.0): {"tokens"},
        (1.0, 0.5, 1.0): {"wq", "wk", "wv", "wo", "w1", "w2", "w3", "causal_in"},
        (0.707, 0.5, 1.0): {"out", "router", "causal_out"},
        (None, 1.0, 1.0): {"attn", "ffn", "scale", "q_norm", "k_norm"},
    }


def test_mup_at_the_base_is_the_parametrisation_of_ever():
    assert transferred(base=16) == params.table(examples.make("mot_moe"))


def test_mup_of_a_tied_embedding_of_heads_and_of_depth():
    spec = transferred(tied=True, base_head_size=2, base_layers=1)
    assert (spec["embed/tokens"].lr, spec["embed/tokens"].multiplier) == (1.0, 0.5)
    block = "blocks/sparse/"
    assert spec[f"{block}attn/text/wq"].multiplier == 0.5  # heads of 8, of 2 there
    for last in ("attn/image/wo", "ffn/image/w2", "ffn/text/w2"):
        assert spec[block + last].multiplier == 0.5
        np.testing.assert_allclose(spec[block + last].std, 2**0.5 * transferred()[block + last].std)


def test_mup_of_a_scaled_embedding_enters_and_leaves_as_without():
    """Width 16 of base 4, so r = 4: what enters is std * sqrt(width), a logit is std * multiplier."""

    def embedding(**choices):
        tree = examples.tree("dense", tied=True, **choices)
        tree.optim.update(transfer="mup", base_width=4)
        return params.table(resolve(tree))["embed/tokens"]

    plain, scaled = embedding(), embedding(embed_scale=True)
    base = 4**0.5  # the root by which the base's embedding is multiplied
    np.testing.assert_allclose(scaled.std * 16**0.5, plain.std * base)
    np.testing.assert_allclose(scaled.std * scaled.multiplier, plain.std * plain.multiplier)
    np.testing.assert_allclose(scaled.lr * 16**0.5, plain.lr * base)
    np.testing.assert_allclose(scaled.lr * scaled.multiplier, plain.lr * plain.multiplier)


def test_options_of_the_block_have_their_rows():
    """GELU has no row; norms begin at 0 where they multiply by 1 + w; biases begin at 0, split as their heads are."""
    plain = params.table(examples.make())
    table = params.table(examples.make(activation="geglu", norm_offset=True, embed_scale=True, qkv_bias=True))
    new = {path: spec for path, spec in table.items() if path not in plain}
    assert {params.parse(path).weight for path in new} == {"q_bias", "k_bias", "v_bias"}
    k = table["blocks/main/attn/image/k_bias"]
    assert (k.shape, k.axes, k.std, k.fill) == ((2, 2, 8), ("layer", "kv_heads", "head"), None, 0)
    changed = {path for path, spec in plain.items() if table[path] != spec}
    assert changed == {path for path in plain if "norm" in path}
    assert {table[path].fill for path in changed} == {0}


def test_towers_of_other_widths_have_other_rates():
    tree = vectors.tree("mot", 32)
    tree.optim.update(transfer="mup", base_width=16)
    table = params.table(resolve(tree))
    rates = {tower: table[f"blocks/main/ffn/{tower}/w1"].lr for tower in ("text", "image")}
    assert rates == {"text": 1.0, "image": 0.5}
    assert table["blocks/main/attn/image/wo"].lr == 1.0  # it sums over heads, which grow with the first stream
    assert [table[f"latent/image/{name}"].lr for name in ("in", "out", "time_in", "time_out")] == [1, 0.5, 1, 1]
    assert table["blocks/main/norm/image/attn_ada"].lr == 1

"""The bad-input table: every fault is reported at once, with its key, the value, what is allowed and the remedy."""

import dataclasses

import pytest

from configs import chameleon, digits, transfusion
from configs.base import rope_scaling
from mot import optim
from mot.config import ConfigError, Sections, checks, differences, reads, resolve
from mot.config.load import read
from mot.errors import Fault, UserError
from tests.support import examples, vectors


def faults(change, tree=None):
    tree = tree or examples.tree()
    tree.unlock()
    change(tree)
    with pytest.raises(ConfigError) as caught:
        resolve(tree, optim.uncovered)
    return caught.value.faults


def set_(path, value):
    def change(tree):
        *groups, name = path.split(".")
        for group in groups:
            tree = tree[group]
        if name in tree:
            del tree[name]
        tree[name] = value

    return change


def drop(*keys):
    def change(tree):
        for key in keys[:-1]:
            tree = tree[key]
        del tree[keys[-1]]

    return change


def inside(tree):
    """The image's ids lie among the text's."""
    set_("streams.image.first_id", 4)(tree)
    set_("streams.image.ids", 5)(tree)


def beside(tree):
    """The image's noise level goes beside its vectors through layers."""
    tree.streams.image.update(latent=4, ids=0, first_id=0, objective="flow")
    tree.streams.image.diffusion.time = "mlp"


RULE = dict(match=".*", lr=1.0, decay=0.0)
TABLE = [
    # change, the fault's beginning, what it must also say
    (set_("optim.inertia", 0.9), "optim.inertia: unknown key, value 0.9", "allowed: "),
    (set_("extra", 1), "extra: unknown key", "allowed: run, streams"),
    (drop("optim", "lr"), "optim.lr: missing", "configs/base.py"),
    (drop("data"), "data: missing", "configs/base.py"),
    (set_("optim.lr", "fast"), "optim.lr: 'fast' is str", "must be of type float"),
    (set_("model.layers", 2.5), "model.layers: 2.5 is float", "must be of type int"),
    (set_("model.tied", 1), "model.tied: 1 is int", "must be of type bool"),
    (set_("optim.eps", float("nan")), "optim.eps: nan", "finite"),
    (set_("streams.text.loss_weight", 1e39), "streams.text.loss_weight: 1e+39", "at most 3e+38"),
    (set_("streams", 3), "streams: 3 is int", "group of keys"),
    (set_("optim.rules", "x"), "optim.rules: 'x' is str", "tuple"),
    (set_("model.heads", 3), "model.heads: 3 query heads do not divide among model.kv_heads = 2", "multiple"),
    (set_("model.head_size", 7), "model.head_size: 7", "even"),
    (set_("model.layers", 0), "model.layers: 0", "above 0"),
    (set_("model.norm", "middle"), "model.norm: 'middle'", "allowed: pre, post"),
    (set_("model.remat", "all"), "model.remat: 'all'", "allowed: none, dots, block, offload"),
    (set_("model.attention", "flash"), "model.attention: 'flash'", "chunked, reference, splash, triton, mosaic, cudnn"),
    (
        lambda t: (set_("model.attention_cap", 50.0)(t), set_("model.attention", "splash")(t)),
        "model.attention: 'splash', whose kernel has no cap, but model.attention_cap is 50.0",
        "write 'chunked' or 'reference'",
    ),
    (set_("model.rope_features", 5), "model.rope_features: 5; must be even", "at most model.head_size = 8"),
    (set_("model.rope_features", 10), "model.rope_features: 10; must be even", "at most model.head_size = 8"),
    (set_("model.rope_scaling.kind", "ntk"), "model.rope_scaling.kind: 'ntk'", "allowed: '', linear, llama3, yarn"),
    (
        set_("model.rope_scaling.factor", 2.0),
        "model.rope_scaling.factor, amplitude: 2.0, 1.0, but kind is ''",
        "choose a kind",
    ),
    (
        set_("model.rope_scaling", rope_scaling("llama3", 8.0)),
        "model.rope_scaling.length, least_turns, most_turns: 0, 1.0, 4.0, but kind is 'llama3'",
        "length must be above 0",
    ),
    (
        set_("model.rope_scaling", rope_scaling("linear", 8.0, length=4)),
        "model.rope_scaling.length, least_turns, most_turns: 4, 0.0, 0.0, but kind is 'linear'",
        "which reads none",
    ),
    (
        lambda t: (
            set_("model.rope_theta", 1.0)(t),
            set_("model.rope_scaling", rope_scaling("yarn", 4.0, length=8))(t),
        ),
        "model.rope_theta: 1.0, but model.rope_scaling.kind is 'yarn'",
        "above 1",
    ),
    (set_("model.dtype", "float16"), "model.dtype: 'float16'", "allowed: float32, bfloat16"),
    (set_("streams.image.budget", 5), "streams.image.budget: 5 tokens do not hold", "at least 8"),
    (set_("streams.image.width", 32), "streams.image.width: 32, but streams.text.width is 16", "set both alike"),
    (set_("streams.image.first_id", 5), "streams.image.first_id: ids 5..16 overlap streams.text's 0..11", "free range"),
    (
        lambda t: (inside(t), set_("streams.image.objective", "masked")(t)),
        "streams.image.first_id: ids 4..8 overlap streams.text's 0..11",
        "no masked stream's may",
    ),
    (
        lambda t: (beside(t), set_("streams.image.ends_prefix", True)(t)),
        "streams.image.ends_prefix: True, but its objective is 'flow', 4 its latent and data.blocks 'units'",
        "write False",
    ),
    (lambda t: (beside(t), set_("streams.image.width", 15)(t)), "streams.image.width: 15, but", "make it even"),
    (
        lambda t: (beside(t), set_("streams.image.diffusion.time_features", "dit")(t)),
        "streams.image.diffusion.time_features: 'dit', but",
        "write 'small'",
    ),
    (drop("towers", "attn", "image"), "towers.attn.image: missing", "every stream needs a tower"),
    (set_("towers.ffn.sound", "sound"), "towers.ffn.sound: 'sound'; no such stream", "allowed: text, image"),
    (set_("towers.norm.image", "video"), "towers.norm.image: 'video'", "named by a stream: text, image"),
    (set_("towers.attn.text", "image"), "towers.attn.text: 'image'; a tower is named by the first", "write 'text'"),
    (
        lambda t: (set_("towers.ffn.image", "text")(t), set_("streams.image.ffn", 32)(t)),
        "streams.image.ffn: 32, but it shares its FFN tower with text",
        "set both alike or untie towers.ffn.image",
    ),
    (set_("objective.common_target", 1.0), "objective.common_target: 1.0; must be at least 0 and below 1", "lower it"),
    (set_("towers.attn.image", "0-2 image"), "towers.attn.image: '0-2 image'; a tower is named by a stream", "choose"),
    (set_("towers.attn.image", "0:2 image 2:4 text"), "towers.attn.image: '0:2 image 2:4 text' is neither", "mend it"),
    (
        set_("towers.attn.image", "0:1 image, 0:2 text"),
        "towers.attn.image: '0:1 image, 0:2 text' has layers in two",
        "0:1",
    ),
    (
        set_("towers.ffn.image", "0:1 image, 2:3 text"),
        "towers.ffn.image: '0:1 image, 2:3 text' has layers in no",
        "1:2",
    ),
    (set_("towers.norm.image", "1:2 image"), "towers.norm.image: '1:2 image' has layers in no range, 0:1", "mend it"),
    (set_("towers.norm.image", "0:0 text, 0:2 image"), "towers.norm.image: '0:0 text, 0:2 image' has a range", "0:0"),
    (
        set_("towers.norm.image", "0:1 text, 1:3 image"),
        "towers.norm.image: '0:1 text, 1:3 image'; its",
        "go past the depth",
    ),
    (set_("towers.norm.image", "0:1 image"), "towers.norm.image: '0:1 image'; its ranges leave", "model.layers is 2"),
    (set_("towers.attn.image", "0:1 image, 1:2 film"), "towers.attn.image: 'film'; a tower is named by", "text, image"),
    (
        set_("towers.attn.text", "0:1 text, 1:2 image"),
        "towers.attn.text: 'image'; a tower is named by the first",
        "1:2",
    ),
    (
        lambda t: (set_("towers.ffn.image", "0:1 image, 1:2 text")(t), set_("streams.image.ffn", 32)(t)),
        "streams.image.ffn: 32, but it shares its FFN tower with text in layers 1:2",
        "untie towers.ffn.image",
    ),
    (set_("ffn.text.router", "foo"), "ffn.text.router: 'foo'; allowed: token, expert", "choose one"),
    (set_("attn.text.balance", "q"), "attn.text.balance: 'q'; allowed: none, loss, pooled, bias", "choose one"),
    (set_("ffn.text.capacity", -1.0), "ffn.text.capacity: -1.0; must be 0 or more", "raise it"),
    (set_("run.steps", 50), "run.steps: 50 is less than optim.warmup = 100", "raise steps or lower warmup"),
    (set_("optim.lr", -1e-3), "optim.lr: -0.001", "above 0"),
    (set_("optim.end_lr", 1.0), "optim.end_lr: 1.0 is above optim.lr = 0.001", "lower end_lr"),
    (set_("optim.beta2", 1.0), "optim.beta2: 1.0", "below 1"),
    (set_("optim.reduce_dtype", "float16"), "optim.reduce_dtype: 'float16'", "allowed: float32, bfloat16"),
    (
        set_("optim.reduce_dtype", "bfloat16"),
        "optim.reduce_dtype: 'bfloat16', but model.dtype is 'float32'",
        "write float32, or model.dtype='bfloat16'",
    ),
    (set_("optim.moments", "float16"), "optim.moments: 'float16'", "allowed: float32, bfloat16"),
    (
        lambda t: (set_("optim.moments", "bfloat16")(t), set_("optim.beta2", 0.999)(t)),
        "optim.moments: 'bfloat16', but a step moves them by 1 - optim.beta2 = 0.001",
        "a beta2 of at most 0.99",
    ),
    (set_("optim.schedule", "wsd"), "optim.decay_steps: 0; wsd needs 1 to 900", "change it"),
    (set_("optim.accumulate", 3), "data.batch: 4 rows do not divide into optim.accumulate = 3", "multiple"),
    (set_("optim.rules", (RULE | {"match": "("},)), "optim.rules[0].match: '(' is no regular expression", "mend"),
    (set_("optim.base_rules", (RULE | {"match": "("},)), "optim.base_rules[0].match: '(' is no regular", "mend"),
    (
        set_("optim.base_rules", (RULE | {"match": "norm"},)),
        "optim.rules, base_rules: no rule matches embed/tokens",
        "match='.*'",
    ),
    (set_("optim.freeze", "words"), "optim.freeze: 'words' names no parameter", "allowed: text, image, and parts"),
    (set_("optim.freeze", "text,image.latent"), "optim.freeze: 'image.latent' names no parameter", "text.ffn (attn"),
    (set_("optim.freeze", "text, image"), "optim.freeze: 'text, image' leaves nothing to train", "untie"),
    (set_("optim.rules", (RULE | {"lr": 0.0},)), "optim.rules: with lr 0 everywhere leaves nothing", "untie"),
    (set_("optim.rules", (RULE, RULE)), "optim.rules[1].match: '.*' decides for no parameter", "remove"),
    (set_("data.shares", {"a": 0}), "data.shares: {'a': 0.0}", "above 0"),
    (set_("data.shares", {"a": -1, "b": 2}), "data.shares.a: -1.0", "0 or more"),
    (set_("data.seed", -1), "data.seed: -1", "0 or more"),
    (
        lambda t: (set_("streams.image.modality", "text")(t), set_("streams.image.loss_weight", 5.0)(t)),
        "streams.image.loss_weight: 5.0, but streams.text's is 1.0",
        "set both alike",
    ),
    (set_("streams.image.modality", "im/age"), "streams.image.modality: 'im/age'", "lower-case"),
    (set_("optim.lr", "nan"), "optim.lr: 'nan' is str; must be a finite number", "at most"),
    (set_("optim.lr", "-inf"), "optim.lr: '-inf' is str; must be a finite number", "at most"),
    (set_("run.steps", 1000.5), "run.steps: 1000.5 is float; must be of type int", "give it such a value"),
    (set_("run.steps", "x" * 10_000), f"run.steps: '{'x' * 76}... is str; must be of type int", "give it"),
    (set_("run.name", "../x"), "run.name: '../x'", "one folder name"),
    (set_("run.name", "$(rm -r x)"), "run.name: '$(rm -r x)'", "one folder name"),
]


@pytest.mark.parametrize(("change", "begins", "says"), TABLE, ids=[begins[:40] for _, begins, _ in TABLE])
def test_bad_input_is_named_with_value_and_remedy(change, begins, says):
    found = faults(change)
    matching = [f for f in found if f.startswith(begins)]
    assert matching, found
    assert says in matching[0]


def test_a_number_that_is_whole_may_be_written_as_a_float():
    tree = examples.tree().to_dict()
    tree["run"] |= {"steps": 1e3}
    steps = resolve(tree).run.steps
    assert (type(steps), steps) == (int, 1000)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("0:1 image, 1:x text", "is neither a tower's name nor ranges of layers"),
        ("", "''; a tower is named by a stream: text, image"),
        ("0:1 image, 1:2 imaeg", "'imaeg'; a tower is named by a stream: text, image"),
        ("2:0 image", "has a range without a layer, 2:0"),
        ("0:1 image, 0:2 text", "has layers in two ranges, 0:1"),
    ],
)
def test_towers_that_are_badly_written_are_one_fault(written, says):
    (fault,) = faults(set_("towers.ffn.image", written))
    assert fault.startswith("towers.ffn.image: ")
    assert says in fault


def test_all_faults_come_at_once():
    changes = [
        set_("optim.lr", -1.0),
        set_("model.heads", 3),
        set_("data.batch", "four"),
        set_("optim.base_rules", (RULE | {"match": "norm"},)),
        set_("streams.image.budget", 5),
    ]
    found = faults(lambda tree: [change(tree) for change in changes])
    for key in ("optim.lr", "model.heads", "data.batch", "optim.rules, base_rules: no rule", "streams.image.budget"):
        assert any(f.startswith(key) for f in found), (key, found)


def asked(change, *sections):
    """Is a check of these sections run? It finds no fault of its own."""
    seen = []

    @reads(*sections)
    def check(config):
        seen.append(config)
        return iter(())

    tree = examples.tree("moe_tc4").unlock()
    change(tree)
    with pytest.raises(ConfigError):
        resolve(tree, check)
    return bool(seen)


@pytest.mark.parametrize(
    ("change", "runs", "does_not"),
    [
        (set_("optim.lr", "fast"), "ffn", "optim"),  # it cannot be read
        (set_("ffn.text.active", 9), "optim", "ffn"),  # nor the table of parameters where experts are wrong
        (set_("towers.ffn.image", "sound"), "optim", "towers"),
        (set_("model.heads", 3), "model", None),  # out of range, but a number
        (set_("optim.rules", [dict(match="ffn.text: active", lr=-1.0, decay=0.0)]), "ffn", None),  # words of another
    ],
    ids=["unreadable", "experts", "towers", "value", "words"],
)
def test_a_check_from_above_runs_where_what_it_reads_is_whole(change, runs, does_not):
    assert asked(change, runs)
    assert does_not is None or not asked(change, runs, does_not)


def test_a_fault_says_where_it_is_and_what():
    tree = examples.tree()
    c = resolve(tree)
    sections = Sections(**vars(c) | {"optim": dataclasses.replace(c.optim, lr=-1.0), "run": None})
    assert list(checks.faults(sections, {"run"})) == [Fault("optim.lr", "-1.0; must be above 0; raise it")]
    (fault,) = checks.faults(sections, {"run"})
    assert (fault.section, str(fault)) == ("optim", "optim.lr: -1.0; must be above 0; raise it")
    with pytest.raises(ConfigError, match=r"optim.lr: -1.0; must be above 0; raise it"):
        dataclasses.replace(c, optim=sections.optim)  # a Config is checked, however it is made


@pytest.mark.parametrize(
    ("overrides", "often"),
    [
        ({}, (1, 2)),
        ({"run.steps": "1000"}, (100, 250)),
        ({"run.steps": "1000", "run.eval_every": "7"}, (7, 250)),
        ({"run.steps": "1000", "run.save_every": "9"}, (100, 9)),
        ({"run.steps": "5"}, (1, 2)),
    ],
)
def test_more_steps_are_evaluated_and_saved_as_often(overrides, often):
    run = resolve(read("configs/digits.py:size=smoke", overrides)).run
    assert (run.eval_every, run.save_every) == often


def test_a_good_configuration_is_frozen_and_complete():
    c = examples.make()
    assert (c.vocab, c.length, c.modalities) == (24, 48, ("text", "image"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.model.layers = 3
    with pytest.raises(ConfigError, match=r"model.heads: 5"):
        dataclasses.replace(c, model=dataclasses.replace(c.model, heads=5))


def test_differences_are_dotted():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert differences(old, {"a": {"b": 2, "c": [1, 2]}, "e": 1}) == [
        "a.b: 1 -> 2",
        "d: 1 -> 'absent'",
        "e: 'absent' -> 1",
    ]


def test_differences_of_as_many_groups_are_those_of_each():
    old = {"rules": [{"match": "a", "lr": 1.0}, {"match": "b", "lr": 1.0}]}
    new = {"rules": [{"match": "a", "lr": 1.0}, {"match": "b", "lr": 0.5}]}
    assert differences(old, new) == ["rules[1].lr: 1.0 -> 0.5"]
    assert differences(old, {"rules": new["rules"][:1]})[0].startswith("rules: [{'match': 'a', 'lr': 1.0}, {")


def test_an_override_reaches_into_a_tuple_of_groups():
    given = "configs/digits.py:size=smoke"
    rules = resolve(read(given, {"optim.base_rules[1].decay": "0.3"})).optim.base_rules
    assert [(rule.match, rule.decay) for rule in rules] == [("norm", 0.0), (".*", 0.3)]
    with pytest.raises(ConfigError, match=r"optim.base_rules\[1\].speed: unknown key, value 3"):
        resolve(read(given, {"optim.base_rules[1].speed": "3"}))
    with pytest.raises(UserError, match=r"there is no optim.base_rules\[2\]: 2 of them, from 0"):
        read(given, {"optim.base_rules[2].decay": "0.3"})
    with pytest.raises(UserError, match=r"there is no optim.lr\[0\]: no tuple of groups there"):
        read(given, {"optim.lr[0].decay": "0.3"})


def both(*changes):
    return lambda tree: [change(tree) for change in changes]


OF_VECTORS = [
    # change of text, images (vectors, 12 wide) and sounds; the one fault's beginning, what it must also say
    (set_("streams.text.latent", 4), "streams.text.ids, first_id: 12, 0, but its tokens are vectors", "or latent=0"),
    (set_("streams.image.ids", 5), "streams.image.ids, first_id: 5, 0, but its tokens are vectors", "write 0, 0"),
    (set_("streams.image.first_id", 9), "streams.image.ids, first_id: 0, 9, but", "write 0, 0"),
    (set_("streams.image.latent", -1), "streams.image.latent: -1", "0 or more"),
    (set_("streams.text.objective", "flow"), "streams.text.objective: 'flow', but its tokens are 12 ids", "latent=P"),
    (
        set_("streams.image.objective", "next_token"),
        "streams.image.objective: 'next_token'",
        "flow, x, ddpm, latent, none",
    ),
    (set_("streams.image.objective", "eps"), "streams.image.objective: 'eps'", "x, ddpm, latent, none"),
    (
        set_("streams.image.diffusion.time_distribution", "cosine"),
        "streams.image.diffusion.time_distribution: 'cosine'",
        "logit_normal, beta",
    ),
    (set_("streams.image.diffusion.time", "concat"), "streams.image.diffusion.time: 'concat'", "add, norm"),
    (set_("streams.image.diffusion.copies", "three"), "streams.image.diffusion.copies: 'three'", "noised, both"),
    (set_("streams.image.diffusion.max_noise", 0.0), "streams.image.diffusion.max_noise: 0.0", "above 0 and at most 1"),
    (set_("streams.image.diffusion.max_noise", 1.5), "streams.image.diffusion.max_noise: 1.5", "above 0 and at most 1"),
    (set_("streams.image.diffusion.drop_rate", 1.0), "streams.image.diffusion.drop_rate: 1.0", "below 1"),
    (set_("streams.image.diffusion.shift", 0.0), "streams.image.diffusion.shift: 0.0", "above 0"),
    (set_("streams.image.diffusion.loss_centre", -0.5), "streams.image.diffusion.loss_centre: -0.5", "0 or more"),
    (drop("streams", "text", "diffusion"), "streams.text.diffusion: missing", "configs/base.py"),
    (
        set_("towers.stop_gradients", (dict(queries="sound", keys="sound"),)),
        "towers.stop_gradients[0]: sound and sound share the attention tower 'sound'",
        "untie towers.attn.sound",
    ),
    (
        set_("towers.stop_gradients", (dict(queries="film", keys="text"),)),
        "towers.stop_gradients[0].queries: 'film'",
        "text, image",
    ),
    (set_("towers.norm.image", "text"), "streams.image.width: 12, but it shares its norm tower with text", "untie"),
    (
        both(set_("streams.sound.modality", "text"), set_("streams.sound.loss_weight", 1.0)),
        "streams.sound.modality: 'text', also that of streams.text",
        "objective='none'",
    ),
    (
        lambda tree: tree.streams.text.update(latent=3, ids=0, objective="flow"),
        "streams: text, sound, image are all of vectors",
        "add a stream of text",
    ),
    (set_("data.blocks", "all"), "data.blocks: 'all'", "units, prefix, document"),
    (set_("data.blocks", "document"), "data.blocks: 'document', but streams.image.diffusion.copies", "write 'noised'"),
]


@pytest.mark.parametrize(("change", "begins", "says"), OF_VECTORS, ids=[begins[:40] for _, begins, _ in OF_VECTORS])
def test_bad_streams_of_vectors_are_named_once(change, begins, says):
    found = faults(change, vectors.tree("mot", 12))
    if "all of vectors" in begins:
        begins = "streams: "  # in whatever order
    assert len([f for f in found if f.startswith(begins)]) == 1, found
    assert says in next(f for f in found if f.startswith(begins))
    follow = ("attn.", "towers.", "streams: ", "streams.text.objective")  # from words that are to be vectors
    assert not [f for f in found if not f.startswith((begins, *follow))], found


@pytest.mark.parametrize("size", ["smoke", "demo", "small", "draw"])
@pytest.mark.parametrize("setting", [digits, chameleon, transfusion])
def test_every_laptop_size_of_every_setting_builds(setting, size):
    sizes = setting.SIZES if setting is not digits else digits.SIZES
    if size not in sizes:
        with pytest.raises(ValueError, match=f"size={size}: no such size; allowed: smoke, demo"):
            setting.get_config(f"size={size}")
        return
    for arch in ("dense", "mot", "loo_image", "moe_tc4"):
        c = resolve(setting.get_config(f"arch={arch},size={size}"), optim.uncovered)
        assert c.run.name == f"{setting.__name__.split('.')[1]}-{arch}-{size}"
        assert bool(c.streams["image"].latent) == (setting is transfusion)


@pytest.mark.parametrize("predicts", ["flow", "x", "ddpm"])
@pytest.mark.parametrize("copies", ["noised", "both"])
def test_transfusions_choices_build(predicts, copies):
    c = resolve(transfusion.get_config(f"predicts={predicts},copies={copies}"), optim.uncovered)
    image = c.streams["image"]
    assert (image.objective, image.copies, image.loss_weight) == (predicts, {"noised": 1, "both": 2}[copies], 5.0)
    assert image.budget == 5 * image.max_tokens == 80 * image.copies
    assert image.diffusion.time_distribution == ("uniform" if predicts == "ddpm" else "logit_normal")
    assert (image.diffusion.max_noise, image.diffusion.drop_rate) == (0.5, 0.1)


@pytest.mark.parametrize("argument", ["predicts=v", "copies=three", "size=9b", "colour=red"])
def test_unknown_choices_of_transfusion_are_refused(argument):
    with pytest.raises(ValueError, match=argument):
        transfusion.get_config(argument)

"""What tokens of a document are to each other, written into its integers, and packed."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mot import batches
from mot.config import ConfigError, resolve
from mot.data import packing, records
from tests.oracles import reference
from tests.support import twofold, vectors

C = vectors.make()
TEXT, IMAGE, SOUND = 0, 1, 2


def changed(c=C, blocks="units", **streams):
    """With other fields of some streams; those of `diffusion` by its name."""
    kinds = dict(c.streams)
    for name, fields in streams.items():
        s = kinds[name]
        inner = {k: v for k, v in fields.items() if k in vars(s.diffusion)}
        outer = {k: v for k, v in fields.items() if k not in inner}
        kinds[name] = dataclasses.replace(s, diffusion=dataclasses.replace(s.diffusion, **inner), **outer)
    return dataclasses.replace(c, streams=kinds, data=dataclasses.replace(c.data, blocks=blocks))


NEVER = changed(sound=dict(drop_rate=0.0))
IN_PLACE = changed(NEVER, image=dict(copies="noised"))


def fields(c, parts, number=0, d=None):
    """A document with its roles, and as it lies in a row: fields by position."""
    d = vectors.assign(c, d or vectors.document(1, parts), number)
    batch = vectors.pack(c, [[d]])
    batches.check(batch)
    position = np.concatenate([t.position[0] for t in batch.values()])
    order = np.argsort(position)[: len(d.token)]
    names = set(vars(batch["text"])) - {"value"}
    return d, {f: np.concatenate([getattr(t, f)[0] for t in batch.values()])[order] for f in names}


def test_a_unit_is_noised_in_place():
    given = vectors.document(1, "tIt")
    d, row = fields(IN_PLACE, "tIt")
    for field in ("token", "stream", "unit"):
        np.testing.assert_array_equal(getattr(d, field), getattr(given, field))
    np.testing.assert_array_equal(d.values[IMAGE], given.values[IMAGE])
    image = d.stream == IMAGE
    assert image.sum() == 4
    assert (d.span[image] == d.span[image][0]).all()
    assert d.span[image][0] > 0
    assert (d.span[~image] == 0).all()
    assert not d.private.any()
    np.testing.assert_array_equal(d.noise, np.where(image, 0.5, 0))  # a text follows
    np.testing.assert_array_equal(row["rope_position"][:, 0], np.arange(len(d.token)))
    np.testing.assert_array_equal(row["weight"][image], 1)
    first = int(image.argmax())
    assert row["weight"][first - 1] == 0, "a vector is no target"
    assert row["weight"][first + 4] == 1, "the words after the closing mark are"


def test_both_copies_a_private_noised_one_before_its_clean_one():
    given = vectors.document(1, "tIt")
    d, row = fields(NEVER, "tIt")
    image, private = d.stream == IMAGE, d.private
    noised, clean = np.flatnonzero(private), np.flatnonzero(image & ~private)
    begin = int(np.argmax(given.stream == IMAGE))
    np.testing.assert_array_equal(noised, begin + np.arange(4))
    np.testing.assert_array_equal(clean, begin + 4 + np.arange(4))
    np.testing.assert_array_equal(d.values[IMAGE], np.concatenate([given.values[IMAGE]] * 2))
    np.testing.assert_array_equal(row["rope_position"][noised], row["rope_position"][clean])
    public = np.flatnonzero(~private)
    np.testing.assert_array_equal(row["rope_position"][public, 0], np.arange(len(given.token)))
    np.testing.assert_array_equal(row["position"], np.arange(len(d.token)))
    spans = row["span"][noised], row["span"][clean]
    assert len(set(spans[0])) == len(set(spans[1])) == 1
    assert 0 != spans[0][0] != spans[1][0] != 0
    assert len(set(row["unit"][image])) == len(set(row["unit_seed"][image])) == 1
    np.testing.assert_array_equal(d.noise[noised], 1)  # no cap: what text reads is clean
    np.testing.assert_array_equal(row["weight"][noised], 1)
    np.testing.assert_array_equal(row["noise"][clean], 0)
    np.testing.assert_array_equal(row["weight"][clean], 0)
    np.testing.assert_array_equal(d.token[~private], given.token)


def test_documents_of_units_next_to_each_other_keep_their_own():
    c = changed(C, sound=dict(drop_rate=0.0, copies="both"))
    docs = [vectors.document(i, parts) for i, parts in enumerate(("I", "ISI", "SI"))]
    roomy = changed(c, text=dict(budget=40), image=dict(budget=40), sound=dict(budget=20))
    batch = vectors.pack(roomy, [[vectors.assign(c, d) for d in docs]])
    batches.check(batch)
    tokens = batch["image"]
    real = tokens.segment[0] != 0
    units = [tuple(tokens.unit[0][real][i : i + 4]) for i in range(0, real.sum(), 4)]
    assert len(units) == 8
    assert all(len(set(u)) == 1 for u in units)
    assert [u[0] for u in units][::2] == [u[0] for u in units][1::2], "a clean copy follows its noised one"
    assert len({u[0] for u in units}) == 4
    spans = tokens.span[0][real]
    assert len(set(spans)) == 8
    assert not set(spans) & set(batch["sound"].span[0][batch["sound"].segment[0] != 0])
    np.testing.assert_array_equal(batches.place_in_unit(tokens)[0][real], np.tile(np.arange(4), 8))


def test_inputs_alone_are_clean_and_weigh_nothing():
    c = changed(C, image=dict(objective="none"), sound=dict(objective="none", drop_rate=0.5))
    for number in range(20):
        d, row = fields(c, "tIS", number)
        vector = d.stream != TEXT
        assert not (d.noise.any() | d.private.any() | d.alone.any())
        assert (row["weight"][vector] == 0).all()
        assert len(d.token) == len(vectors.document(1, "tIS").token)
        assert (d.span[vector] == d.unit[vector]).all()
        assert len(set(row["segment"])) == 1
    silent = changed(C, text=dict(objective="none"), sound=dict(drop_rate=0.0))
    d, row = fields(silent, "tSt")
    np.testing.assert_array_equal(row["weight"] > 0, d.stream == SOUND)
    assert (d.noise[d.stream == SOUND] == 1).all(), "no text that is learned follows"


def test_a_prefix_block_joins_all_before_the_last_noised_unit():
    c = changed(NEVER, "prefix")
    d, row = fields(c, "ItISt")
    begin = int(np.argmax(d.stream == SOUND))
    assert len(d.token) == len(vectors.document(1, "ItISt").token), "earlier units are inputs, once"
    assert len(set(row["span"][:begin])) == 1
    sound = slice(begin, begin + 3)
    assert len({row["span"][0], row["span"][begin], 0}) == 3
    assert (row["span"][begin + 3 :] == 0).all()
    assert (d.noise[:begin] == 0).all()
    assert (row["weight"][:begin] == 0).all()
    assert (d.noise[sound] == 0.5).all()
    assert (row["weight"][sound] == 1).all()
    assert row["weight"][begin + 3 :].sum() == 4  # three words and <eos>
    d, row = fields(c, "St" + "I")  # its last unit has two copies
    first = int(np.argmax(d.private))
    assert d.private.sum() == 4
    assert len(set(row["span"][:first])) == 1
    assert len({row["span"][i] for i in (0, first, first + 4, first + 8)}) == 4
    plain = vectors.document(1, "tt")  # nothing noised: a text
    assert (vectors.assign(c, plain).span == 0).all()
    np.testing.assert_array_equal(vectors.assign(c, plain).weight, plain.weight)


def test_a_unit_that_ends_the_prefix_is_a_block_of_its_own():
    c = changed(NEVER, "prefix", image=dict(objective="none", ends_prefix=True))
    d, row = fields(c, "tIS")
    image, sound = (np.flatnonzero(d.stream == s) for s in (IMAGE, SOUND))
    prefix = np.arange(image[0])
    assert len(set(row["span"][prefix])) == 1
    assert len({row["span"][0], row["span"][image[0]], row["span"][sound[0]], 0}) == 4
    assert len(set(row["span"][image])) == len(set(row["span"][sound])) == 1
    assert (row["span"][image[-1] + 1 : sound[0]] == 0).all(), "markers between them"
    assert (row["weight"][: sound[0]] == 0).all()
    info = batches.Info(*(row[name][None] for name in ("position", "segment", "span", "private")))
    sees = np.asarray(batches.visible(info, info))[0]
    assert not sees[np.ix_(prefix, image)].any(), "the prefix does not see what ends it"
    assert sees[np.ix_(image, np.append(prefix, image))].all()
    assert sees[np.ix_(sound, np.arange(sound[-1] + 1))].all()


def test_the_document_override_joins_all_and_ids_are_inputs():
    c = changed(IN_PLACE, "document")
    d, row = fields(c, "tISt")
    assert len(set(row["span"])) == 1
    assert row["span"][0] > 0
    np.testing.assert_array_equal(row["weight"], d.stream != TEXT)
    assert (d.noise[d.stream != TEXT] == 1).all(), "nothing that follows is learned"


def test_the_document_override_with_clean_copies_is_refused():
    """Tokens before an image see its clean copy, and its noised copy sees those: it would read its own answer."""
    with pytest.raises(ConfigError, match=r"data.blocks: 'document'.*streams.image.diffusion.copies"):
        changed(NEVER, "document")


@pytest.mark.parametrize(
    ("parts", "caps"),
    [("St", [0.5]), ("tS", [1]), ("StS", [0.5, 1]), ("SS", [0.5, 1]), ("SI", [0.5])],
)
def test_noise_is_capped_where_learned_text_follows_alone(parts, caps):
    d, _ = fields(NEVER, parts)
    sound = d.stream == SOUND
    np.testing.assert_array_equal(d.noise[sound], np.repeat(caps, 3))
    if "I" in parts:  # whose opening marker is learned, too
        assert (d.noise[d.private] == 1).all()


def test_forced_words_do_not_cap_the_noise():
    given = vectors.document(1, "St")
    d, _ = fields(NEVER, "", d=given._replace(weight=np.where(given.stream == TEXT, 0, given.weight)))
    assert (d.noise[d.stream == SOUND] == 1).all()


def test_a_dropped_unit_is_a_segment_of_its_own_and_the_rest_stays():
    lone = vectors.alone_at(C, vectors.document(7, "tS"))
    batch = vectors.pack(C, [[vectors.assign(C, vectors.document(1, "t")), lone, vectors.assign(C, lone)]])
    batches.check(batch)
    text, sound = batch["text"], batch["sound"]
    assert len(set(sound.segment[0, :3])) == 1
    assert sound.segment[0, 0] not in (0, *text.segment[0])
    words = text.segment[0][text.segment[0] != 0]
    assert (np.diff(words) >= 0).all()
    together = vectors.pack(C, [[vectors.alone_at(C, vectors.document(7, "tS"), alone=False)]])
    alone = vectors.pack(C, [[lone]])
    for name in ("text", "sound"):
        for field in ("token", "position", "rope_position", "unit", "unit_seed", "span", "noise", "target", "weight"):
            np.testing.assert_array_equal(*(getattr(b[name], field) for b in (together, alone)), err_msg=field)
    assert (together["sound"].segment == together["text"].segment[0, 0])[0, :3].all()


def test_a_dropped_noised_copy_leaves_its_clean_one():
    c = changed(NEVER, image=dict(drop_rate=0.5))
    d = vectors.alone_at(c, vectors.document(7, "tIt"))
    np.testing.assert_array_equal(d.alone > 0, d.private)
    batch = vectors.pack(c, [[d]])
    batches.check(batch)
    image, text = batch["image"].segment[0], batch["text"].segment[0]
    assert image[0] == image[3] != image[4]
    assert image[4] == image[7] == text[0]


def test_drops_come_at_their_rate_vary_with_the_number_and_spare_what_text_reads():
    c = changed(C, sound=dict(drop_rate=0.1))
    d = vectors.document(7, "tS")
    drawn = np.array([vectors.assign(c, d, number).alone.any() for number in range(4000)])
    assert abs(drawn.mean() - 0.1) < 0.02
    max_tokens = np.diff(np.flatnonzero(np.diff(drawn.astype(int)))).max()
    assert max_tokens < 150, "drops are spread over numbers"
    others = [vectors.assign(c, vectors.document(i, "tS"), 5).alone.any() for i in range(2000)]
    assert abs(np.mean(others) - 0.1) < 0.03
    both = changed(c, image=dict(drop_rate=0.3))
    two = [vectors.assign(both, vectors.document(7, "II"), number) for number in range(2000)]
    two = np.array([x.alone[x.private][[0, 4]] > 0 for x in two])
    np.testing.assert_allclose(np.cov(two.T), [[0.21, 0], [0, 0.21]], atol=0.03, err_msg="units are drawn apart")
    again = [vectors.assign(c, d, number).alone.any() for number in range(100)]
    np.testing.assert_array_equal(again, drawn[:100])
    for number in range(200):
        assert not vectors.assign(c, vectors.document(7, "tSt"), number).alone.any()


def test_what_is_cut_keeps_its_vectors():
    c = changed(IN_PLACE, sound=dict(copies="both"))
    d = vectors.document(3, "tItSIt")
    begin = int(np.flatnonzero(np.diff((d.unit == 2).astype(int)) == -1)[0]) + 1
    piece = packing.cut(d, begin, len(d.token))
    assert (piece.token[0], piece.stream[0]) == (vectors.BOS, 0)
    np.testing.assert_array_equal(piece.values[IMAGE], d.values[IMAGE][4:])
    np.testing.assert_array_equal(piece.values[SOUND], d.values[SOUND])
    d, _ = fields(c, "", d=piece)
    assert {s: len(x) for s, x in d.values.items()} == {IMAGE: 4, SOUND: 6}
    whole = vectors.pack(c, [[vectors.assign(c, vectors.document(3, "tItSIt"))]])
    part = vectors.pack(c, [[d]])
    assert part["image"].unit_seed[0, 0] == whole["image"].unit_seed[0, 4], "a unit's noise is its own wherever it lies"


def test_the_plan_counts_every_copy():
    lengths = np.array([5, 4, 3])

    class One:
        def lengths(self, g):
            return np.array([5, 4, 3])

        def cuts(self, g):
            return np.array([[1, 1, 0, 0], [12, 5, 4, 3]])

        def enter(self, step, g):
            return None

    plan = packing.RowPlan(One(), (100, 16, 100), (100, 16, 100), 4, copies=(1, 2, 1))
    row = plan.next_row()
    assert len(row) == 2
    assert all((piece.begin, piece.end) == (0, lengths.sum()) for piece in row)


def broken(field, where, value):
    """A good batch with one field of one token changed."""
    batch = vectors.batch(C)
    stream, at = where
    tokens = batch[stream]
    x = np.array(getattr(tokens, field))
    x[0, at] = value(x, at) if callable(value) else value
    return batch | {stream: tokens.replace(**{field: x})}


@pytest.mark.parametrize(
    ("field", "where", "value", "says"),
    [
        ("weight", ("image", 4), 1.0, "a clean vector has a weight"),
        ("noise", ("image", 0), 0.0, "a clean vector has a weight"),
        ("weight", ("text", 4), 1.0, "a vector is the target"),
        ("target", ("text", 1), lambda x, at: x[0, at] + 1, "a target is not the id at position"),
        ("position", ("image", 1), 0, "permutation"),
        ("segment", ("text", 1), 2, "one after another"),
        ("segment", ("text", 1), 0, "padding does not come last"),
    ],
)
def test_check_finds_what_is_wrong(field, where, value, says):
    batches.check(vectors.batch(C))
    with pytest.raises(ValueError, match=says):
        batches.check(broken(field, where, value))


def runs(c, d):
    """A document with its roles as `sees_by_runs` takes it, and who sees whom by the batch's integers."""
    batch = vectors.pack(c, [[d]])
    batches.check(batch)
    info = batches.Info(
        *(np.concatenate([x[0] for x in xs]) for xs in zip(*(t.info for t in batch.values()), strict=True))
    )
    order = np.argsort(info.position)[: len(d.token)]
    sees = np.asarray(batches.visible(*[batches.Info(*(x[order] for x in info))] * 2))
    latent = np.isin(d.stream, list(d.values))
    kind = np.where(d.private, "noised", np.where(latent, "vectors", "ids"))
    number = np.where(latent, d.unit, 0) * 2 + d.private  # ids of any streams are one run, and each copy is one
    begins = [0, *(np.flatnonzero(np.diff(number)) + 1), len(kind)]
    return [(str(kind[a]), b - a) for a, b in itertools.pairwise(begins)], sees


def test_a_picture_is_drawn_before_it_is_read():
    """BAGEL's order: the noised copy, which nothing else sees, its clean copy, then what later words read."""
    rules = [twofold.rule("drawn,seen", "middle"), twofold.rule("drawn", "last"), twofold.rule("seen")]
    c = twofold.make(rules, names=("seen", "drawn"))
    layout = twofold.layout(c)
    d = records.render(twofold.record("ItIt"), layout, 0, 0)
    names = [list(c.streams)[s] for s in d.stream]
    assert [name for name, _ in itertools.groupby(names)] == ["text", "seen", "text", "drawn", "seen", "text"]
    made = vectors.assign(c, d)
    seen, drawn = (list(c.streams).index(name) for name in ("seen", "drawn"))
    copies = made.private[made.stream == drawn]
    assert copies.tolist() == [True] * 3 + [False] * 3
    np.testing.assert_array_equal(made.noise, made.private)
    np.testing.assert_array_equal(made.weight[made.stream == drawn], copies)
    assert not made.weight[made.stream == seen].any()
    _, sees = runs(c, made)
    noised, clean = (
        np.flatnonzero((made.stream == drawn) & (made.private == is_noised)) for is_noised in (True, False)
    )
    read = np.flatnonzero((made.stream == seen) & (made.unit != made.unit[1:].min()))
    read = read[read > clean.max()]
    words = np.flatnonzero(np.arange(len(d.token) + 3) > read.max())
    assert sees[np.ix_(read, clean)].all()
    assert sees[np.ix_(words, read)].all()
    assert not sees[np.ix_(noised, [*clean, *read])].any()
    assert not sees[np.ix_([*clean, *read, *words], noised)].any()


parts = st.text("tI", min_size=1, max_size=6)
APPEARANCES = st.sampled_from(["drawn", "drawn:input", "seen", "codes"])
streams = st.lists(APPEARANCES, min_size=1, max_size=3, unique_by=lambda s: s.partition(":")[0])


@st.composite
def rules(draw):
    named = draw(streams)
    learns = [s for s in named if s == "drawn"]
    place = draw(st.sampled_from(["", "first", "middle", "last", "only"]))
    return twofold.rule(
        ",".join(learns + [s for s in named if s not in learns]), place, draw(st.sampled_from(["", "a", "b"]))
    )


@settings(max_examples=60, deadline=None)
@given(parts, st.lists(rules(), max_size=3), st.sampled_from(["both", "noised"]), st.sampled_from(["a", "b"]))
def test_units_appear_as_the_rules_say_and_see_what_came_before(document, some, copies, name):
    c = twofold.make(some, copies)
    d = records.render(twofold.record(document), twofold.layout(c, name), 0, 0)
    want = []
    for i, part in enumerate(document):
        place = reference.place_of_unit(list(document), i)
        matching = [r["streams"] for r in some if r["place"] in ("", place) and r["source"] in ("", name)]
        want.append("text" if part == "t" else (matching or ["drawn,codes,seen"])[0])
    names = list(c.streams)
    got = []
    for (unit, stream), tokens in itertools.groupby(zip(d.unit, d.stream, d.given, strict=True), lambda x: x[:2]):
        if unit:
            got.append(names[stream] + ":input" * int(next(tokens)[2]))
    assert got == [s for w in want if w != "text" for s in w.split(",")]
    told, sees = runs(c, vectors.assign(c, d))
    np.testing.assert_array_equal(sees, reference.sees_by_runs(told))


@settings(max_examples=60, deadline=None)
@given(st.lists(parts, min_size=1, max_size=4), st.lists(rules(), max_size=3))
def test_a_plan_counts_what_is_read(documents, some):
    """Tokens by stream from lengths alone, whole and piece by piece, are those of the document."""
    c = twofold.make(some)
    source = twofold.source(c, [twofold.record(parts, seed) for seed, parts in enumerate(documents)])
    for i in range(source.count):
        d = source.read(i)  # raises where `lengths` says otherwise
        cuts = source.cuts(i)
        np.testing.assert_array_equal(cuts[-1], [len(d.token), *source.lengths(i)])
        for end, *by_stream in cuts.tolist():
            np.testing.assert_array_equal(np.bincount(d.stream[:end], minlength=len(c.streams)), by_stream)
            assert end == len(d.token) or d.unit[end] == 0, "no unit is cut"
    np.testing.assert_array_equal(source.totals(), sum(source.lengths(i) for i in range(source.count)))


def test_a_rule_may_ask_for_what_a_dataset_lacks():
    c = twofold.make([twofold.rule("drawn,seen")])
    source = twofold.source(c, [twofold.record("tI", of=("image", "latents")), twofold.record("I", of=("image",))])
    assert source.lengths(0).tolist() == [7, 4, 3, 0]  # by stream: text, codes, drawn, seen
    assert [source.read(i).unit.max() for i in (0, 1)] == [5, 1]


@pytest.mark.parametrize(
    ("of", "says"),
    [
        (("image_vectors", "image"), "image_vectors that follow no image"),
        (("image", "latents", "latents"), "latents twice for one image"),
    ],
)
def test_a_partner_that_is_missing_is_told(of, says):
    with pytest.raises(ValueError, match=says):
        records.render(twofold.record("tI", of=of), twofold.layout(twofold.make()), 0, 0)


FAULTS = [
    (lambda c: c.data.update(roles=(twofold.rule("drawm"),)), "data.roles[0].streams: 'drawm'; allowed: codes"),
    (lambda c: c.data.update(roles=(twofold.rule("seen:output"),)), "data.roles[0].streams: 'seen:output'; allowed"),
    (lambda c: c.data.update(roles=(twofold.rule("seen,seen"),)), "data.roles[0].streams: 'seen,seen'; must be of one"),
    (lambda c: c.data.update(roles=(twofold.rule("seen,drawn"),)), "data.roles[0].streams: 'seen,drawn'; drawn would"),
    (lambda c: c.data.update(roles=(twofold.rule("seen", "end"),)), "data.roles[0].place: 'end'; allowed: '', first"),
    (lambda c: c.data.update(roles=(twofold.rule("seen", "", "c"),)), "data.roles[0].source: 'c'; allowed: '', a, b"),
    (lambda c: c.streams.seen.update(representation="latents"), "streams.seen.representation: 'latents', also that of"),
    (
        lambda c: c.streams.drawn.diffusion.update(copies="noised") or c.data.update(blocks="document"),
        "data.blocks: 'd",
    ),
]


@pytest.mark.parametrize(("change", "begins"), FAULTS, ids=[begins for _, begins in FAULTS])
def test_bad_rules_are_told(change, begins):
    tree = twofold.tree(names=("codes", "drawn") if "blocks" in begins else ("codes", "seen", "drawn"))
    change(tree)
    if "also that" in begins:
        tree.streams.drawn.latent = 2
    with pytest.raises(ConfigError) as error:
        resolve(tree)
    assert [fault.startswith(begins) for fault in error.value.faults] == [True], error.value.faults

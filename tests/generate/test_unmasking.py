"""Masked ids by unmasking, against the whole document computed again in every step."""

import dataclasses

import numpy as np
import pytest

from configs import archs, base
from mot.config import resolve
from mot.config.options import Settings
from mot.data import layout, packing
from mot.data.layout import Format, Medium, Stretch
from mot.errors import UserError
from mot.generate.sampling import Sampler
from mot.model import transformer
from mot.objectives import diffusion
from tests.oracles import reference
from tests.support import examples

PAD, BOS, EOS, OPEN, CLOSE = range(5)
TEXT, LEVELS, TOKENS, ROOM = 14, 9, 6, 64
FORMAT = Format("text", BOS, EOS, (PAD, BOS, EOS, OPEN, CLOSE), (Medium("image", OPEN, CLOSE, TOKENS),))
GREEDY = Settings(temperature=0.0, steps=3)


def make(arch, text=None, image=None):
    tree = examples.tree(arch, attention="reference")

    def stream(modality, ids, first, masking):
        learns = {} if masking is None else dict(objective="masked", masking=masking)
        return base.stream(modality, 16, 24, ids=ids, first_id=first, budget=ROOM, max_tokens=ROOM, **learns)

    tree.streams = dict(text=stream("text", TEXT, 0, text), image=stream("image", LEVELS, TEXT, image))
    archs.choose(tree, arch)
    tree.data.blocks = "units" if text is None else "document"
    return resolve(tree)


PICTURES = make("mot", image=dict(distribution="cosine", drop_rate=0.1))
WHOLE = make("dense", text=dict(by="document"), image={})


def logits(c, weights, d):
    """Of every token of a document, `[n, V]` in its order."""
    names = list(c.streams)
    batch = packing.pack([[d]], names, [ROOM] * len(names))
    output = transformer.forward(weights, batch, c)
    found = np.zeros((2 * ROOM, c.vocab))
    for h_RD, tokens in output.hidden:
        found[np.asarray(tokens.position[0])] = np.asarray(h_RD @ transformer.head(weights, c))
    return found[: len(d.token)]


def unmasked(predict, ids, allowed, left):
    """Ids of one row with none hidden, after as many steps as `left` has: how many are hidden after each."""
    for remaining in left:
        hidden = ids == -1
        scores = np.where(allowed, predict(ids), -np.inf)
        places, likeliest = reference.surest(scores, hidden, hidden.sum() - remaining)
        ids = ids.copy()
        ids[places] = likeliest[places]
    return ids


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_picture_is_unmasked_as_its_whole_document_says(guidance):
    c, weights = PICTURES, examples.weights(PICTURES)
    prompts = [[Stretch("text", np.array([5, 6, 7]))], [Stretch("text", np.array([9]))]]
    settings = GREEDY._replace(guidance=guidance)
    found = Sampler(weights, c, FORMAT)(prompts, settings, text=0, media=1, opens="image")
    left = [int(np.floor(TOKENS * np.cos(np.pi / 2 * n / 3) + 1e-9)) for n in (1, 2, 3)]
    assert left == [5, 3, 0]
    allowed = np.arange(c.vocab) >= TEXT
    allowed[c.mask_id] = False
    for prompt, got in zip(prompts, found, strict=True):
        head = layout.document(prompt, c, FORMAT, "image")
        n = len(head.token)

        def predict(ids, head=head, n=n):
            token = np.append(head.token, np.where(ids < 0, c.mask_id, ids))
            unit = np.append(np.zeros(n), np.ones(TOKENS))
            d = packing.document(0, 0, token, unit, unit=unit, span=unit, weight=0 * unit)
            with_text, alone = (logits(c, weights, x)[n:] for x in (d, d._replace(alone=unit.astype(np.int32))))
            return with_text if guidance == 1 else diffusion.guided(with_text, alone, guidance)

        want = unmasked(predict, np.full(TOKENS, -1), allowed, left)
        np.testing.assert_array_equal(got.parts[0].data, want - TEXT)
        assert got.parts[0].stream == "image"


@pytest.mark.parametrize("block", [0, 3])
def test_text_is_unmasked_as_its_whole_document_says(block):
    c, weights = WHOLE, examples.weights(WHOLE)
    room = 8
    prompts = [[Stretch("text", np.array([5, 6, 7]))], [Stretch("image", np.array([1, 2])), Stretch("text", [9])]]
    found = Sampler(weights, c, FORMAT)(prompts, GREEDY._replace(steps=6, block=block), text=room)
    allowed = np.zeros(c.vocab, bool)
    allowed[[EOS, *range(CLOSE + 1, TEXT)]] = True
    blocks = np.arange(room) // (block or room)
    each = 6 // (blocks.max() + 1)
    for prompt, got in zip(prompts, found, strict=True):
        head = layout.document(prompt, c, FORMAT)
        n = len(head.token)

        def predict(ids, head=head, n=n):
            token = np.append(head.token, np.where(ids < 0, c.mask_id, ids))
            d = packing.document(0, 0, token, np.append(head.stream, np.zeros(room)), span=np.ones(n + room))
            return logits(c, weights, d._replace(weight=np.zeros(n + room, "f")))[n:]

        ids = np.full(room, -1)
        for b in range(blocks.max() + 1):
            inside = blocks == b
            size = inside.sum()

            def of_block(mine, ids=ids, inside=inside):
                whole = ids.copy()
                whole[inside] = mine
                return predict(whole)[inside]

            left = [size - -(-size * n // each) for n in range(1, each + 1)]
            ids[inside] = unmasked(of_block, ids[inside], allowed, left)
        end = int((ids == EOS).argmax()) if (ids == EOS).any() else room
        assert got.ended == (end < room)
        written = np.concatenate([part.data for part in got.parts]) if got.parts else np.zeros(0)
        np.testing.assert_array_equal(written, ids[:end])


def test_rows_are_their_own_and_follow_from_the_seed():
    sampler = Sampler(examples.weights(PICTURES), PICTURES, FORMAT)
    prompts = [[Stretch("text", np.array([5 + i, 6]))] for i in range(3)]
    how = dict(text=4, media=1, opens="image", seed=3)
    settings = GREEDY._replace(temperature=1.0)
    together = sampler(prompts, settings, **how)
    apart = sampler(prompts[1:], settings, first=1, **how)
    for a, b in zip(together[1:], apart, strict=True):
        np.testing.assert_array_equal(a.parts[0].data, b.parts[0].data)
    other = sampler(prompts, settings, **how | dict(seed=4))
    assert any((a.parts[0].data != b.parts[0].data).any() for a, b in zip(together, other, strict=True))
    assert all(((row.parts[0].data >= 0) & (row.parts[0].data < LEVELS)).all() for row in together)


def test_what_cannot_be_drawn_is_refused():
    weights = examples.weights(PICTURES)
    undropped = make("mot", image={})
    with pytest.raises(UserError, match=r"streams\.image\.masking\.drop_rate = 0"):
        Sampler(weights, undropped, FORMAT)([[]], GREEDY._replace(guidance=2.0), opens="image")
    with pytest.raises(UserError, match="reads image and draws none"):
        Sampler(weights, WHOLE, FORMAT)([[]], GREEDY, opens="image")
    silent = dataclasses.replace(PICTURES, data=dataclasses.replace(PICTURES.data, blocks="document"))
    with pytest.raises(UserError, match="text with objective='masked'"):
        Sampler(weights, silent, FORMAT)([[]], GREEDY)

"""Films in order, reversed and shuffled: the same frames, in other places of time; and two steps."""

import numpy as np
import pytest

from mot.data.records import Dataset
from mot.prepare import dataset_tokenizers
from tests.support import recipes

ORDERS = ("ordered", "reversed", "shuffled")
SMALL = dict(content=("video:bits",), video_frames=4, video_side=8, video_patch=4, video_ids=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The three datasets, as the recipe's commands make them, of small films."""
    given, out = tmp_path_factory.mktemp("given"), tmp_path_factory.mktemp("order")
    bits = np.random.default_rng(0).integers(0, 256, (24, 4, 8, 1), np.uint8)
    np.savez(given / "films.npz", bits=bits, split=np.arange(24) // 18)
    recipes.prepared(out / "ordered", given / "films.npz", **SMALL)
    for order in ORDERS[1:]:
        like = dict(like=str(out / "ordered"), video_order=order)
        recipes.prepared(out / order, given / "films.npz", **SMALL | like)
    return out


def test_the_same_frames_stand_in_another_order(data):
    read = {order: Dataset(data / order, "train") for order in ORDERS}
    moved = 0
    for i in range(read["ordered"].count):
        films = {order: records[i].spans[0].data.reshape(4, 4) for order, records in read.items()}
        np.testing.assert_array_equal(films["reversed"], films["ordered"][::-1])
        frames = {order: sorted(map(tuple, film.tolist())) for order, film in films.items()}
        assert frames["shuffled"] == frames["ordered"]
        moved += (films["shuffled"] != films["ordered"]).any()
    assert moved > read["ordered"].count / 2
    tokenizer = dataset_tokenizers.load(data / "ordered" / "tokenizers").media["video"]
    assert read["ordered"].about["tokenizers"]["video"]["shape"] == list(tokenizer.shape) == [4, 2, 2]


@pytest.mark.parametrize("order", ["shuffled", *(pytest.param(o, marks=pytest.mark.slow) for o in ORDERS[:2])])
def test_two_steps(data, tmp_path, order):
    run = recipes.two_steps("video_order", tmp_path, f"data={data / order}")
    assert run.name == f"order-{order}-smoke"

"""A folder with two steps."""

import pytest

from tests.support.checkpoints import TREES, save_step


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (10, 20):
        save_step(folder, step, TREES, {"step": step}, keep=3)
    return folder

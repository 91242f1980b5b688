"""A folder with two steps."""

import pytest

from mot import checkpoint
from tests.support.checkpoints import TREES


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (10, 20):
        checkpoint.save(folder, step, TREES, {"step": step}, keep=3)
    return folder

"""FAULTS 1: runs that are really killed resume to the same bytes. (`make soak` kills more of them.)"""

import pytest

from tests.support import killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return killed.results(killed.finish(tmp_path_factory.mktemp("whole")))


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, whole):
    assert killed.trial(tmp_path, 0, whole) == ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_twenty_killed_runs_resume_to_the_same_bytes(tmp_path, seed, whole):
    assert killed.trial(tmp_path, seed, whole) == ""

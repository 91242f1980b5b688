"""Four virtual devices, strict broadcasting, caches in the checkout, and no skip that is not listed."""

import os
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache")  # what is measured and copied here is no business of the user's own
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

_lines = [
    x.split("#")[0].strip()
    for x in (ROOT / "tests" / "skips.txt").read_text(encoding="utf-8").splitlines()
    if "::" in x
]
LISTED = {line.removeprefix("?") for line in _lines}
ALWAYS = {line for line in _lines if not line.startswith("?")}
SLOW = {line for line in (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines() if "::" in line}
_ran, _skipped = set(), set()


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked
def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def one_device():
    return jax.devices()[:1]


@pytest.fixture(scope="module")
def quick_compilation():
    """Halves what compilation takes, which is nearly all of some modules' time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def pytest_runtest_logreport(report):
    """On the controlling process, also under xdist."""
    _ran.add(report.nodeid)
    if report.skipped:
        _skipped.add(report.nodeid)


def pytest_collectreport(report):
    """A whole module may be skipped, too."""
    if report.skipped:
        _skipped.add(report.nodeid)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput"):
        return
    unlisted, listed_but_run = _skipped - LISTED, (ALWAYS & _ran) - _skipped
    if unlisted or listed_but_run:
        print(f"\ntests/skips.txt differs: skipped but not listed {unlisted}, listed but run {listed_but_run}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED

"""Virtual devices, strict broadcasting, caches in the checkout, and no skip that is not listed."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache")  # what is measured and copied here is no business of the user's own
# Compiling is most of the time. Few optimisations and XLA's older emitter of fusions take a third of it (17 s to 6 s of
# CPU for one test of the model, jaxlib 0.10.2). Processes that tests start inherit all this.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if version("jaxlib").startswith("0.10."):  # later ones lack the flag, and end a process that has it
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.support.bucket import NAME, served  # noqa: E402
from tests.support.devices import devices  # noqa: E402
from tests.support.once import once  # noqa: E402

# Tracing makes many small objects, and what collects them walks all modules each time: a seventh of the time.
gc.set_threshold(100_000, 50, 50)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

_lines = [
    x.split("#")[0].strip()
    for x in (ROOT / "tests" / "skips.txt").read_text(encoding="utf-8").splitlines()
    if "::" in x
]
LISTED = {line.removeprefix("?") for line in _lines}
ALWAYS = {line for line in _lines if not line.startswith("?")}
DATA = "../shared/data"  # beside the project: what needs it may be skipped, and says so
_ran, _skipped = set(), set()


@pytest.fixture(scope="session", autouse=True)
def four_devices():
    """What a test sees that does not ask for more."""
    with devices(4):
        yield


@pytest.fixture(scope="session", autouse=True)
def made_once():
    """Runs of one configuration share their programs, and their embedded data."""
    with once():
        yield


@pytest.fixture(scope="session")
def one_device():
    return jax.devices()[:1]


@pytest.fixture(scope="session")
def bucket():
    """The address of a bucket on loopback, which this process finds, and those that it starts."""
    with served() as environment:
        os.environ.update(environment)
        yield f"gs://{NAME}"


@pytest.fixture
def optimised():
    """Programs as a user's: for what is measured of them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_runtest_logreport(report):
    """On the controlling process, also under xdist."""
    _ran.add(report.nodeid)
    if report.skipped and DATA not in str(report.longrepr):
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

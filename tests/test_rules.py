"""The project's own rules: imports run one way, files and functions stay small, names keep their shapes."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import jax
import pytest

from mot import model
from mot.config import resolve
from mot.train.state import init_state
from mot.train.step import make_step
from tests import mutations
from tests.support import examples
from tests.support.sources import MODULES, PACKAGES, ROOT, SOURCES, name_of
from tests.support.training import IMPORTS_TENSORFLOW, printed

# The rooms, from the ground up: each may import what lies on a lower floor. A package of mot is a room, and so is a
# module beside them.
FLOORS = [
    ["errors", "files", "console", "configs"],
    ["config"],
    ["sharding", "batches", "tokenizers"],
    ["data", "model"],
    ["prepare", "objectives", "optim", "checkpoint"],
    ["runs", "measures"],
    ["train", "scaling"],
    ["generate", "plan", "interop"],
    ["launch"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# What configuration files import: they are judged before anything heavy is loaded.
LIGHT = {
    "collections",
    "configs",
    "difflib",
    "fsspec",
    "json",
    "math",
    "ml_collections",
    "pathlib",
    "random",
    "re",
    "runpy",
    "typing",
}
LIGHT |= {"scipy"}  # where it is used: Sobol points of a search

# What an extra brings is known to one file.
KNOWS = {
    "mot.data.seqio_bridge": {"tensorflow", "seqio", "sentencepiece"},
    "mot.runs.services": {"wandb", "trackio"},
    "mot.generate.harness": {"lm_eval"},
}


def imports(path):
    """The modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level < 2, f"{path} imports from above its own folder"
            own = [path.parent.name] * node.level  # `from . import match`, in a package's own folder
            module = ".".join(filter(None, [*own, node.module]))
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else module for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room_of(module):
    """`model` of `mot.model.router`, `launch` of `launch.train`; None of what is not ours, and of the entry."""
    first, _, rest = module.partition(".")
    if first not in PACKAGES or module in ("mot", "mot.__main__"):
        return None
    return rest.partition(".")[0] if first == "mot" else first


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_one_way(path):
    me = name_of(path)
    room = room_of(me)
    for other in imports(path):
        if room is not None and (there := room_of(other)) not in (None, room):
            assert FLOOR[there] < FLOOR[room], f"{me} imports {other}, which is not on a lower floor"
        assert room != "configs" or other.split(".")[0] in LIGHT, f"{me} imports {other}"
        heavy = {"torch", "tensorflow", "transformers", "diffusers", "seqio", "sentencepiece", "wandb", "trackio"}
        heavy |= {"lm_eval"}
        assert other.split(".")[0] not in heavy - KNOWS.get(me, set()), f"{me} imports {other}"


def test_the_house_has_few_rooms_and_each_has_a_floor():
    rooms = {room_of(module) for module in MODULES} - {None}
    assert rooms == set(FLOOR)
    assert len(rooms) <= 22
    assert len(FLOORS) <= 9


def test_nothing_imports_tensorflow_unasked():
    """`make test-seqio` asks this too, where TensorFlow is there to be imported."""
    assert printed(IMPORTS_TENSORFLOW) == "[]\n"


def test_axes_are_those_of_the_key():
    """Each letter at the end of an array's name is explained in mot/model/__init__.py, where it has one meaning."""
    key = set(re.findall(r"(?:^|  )([A-Z1])  ", model.__doc__, re.MULTILINE))
    assert len(key) > 20
    for path in [p for p in SOURCES if name_of(p).startswith(("mot.model", "mot.objectives", "mot.batches"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else ""
            if axes := re.search(r"[a-z]\w*_([A-Z][A-Z0-9]*)$", name):
                assert set(axes[1]) <= key, f"{path}: {name}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_stay_small(path):
    assert path.stem not in ("utils", "util", "helpers", "common")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name


def names_its_encoding(call):
    """False for a text file that would be read or written in the locale's encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg for keyword in call.keywords}
    if name in ("read_text", "write_text"):
        return "encoding" in given
    if name in ("run", "Popen", "check_output"):
        return not given & {"text", "universal_newlines"} or "encoding" in given
    return True


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_text_files_are_utf_8(path):
    """Ruff's PLW1514 holds what `open` opens, and paths where it sees that they are paths; this holds the rest."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if not names_its_encoding(call)]


def test_every_mutation_stands_once():
    assert not list(mutations.missing())
    assert len({mutation.name for mutation in mutations.MUTATIONS}) == len(mutations.MUTATIONS) >= 40


def test_no_test_is_imported():
    """What several tests need lies in tests/support."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        imported = [module for module in imports(path) if re.search(r"(^|\.)test_", module)]
        assert not imported, f"{path} imports {imported}"


def test_the_oracle_imports_nothing_from_mot():
    assert not any(name.startswith("mot") for name in imports(ROOT / "tests" / "oracles" / "reference.py"))


SHAPED = re.compile(r"[a-z][a-z0-9_]*_([A-Z1]+)")


def shape_faults(frame):
    """Locals of one call whose rank is not what the name says, or whose letters disagree on a size."""
    sizes = {}
    for name, value in frame.f_locals.items():
        shape, letters = getattr(value, "shape", None), SHAPED.fullmatch(name)
        if letters is None or not isinstance(shape, tuple):
            continue
        where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}: {name} {shape}"
        if len(shape) != len(letters[1]):
            yield where
            continue
        for letter, size in zip(letters[1], shape, strict=True):
            if sizes.setdefault(letter, 1 if letter == "1" else size) != size:
                yield f"{where}: {letter} is also {sizes[letter]}"


def traced(f, *args):
    """Runs f under eval_shape and checks every frame of mot when it returns; also how many names were seen."""
    faults, seen = [], set()

    def profile(frame, event, _):
        if (
            event == "return"
            and "/mot/" in frame.f_code.co_filename
            and "site-packages" not in frame.f_code.co_filename
        ):
            seen.update(n for n in frame.f_locals if SHAPED.fullmatch(n))
            faults.extend(shape_faults(frame))

    sys.setprofile(profile)
    try:
        jax.eval_shape(f, *args)
    finally:
        sys.setprofile(None)
    return sorted(set(faults)), seen


@pytest.mark.parametrize(
    ("arch", "how", "names"),
    [
        ("mot", "chunked", {"acc_KQH"}),
        ("mot", "reference", {"s_BKGTS"}),
        ("moe_ec4", "chunked", {"score_BCE", "likely_BCE", "place_RX"}),
        ("learned_mot", "chunked", {"expert_BCX", "qkv_RA"}),
    ],
)
def test_array_names_tell_their_shapes(arch, how, names):
    tree = examples.tree(arch, attention=how, qk_norm="layer")
    c, batch = resolve(tree), examples.batch(budgets=(40, 30))
    state = jax.eval_shape(lambda: init_state(c))
    faults, seen = traced(make_step(c, 2), state, batch)
    assert not faults, "\n".join(faults)
    assert {"x_RD", "h_BTD", "x_RNH", "logits_RV", "q_BTNH", "o_BTNH"} | names <= seen


def test_the_shape_check_finds_a_wrong_name():
    def wrong():
        x_BT = jax.numpy.zeros((2, 3, 4))
        y_BD, z_BT = jax.numpy.zeros((2, 3)), jax.numpy.zeros((5, 3))
        return list(shape_faults(sys._getframe())), x_BT, y_BD, z_BT

    faults = wrong()[0]
    assert len(faults) == 2
    assert "x_BT (2, 3, 4)" in faults[0]
    assert "B is also 2" in faults[1]


def test_the_core_is_free_of_heavy_frameworks():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    heavy = re.compile(r"torch|tensorflow|transformers|diffusers|libtpu|seqio|jax\[(tpu|cuda)", re.IGNORECASE)
    light = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert not [x for x in light if heavy.match(x)]
    assert len([x for extra in project["optional-dependencies"].values() for x in extra if heavy.match(x)]) >= 4

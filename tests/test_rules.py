"""The project's own rules: imports run one way, files and functions stay small, names keep their shapes."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

from mot import config, train
from tests import examples

ROOT = Path(__file__).parent.parent
# Each room, below those that may import it. DESIGN: config, ops, batch <- sharding, attention <- params <- model, ...
ORDER = [
    ["__main__", "errors", "files", "interrupts", "limits", "phases", "provenance", "settings"],
    ["checks_mesh", "kernels", "data.compressed"],
    ["checks", "ops", "attention", "diffusion", "tokenizers.text", "tokenizers.codebook", "tokenizers.given"],
    ["data.inputs"],
    ["config", "data.about", "tokenizers.image", "tokenizers.audio", "data.raw", "data.media"],
    ["tokenizers.vectors", "tokenizers.waveform"],
    ["batch", "keys", "caches", "sharding", "params", "data.tables", "data.arrays"],
    ["router", "checkpoint", "peak"],
    ["data.packing", "dispatch", "embed", "mixing", "data.readers"],
    ["data.mixture", "data.records", "data.roles"],
    ["model"],
    ["data.embedded", "objectives", "flops", "optim"],
    ["rundir"],
    ["tensorboard"],
    ["data.tokenise", "data.seqio_bridge", "data.pipeline", "data.budgets", "metrics", "state"],
    ["data.prepare"],
    ["data.export", "data.sources", "evaluate", "upcycle"],
    ["log"],
    ["profile"],
    ["data.formats", "train"],
    ["ensemble", "sample"],
]
LEVEL = {f"mot.{room}": level for level, rooms in enumerate(ORDER) for room in rooms}
PACKAGES = {"mot": {"mot"}, "configs": {"configs"}, "scaling": {"mot", "scaling"}}
PACKAGES["launch"] = {"mot", "scaling", "launch"}
SOURCES = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]


def imports(path):
    """The project's modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            own = [path.parent.name] * node.level  # `from . import match`, in a package's own folder
            module = ".".join(filter(None, [*own, node.module]))
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name if name in LEVEL else module for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_one_way(path):
    me = name_of(path)
    package = me.split(".")[0]
    for other in imports(path):
        if other.split(".")[0] in PACKAGES:
            assert other.split(".")[0] in PACKAGES[package], f"{me} imports {other}"
        if me in LEVEL and other in LEVEL:
            assert LEVEL[other] < LEVEL[me], f"{me} imports {other}, which is not below it"
        assert package != "configs" or other.split(".")[0] in (
            "configs",
            "ml_collections",
            "collections",
            "difflib",
            "typing",
            "json",
            "math",
            "pathlib",
            "fsspec",
            "re",
        )
        heavy = {"torch", "tensorflow", "transformers", "seqio", "sentencepiece"}
        allowed = {"tensorflow", "seqio", "sentencepiece"} if me == "mot.data.seqio_bridge" else set()
        assert other.split(".")[0] not in heavy - allowed, f"{me} imports {other}"


def test_nothing_imports_tensorflow_unasked():
    """`make test-seqio` runs this too, where TensorFlow is there to be imported."""
    code = "import sys, mot.train, launch.data; print(sorted({'tensorflow', 'seqio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_every_room_has_its_level():
    rooms = {name_of(p) for p in (ROOT / "mot").rglob("*.py") if p.name != "__init__.py"}
    assert rooms == set(LEVEL)


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


def test_every_slow_test_that_is_listed_is_there():
    """By its name; a line that names nothing would hide nothing, and stay."""
    for line in [x for x in (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines() if "::" in x]:
        file, name = line.partition("[")[0].split("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), line


def test_the_oracle_imports_nothing_from_mot():
    assert not any(name.startswith("mot") for name in imports(ROOT / "tests" / "reference.py"))


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
        ("mot", "chunked", {"acc_KRH"}),
        ("mot", "reference", {"s_BKGTS"}),
        ("moe_ec4", "chunked", {"score_BCE", "likely_BCE", "place_RX"}),
        ("learned_mot", "chunked", {"expert_BCA", "qkv_RE"}),
    ],
)
def test_array_names_tell_their_shapes(arch, how, names):
    tree = examples.tree(arch, attention=how, qk_norm="layer")
    c, batch = config.build(tree), examples.batch(budgets=(40, 30))
    state = jax.eval_shape(lambda: train.init_state(c))
    faults, seen = traced(train.make_step(c, 2), state, batch)
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
    heavy = re.compile(r"torch|tensorflow|transformers|libtpu|seqio|jax\[(tpu|cuda)", re.IGNORECASE)
    light = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert not [x for x in light if heavy.match(x)]
    assert len([x for extra in project["optional-dependencies"].values() for x in extra if heavy.match(x)]) >= 4

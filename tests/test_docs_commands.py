"""What README and the pages of docs/ tell a user to type is what the commands take, and their links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from launch import arguments, flags, sweep_rows
from mot.config import Experts, load
from mot.config.routers import ROUTERS
from mot.errors import UserError
from mot.model import router

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLE = "configs/digits.py:arch=mot,size=smoke"  # whose keys every configuration has
NAMED = ("data.shares", "data.sources")  # groups in which keys have a user's own names
OTHERS = {
    "python",
    "python3",
    "pip",
    "pytest",
    "ruff",
    "git",
    "cd",
    "source",
    "tensorboard",
    "trackio",
    "wandb",
}  # programs that are not ours
MARK = "<!-- not checked:"  # on the line before a block, with the reason


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str
    marked: bool


def blocks(page):
    """The fenced blocks of a page, also of one that is indented in a list."""
    lines = page.read_text(encoding="utf-8").splitlines()
    opened, start = None, 0
    for number, line in enumerate(lines):
        fence = re.match(r"\s*```(\S*)", line)
        if fence and opened is None:
            opened, start = fence[1], number
        elif fence:
            marked = start > 0 and lines[start - 1].strip().startswith(MARK)
            yield Block(page, start + 1, opened, "\n".join(lines[start + 1 : number]), marked)
            opened = None
    assert opened is None, f"{page}:{start + 1}: a block without an end"


def commands(block):
    """The command lines of a block, as a shell splits them."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            yield words


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [
    pytest.param(words, id=f"{block.page.relative_to(ROOT)}:{block.line} {shlex.join(words)}")
    for block in BLOCKS
    if block.language in ("sh", "bash") and not block.marked
    for words in commands(block)
]


def check(argv):
    """Raises, or ends, where `mot` would refuse a command line whatever data and runs there are."""
    is_group = argv[0] in ("data", "checkpoint")
    command = argv[1] if is_group else argv[0]
    p = arguments.PARSERS[command]()
    argv = argv[2:] if is_group else argv[1:]
    if command != "config" and "--config" not in p.flags():
        options, overrides = p.parse_args(argv), {}
    else:
        options, overrides = flags.parse(p, argv)
    if command == "launch" and options.words[0] in arguments.PARSERS:
        check(options.words)
    if command == "prepare":
        arguments.judged_data(p, options)
    if getattr(options, "config", "") or getattr(options, "file", ""):
        check_config(options.config if "config" in options else options.file, overrides)
    if command == "sweep":
        check_sweep(p, options)
    if command == "demo" and "data=" not in (options.config or ""):
        arguments.demo_trees(options, overrides)
    if getattr(options, "runs", None) and command == "train":
        config = flags.judged(load.read(options.config, overrides))
        arguments.several(options.runs, options.config, overrides, config, flags.judged)


def check_sweep(p, options):
    """A sweep as far as it can be judged without the data that it names; a user's own is the page's."""
    file, _, rest = options.sweep.partition(":")
    if options.sweep == arguments.STATUS or "data=" in rest:
        assert options.folder or "config=" in rest
        return
    if file == "my_sweeps.py":
        Path(file).write_text(python_of("sweep.md", "from configs.sweeps"), encoding="utf-8")
    arguments.of_sweep(p, options)
    sweep_rows.judged(options.sweep, sweep_rows.read(options.sweep), Path("out"), lambda _: ())


def ended(argv):
    """The exit code with which `check` ends, as help does; None where it returns."""
    try:
        check(argv)
    except SystemExit as end:
        return end.code
    return None


def check_config(file_and_arg, overrides):
    """A configuration as far as it can be judged without the data that it names."""
    file, _, arg = file_and_arg.partition(":")
    stated = load.run(load.file_of(file_and_arg), file_and_arg)["ARGUMENTS"]
    given = dict(item.split("=", 1) for item in arg.split(",") if item)
    assert set(given) <= set(stated), f"{file_and_arg}: takes {', '.join(stated)}"
    if "data" in given or file.endswith("records.py"):
        sized = [name for name in ("size", "rung") if name in given and stated[name].allowed]
        assert all(given[name] in stated[name].allowed for name in sized), file_and_arg
        example = load.read(EXAMPLE, {})
        for key in overrides:
            assert key.startswith(NAMED) or key_of(example, key), f"--config.{key}"
    elif "..." not in arg:
        flags.judged(load.read(file_and_arg, overrides))


def key_of(tree, key):
    for part in key.split("."):
        if not hasattr(tree, "keys") or part not in tree:
            return False
        tree = tree[part]
    return True


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_is_one_that_mot_takes(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # as anywhere: files of configs/ come with mot
    program, *argv = words
    name = Path(program).name
    if name == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert argv, "a target"
        assert all(re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE) for target in argv)
    elif name == "mot":
        end = ended(argv)
        assert not end, f"exit code {end}"
    else:
        assert name in OTHERS, f"{program}: no command of mot; write {MARK} WHY --> on the line before its block"


@pytest.mark.parametrize(
    "line",
    [
        "train --config=configs/digits.py:arch=mot,size=smoke --config.optim.rate=1",
        "train --config=configs/digits.py:size=huge",
        "train --config=configs/records.py:data=data/x,sizes=smoke",
        "train --config=configs/records.py:data=data/x --config.optim.rate=1",
        "train --config=configs/digits.py:size=smoke --runs data.batch=2,4",
        "sample runs/a --promt x",
        "data prepare photos",
        "demo --archs dens",
        "sweep configs/sweeps.py:leave_one,size=smoke",
        "sweep configs/sweeps.py:archs,sizes=smoke",
    ],
)
def test_a_wrong_command_is_found(line):
    with pytest.raises((AssertionError, SystemExit, UserError, ValueError)) as found:
        check(shlex.split(line))
    assert not isinstance(found.value, SystemExit) or found.value.code == 2


LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page):
    """The names of a page's headings, as the pages' builder makes them, and those that it states."""
    text = re.sub(r"^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    named = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
    return named | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page}: {link}"
        assert ROOT / "docs" not in page.parents or ROOT / "docs" in target.parents, f"{page}: {link} leaves docs/"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"


def test_every_page_is_in_the_menu():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in PAGES if ROOT / "docs" in page.parents}


def python_of(page, begins):
    """The Python block of a page that begins so."""
    return next(block.text for block in blocks(ROOT / "docs" / "howto" / page) if block.text.startswith(begins))


def test_the_router_of_its_page_routes(monkeypatch):
    page = "add-a-router.md"
    row = python_of(page, "def _always") + "\nROUTERS = {\n" + python_of(page, '    "hash": Router(') + "\n}"
    table, module = {"Router": type(next(iter(ROUTERS.values())))}, {}
    exec(row, table)
    exec(python_of(page, '"""A token goes'), module)
    monkeypatch.setitem(ROUTERS, "hash", table["ROUTERS"]["hash"])
    monkeypatch.setattr(router, "implementation", lambda name: type("hash", (), module))
    fixed = table["ROUTERS"]["hash"].fixed
    spec = Experts(
        **dict(experts=4, width=0, shared=0, shared_gate=False, router="hash", overflow="earliest", balance_rate=0.0)
        | fixed
    )
    token_BC = jnp.asarray(np.random.default_rng(0).integers(0, 9, (2, 64)))
    real_BC = jnp.arange(64)[None] < jnp.array([[64], [50]])
    places_BC = jnp.tile(jnp.arange(64), (2, 1))
    traffic = router.Traffic(jnp.zeros((2, 64, 8)), None, token_BC, real_BC, places_BC, jnp.zeros_like(token_BC))
    choice, report = router.route(traffic, {}, spec, 1)
    expert_BC, real = np.asarray(choice.expert_RX).reshape(2, 64), np.asarray(real_BC)
    assert (expert_BC[~real] == 4).all()
    by_id = {int(i): set(expert_BC[real & (np.asarray(token_BC) == i)]) for i in range(9)}
    assert all(len(experts) == 1 for experts in by_id.values())
    assert len(set.union(*by_id.values())) > 1
    assert float(report.load_BME.sum()) == real.sum()
    assert spec.causal


def test_the_objective_of_its_page_is_exact():
    module = {}
    text = python_of("add-an-objective.md", '"""Predicts the velocity on the cosine')
    exec(text, module)
    rng = np.random.default_rng(0)
    x, e = (jnp.asarray(rng.standard_normal((50, 3)), jnp.float32) for _ in range(2))
    t = jnp.linspace(0.01, 0.99, 50)[:, None]
    alpha, sigma = module["mix"](t)
    got = module["clean_and_noise"](module["target"](x, e, t), alpha * x + sigma * e, t)
    np.testing.assert_allclose(got[0], x, atol=1e-5)
    np.testing.assert_allclose(got[1], e, atol=1e-5)


def test_make_clears_no_environment_that_it_did_not_make(tmp_path):
    """README has users of accelerators install into `.venv` by hand."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "kept").touch()
    command = ["make", f"VENV={own}", f"PYTHON={sys.executable}", "lint"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode != 0
    assert f"{own} was not made by make, which would clear it" in done.stdout
    assert (own / "kept").exists()

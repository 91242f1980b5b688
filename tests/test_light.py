"""Help and typing errors are answered before anything heavy is imported, with what may have been meant."""

import json
import subprocess
import sys

from launch.arguments import PARSERS
from launch.cli import COMMANDS
from tests.conftest import ROOT

HEAVY = ("jax", "numpy", "pandas", "matplotlib", "sklearn", "scipy", "pyarrow", "tokenizers", "orbax", "optax", "rich")
SMOKE = "--config=configs/digits.py:size=smoke"
TYPOS = {  # command line: what is said
    ("trian",): "did you mean 'train'?",
    ("data", "prepar", "README.md"): "did you mean 'prepare'?",
    ("train", "--config=configs/digit.py"): "did you mean 'configs/digits.py'?",
    ("train", "--config=digits.py"): "did you mean 'configs/digits.py'?",
    ("train", "--config=configs/digits.py:archs=mot"): "did you mean 'arch'?",
    ("train", "--config=configs/digits.py:arch=mott"): "did you mean 'mot'?",
    ("train", "--config=configs/digits.py:size=smokey"): "allowed: smoke, demo, draw; did you mean 'smoke'?",
    ("train", "--config=configs/ladder.py:setting=chameleo"): "did you mean 'chameleon'?",
    ("train", "--config=configs/transfusion.py:copies=boht"): "allowed: noised, both; did you mean 'both'?",
    ("train", SMOKE, "--profil2"): "did you mean '--profile'?",
    ("train", SMOKE, "--confg.optim.lr=3"): "did you mean '--config'?",
    ("train", SMOKE, "--config.optim.lrr=3"): "optim.lrr: unknown key, value 3; allowed: lr, end_lr",
    ("train", SMOKE, "--config.optim.scedule=linear"): "did you mean 'schedule'?",
    ("train", SMOKE, "--config.optim.schedule=cosin"): "did you mean 'cosine'?",
    ("train", SMOKE, "--config.optim.lr=fast"): "optim.lr: 'fast' is str; must be of type float",
    ("config", "configs/digits.py", "optim.schedul"): "did you mean 'optim.schedule'?",
    ("evaluate", "configz"): "there is no such run directory; name one that exists; did you mean 'configs'?",
    ("sample", "configs", "--solver=heum"): "did you mean 'heun'?",
    ("data", "inspect", "configz"): "there is no such dataset; name one that exists; did you mean 'configs'?",
    ("data", "prepare", "README.mb", "--out=nowhere"): "did you mean 'README.md'?",
    ("data", "prepare", "README.md", "--out=nowhere", "--format=txt"): "did you mean 'text'?",
    ("data", "prepare", "README.md", "--out=nowhere", "--held-out=2"): "--held-out=2.0; a fraction, from 0 to below 1",
    ("data", "prepare", "README.md", "--out=nowhere", "--ids=depth"): "--ids depth: write NAME=COUNT",
    ("data", "prepare", "README.md", "--out=nowhere", "--ids=Depth=4"): "a modality's name is lower-case letters",
    ("data", "prepare", "README.md", "--out=nowhere", "--ids=depth=4", "--ids=depth=5"): "says 2 times how many",
    ("data", "prepare", "README.md", "--out=nowhere", "--content=caption"): "write kind:field, the kind one of text",
    ("data", "prepare", "README.md", "--out=nowhere", "--content=depth:codes"): "a modality that --ids declares",
    ("data", "prepare", "README.md", "--out=nowhere", "--separator="): "--separator '': it is empty",
    ("data", "prepare", "README.md", "--out=nowhere", "--image-side=30"): "is no multiple of --image-patch=4",
    ("data", "prepare", "README.md", "--out=nowhere", "--image-side=5000"): "--image-side=5000; at most 1024; lower it",
    ("data", "prepare", "README.md", "--out=nowhere", "--audio-rate=96000"): "at most 48000; lower it",
    ("data", "prepare", "README.md", "--out=nowhere", "--sample=0"): "--sample=0; must be 1 or more; raise it",
    ("data", "prepare", "--out=nowhere"): "give files or folders, or --seqio=NAME",
    ("demo", "--archs=dense,motr"): "did you mean 'mot'?",
    ("demo", "--setting=transfuson"): "did you mean 'transfusion'?",
    ("report", "--ouT=x", "configs"): "did you mean '--out'?",
    ("plan", "--topology=v5q:4x4x4"): "no such chip as 'v5q'",
}
RUN = f"""
import contextlib, io, json, sys
from launch import cli
for argv in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = cli.main(argv)
        except SystemExit as error:
            code = error.code
    heavy = [name for name in {HEAVY} if name in sys.modules]
    print(json.dumps([code, heavy, said.getvalue()]))
"""


def answers(lines):
    """Exit code, heavy modules imported so far, and output of each command line, all in one fresh process."""
    command = [sys.executable, "-c", RUN]
    given = json.dumps([list(line) for line in lines])
    done = subprocess.run(
        command, input=given, capture_output=True, encoding="utf-8", cwd=ROOT, timeout=120, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_help_needs_nothing_heavy_and_lists_the_arguments_of_a_configuration():
    lines = [["--help"], ["data", "--help"], *([name, "--help"] for name in COMMANDS if name != "data")]
    lines += [["data", name, "--help"] for name in ("prepare", "inspect")]
    assert {line[-2] for line in lines[2:]} == set(PARSERS)
    takes = [["train"], ["evaluate"], ["demo"], ["plan"], ["data", "inspect"]]
    of_file = [[*command, "--config=configs/digits.py", "--help"] for command in takes]
    found = answers([*lines, *of_file, ["config", "configs/digits.py", "--help"]])
    for line, (code, heavy, said) in zip(lines, found, strict=False):
        assert (code, heavy) == (0, []), line
        assert "usage: mot" in said
    for code, heavy, said in found[len(lines) :]:
        assert (code, heavy) == (0, [])
        for text in ("arguments of configs/digits.py", "arch=mot", "mot_attn_ffn", "size=demo: smoke, demo, draw"):
            assert text in said


def test_typing_errors_are_answered_before_anything_heavy_is_imported():
    for (line, says), (code, heavy, said) in zip(TYPOS.items(), answers(TYPOS), strict=True):
        assert (code, heavy) == (2, []), (line, said)
        assert says in said, (line, said)
        assert "Traceback" not in said

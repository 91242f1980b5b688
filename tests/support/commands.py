"""Runs mot's commands in this process, or all in one that is new: `python -m tests.support.commands`.

That one reads JSON, a list of argument lists. Of each command it prints a JSON line: the exit code, which heavy modules
have been imported so far, and what was said.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import traceback

from launch import cli

HEAVY = ("jax", "numpy", "pandas", "matplotlib", "sklearn", "scipy", "pyarrow", "tokenizers", "orbax", "optax", "rich")


def run(*argv) -> tuple[int, str, str]:
    """Exit code, output and errors of one command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(list(map(str, argv)))
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
            code = 1
    return code, out.getvalue(), err.getvalue()


def succeeds(*argv) -> tuple[str, str]:
    """Output and errors of a command that must succeed."""
    code, out, err = run(*argv)
    assert code == 0, f"{argv}: {err}"
    return out, err


def answers(commands, root, folder):
    """Exit code, heavy modules imported so far, and what was said, of each command in one new process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.commands"],
        input=json.dumps([list(argv) for argv in commands]),
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        timeout=120,
        check=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    for argv in json.load(sys.stdin):
        code, out, err = run(*argv)
        heavy = [name for name in HEAVY if name in sys.modules]
        print(json.dumps([code, heavy, out + err]), flush=True)

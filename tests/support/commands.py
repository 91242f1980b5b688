"""Runs mot's commands one after another in this process, as their user would: `python -m tests.support.commands FILE`.

FILE is JSON, a list of argument lists. Each command's exit code and the end of what it said are printed as JSON lines.
"""

import contextlib
import io
import json
import sys
import traceback
from pathlib import Path

from launch import cli


def run(argv: list[str]) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = cli.main(argv)
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
            code = 1
    return code, said.getvalue()[-3000:]


if __name__ == "__main__":
    for argv in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        print(json.dumps(run(argv)), flush=True)

"""One self-contained page about runs: which architecture needed how many of dense's steps, for each modality."""

import sys
from pathlib import Path

from launch import flags
from launch.process import guarded
from scaling import report, runs


def main(argv: list[str] | None = None) -> int:
    p = flags.parser("report", __doc__, "mot report runs/demo/*")
    p.add_argument("runs", nargs="+", help="run directories, or globs of them")
    p.add_argument("--out", type=Path, help="folder of report.html; default: where the first run lies")
    options = p.parse_args(argv)
    found = runs.find(options.runs)
    out = options.out or found[0].path.parent
    print(report.write(found, out))
    print(f"report: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

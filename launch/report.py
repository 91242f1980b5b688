"""One self-contained page about runs: which architecture needed how many of dense's steps, for each modality."""

import sys

from launch import arguments
from launch.process import guarded
from scaling import report, runs


def main(argv: list[str] | None = None) -> int:
    p = arguments.report()
    options = p.parse_args(argv)
    found = runs.find(options.runs)
    out = options.out or found[0].path.parent
    print(report.write(found, out))
    print(f"report: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

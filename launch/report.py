"""One self-contained page about runs: which architecture needed how many of dense's steps, for each modality."""

import sys

from launch import arguments
from launch.process import guarded
from mot.console import phase
from scaling import report, runs


def main(argv: list[str] | None = None) -> int:
    p = arguments.report()
    options = p.parse_args(argv)
    with phase("reading the runs and drawing the page"):
        found = runs.find(options.runs)
        out = options.out or found[0].path.parent
        sentence = report.write(found, out)
    print(sentence)
    print(f"report: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

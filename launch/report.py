"""One page about runs, or about a sweep: what it asked is answered first; with --watch it renews itself."""

import sys

from launch import arguments
from launch.process import guarded
from mot.console import phase
from mot.files import as_path
from scaling import report, runs


def main(argv: list[str] | None = None) -> int:
    p = arguments.report()
    options = p.parse_args(argv)
    if options.watch:
        from launch import watch  # whose server nobody else needs

        folder = as_path(options.runs[0])
        watch.watch(folder, options.out or folder, arguments.PORT if options.port is None else options.port)
    with phase("reading the runs and drawing the page"):
        found = runs.find(options.runs)
        out = options.out or found[0].path.parent
        sentence = report.write(found, out)
    if not any(run.arch == "dense" for run in found):
        report.print_table(found)  # there is no slope to tell, and losses still tell something
    print(sentence)
    print(f"report: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

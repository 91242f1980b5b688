"""`mot COMMAND ...`: one entry for all commands."""

import sys

from launch.process import PLANNING, alone, guarded, leave_on_signals, with_environment

COMMANDS = {
    "demo": "train dense and MoT on real text and images, batch for batch; a table and a report",
    "train": "train one configuration, or resume it",
    "evaluate": "held-out losses of a run",
    "sample": "pictures, text and interleaved documents from a run",
    "data": "prepare a dataset from your files, or inspect one",
    "report": "one page: how many of dense's steps each architecture needed, for each modality",
    "plan": "compile a configuration for TPUs that are not there: does it fit, how fast can it be",
}
USAGE = (
    "usage: mot COMMAND ...\n\n"
    + "\n".join(f"  {name:10}{what}" for name, what in COMMANDS.items())
    + "\n\n`mot COMMAND --help` shows its options. Example:\n  mot train --config=configs/digits.py:arch=mot,size=smoke"
    + "\n\nMOT_DEBUG=1 in the environment also shows tracebacks and what libraries log."
)


def main(argv: list[str] | None = None) -> int:
    if argv is None:
        leave_on_signals()
        with_environment(PLANNING if sys.argv[1:2] == ["plan"] else None)
        return alone(main)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"mot: no command {argv[0]!r}; allowed: {', '.join(COMMANDS)}\n\n{USAGE}", file=sys.stderr)
        return 2
    return guarded(COMMAND_OF[argv[0]], argv[1:])


# Imported when called: JAX takes seconds, which help and a typing error need not wait for.
def _demo(argv):
    from launch import demo

    return demo.main(argv)


def _train(argv):
    from launch import train

    return train.main(argv)


def _evaluate(argv):
    from launch import evaluate

    return evaluate.main(argv)


def _sample(argv):
    from launch import sample

    return sample.main(argv)


def _data(argv):
    from launch import data

    return data.main(argv)


def _report(argv):
    from launch import report

    return report.main(argv)


def _plan(argv):
    from launch import plan

    return plan.main(argv)


COMMAND_OF = {
    "demo": _demo,
    "train": _train,
    "evaluate": _evaluate,
    "sample": _sample,
    "data": _data,
    "report": _report,
    "plan": _plan,
}

if __name__ == "__main__":
    sys.exit(main())

"""`mot COMMAND ...`: one entry for all commands."""

import importlib
import sys
from contextlib import nullcontext
from functools import partial

from launch.process import PLANNING, alone, guarded, leave_on_signals, refuse_odd_environment, with_environment
from mot.config.allowed import meant
from mot.console import phase

COMMANDS = {
    "demo": "train dense and MoT on real text and images, batch for batch; a table and a report",
    "train": "train one configuration, or resume it",
    "sweep": "train every row of a list of configurations; what it would cost; how far it is",
    "evaluate": "held-out losses of a run; ranking, retrieval, distances, what a classifier says",
    "replay": "one step of a run again: every leaf's gradient, every document's loss",
    "probe": "how modalities compete inside a run: gradients, representation, attention, experts",
    "sample": "pictures, text and interleaved documents from a run",
    "checkpoint": "list, verify, show or compare the checkpoints of runs",
    "data": "prepare a dataset from your files, or inspect one",
    "tokenizer": "train a tokenizer of pictures or sounds: ids or vectors that a network makes",
    "import": "a published model (Hugging Face) into a run directory",
    "export": "a run's weights, tokenizer and card as Hugging Face's transformers read them",
    "config": "show a configuration: every key, what it is for, what it may be, its default",
    "report": "one page about runs or a sweep: what it asked is answered first; --watch renews it",
    "launch": "run a command here, on Slurm, GKE, TPU VMs or by SkyPilot; follow it",
    "plan": "compile a configuration for TPUs that are not there: does it fit, how fast can it be",
    "coords": "how large activations are at several widths: does optim.transfer hold",
}
USAGE = (
    "usage: mot COMMAND ...\n\n"
    + "\n".join(f"  {name:12}{what}" for name, what in COMMANDS.items())
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
        near = meant(argv[0], COMMANDS)
        told = f"mot: no command {argv[0]!r}; allowed: {', '.join(COMMANDS)}{near and f'; {near}'}"
        print(f"{told}\n\n{USAGE}", file=sys.stderr)
        return 2
    return guarded(partial(_run, argv[0]), argv[1:])


def _run(command: str, argv: list[str]) -> int:
    """JAX takes seconds to import, which help and a typing error need not wait for: they are answered first."""
    from launch import arguments

    if (code := arguments.check(command, argv)) is not None:
        return code
    computes = command not in ("config", "launch")
    if computes:
        refuse_odd_environment()
    with phase("loading mot and JAX") if computes else nullcontext():
        module = importlib.import_module(f"launch.{command}")
    return module.main(argv)


if __name__ == "__main__":
    sys.exit(main())

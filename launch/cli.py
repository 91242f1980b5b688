"""`mot COMMAND ...`: one entry for all commands, and how each of them ends."""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

from mot.limits import meant
from mot.phases import phase

COMMANDS = {
    "demo": "train dense and MoT on real text and images, batch for batch; a table and a report",
    "train": "train one configuration, or resume it",
    "evaluate": "held-out losses of a run",
    "sample": "pictures, text and interleaved documents from a run",
    "data": "prepare a dataset from your files, or inspect one",
    "config": "show a configuration: every key, what it is for, what it may be, its default",
    "report": "one page: how many of dense's steps each architecture needed, for each modality",
    "plan": "compile a configuration for TPUs that are not there: does it fit, how fast can it be",
}
USAGE = (
    "usage: mot COMMAND ...\n\n"
    + "\n".join(f"  {name:10}{what}" for name, what in COMMANDS.items())
    + "\n\n`mot COMMAND --help` shows its options. Example:\n  mot train --config=configs/digits.py:arch=mot,size=smoke"
)


def main(argv: list[str] | None = None) -> int:
    if argv is None:
        _leave_on_signals()
        argv = sys.argv[1:]
        with_environment(PLANNING if argv[:1] == ["plan"] else None)
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
    with phase("loading mot and JAX") if command != "config" else nullcontext():
        module = importlib.import_module(f"launch.{command}")
    return module.main(argv)


# TPU's compiler asks a machine of the cloud about itself and waits; it is told instead, and that others may use it too.
PLANNING = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # programs for other machines would only fill it
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # compilers allocate in all threads at once
}

# XLA allocates gigabytes anew for every step on CPU, and the kernel would clear them every time: up to half of a step
# of experts. So one heap keeps what it has once had, in huge pages.
MALLOC = {"hugetlb": 1, "arena_max": 1, "mmap_max": 0, "trim_threshold": 10**12}


def with_environment(more: dict[str, str] | None = None) -> None:
    """Starts this process anew with what only its environment can tell it; what the user has set there stays.

    Compiled programs are kept: a run of another seed, or a resumed one, starts at once.
    """
    from mot.tokenizers.text import cache_folder

    wanted = {
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in MALLOC.items()),
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder() / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    } | (more or {})
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    if missing and sys.platform == "linux":
        os.environ.update(missing)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def guarded(command: Callable[[list[str] | None], int], argv: list[str] | None = None, more: dict | None = None) -> int:
    """Runs a command: 2 and one message for bad input, 130 or 75 after a signal that training does not answer.

    Without `argv` it is this process's own (`python -m launch.train`): it gets its environment, and `more` of it.
    """
    from mot.errors import Hung, UserError

    if argv is None:
        _leave_on_signals()
        with_environment(more)
    try:
        return command(argv)
    except Hung as error:
        print(f"mot: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
        print(f"mot: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mot: interrupted", file=sys.stderr)
        return 130


def _leave_on_signals() -> None:
    """SIGINT and SIGTERM end this process at once; training has its own answer while it runs.

    No exception: one that is raised inside a garbage collector's callback, as during imports, is printed and lost.
    """

    def leave(number, _):
        os.write(2, b"mot: interrupted\n")
        os._exit(75 if number == signal.SIGTERM else 130)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


if __name__ == "__main__":
    sys.exit(main())

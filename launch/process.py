"""How a process of mot begins and ends: its environment, its screen, and what is said in place of a traceback.

`MOT_DEBUG=1` in the environment shows what this keeps from the screen: tracebacks, and what libraries log.
"""

import errno
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from mot.errors import HUNG, Hung, UserError, shortened
from mot.files import cache_folder

DEBUG = "MOT_DEBUG"
WATCHED = 1.0  # seconds between looks at a parent

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

# What libraries written in C++ log, and warnings of Python's, also those of worker processes.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "NONE", "PYTHONWARNINGS": "ignore"}


def with_environment(more: dict[str, str] | None = None) -> None:
    """Starts this process anew with what only its environment can tell it; what the user has set there stays.

    Compiled programs are kept: a run of another seed, or a resumed one, starts at once. Text and file names are UTF-8
    in any locale; what is printed stays in the terminal's encoding.
    """
    cache = cache_folder()
    wanted = {
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in MALLOC.items()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "PYTHONIOENCODING": getattr(sys.stdout, "encoding", "utf-8"),
    }
    wanted |= {"JAX_COMPILATION_CACHE_DIR": str(cache / "jax")} if cache else {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    wanted |= ({} if is_debugged() else QUIET) | (more or {})
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    if not sys.flags.utf8_mode:
        missing["PYTHONUTF8"] = "1"
    if missing and sys.platform == "linux":
        os.environ.update(missing | _unusual(cache))
        with suppress(OSError):  # as it is, it is slower
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _unusual(cache: Path | None) -> dict[str, str]:
    """Where the user's own cache cannot be written, one line says so, and libraries keep theirs beside ours."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "mot"
    if cache == usual:
        return {}
    instead = f"{cache} is used" if cache else "nothing is kept"
    remedy = "set HOME or XDG_CACHE_HOME to a folder that can"
    print(f"mot: the cache {usual} cannot be written, so {instead}; {remedy}", file=sys.stderr)
    return {"XDG_CACHE_HOME": str(cache.parent), "MPLCONFIGDIR": str(cache / "matplotlib")} if cache else {}


def refuse_lost_folder() -> None:
    """Raises `UserError` where the working directory is gone: every relative path would fail, and name nothing."""
    try:
        os.getcwd()
    except OSError as error:
        was = os.environ.get("PWD", "where this command was started")
        raise UserError(
            f"the working directory, {was}, cannot be read ({error.strerror}): it was deleted or moved; change to a "
            "folder that exists: cd"
        ) from None


def refuse_odd_environment() -> None:
    """Raises `UserError` for a variable that JAX or XLA would not take; to be called before JAX is imported.

    XLA ends the process at a flag that it does not know. So a small process reads the flags first, where there are any:
    it takes less than 0.2 s.
    """
    devices = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if not re.fullmatch(r"0*[1-9]\d{0,5}", devices, re.ASCII):
        raise UserError(
            f"JAX_NUM_CPU_DEVICES={devices!r}: must be a whole number, 1 or more: as many devices of the CPU; correct "
            "it, or unset it, and mot chooses"
        )
    if not os.environ.get("XLA_FLAGS") or "jax" in sys.modules:
        return
    command = [sys.executable, "-c", "from jaxlib import _jax; _jax.CompileOptions()"]
    heard = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}  # or it does not say what it dies of
    try:
        done = subprocess.run(command, env=heard, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
    except (OSError, subprocess.SubprocessError):
        return  # it could not be asked
    if found := re.search(
        r"Unknown flags? in XLA_FLAGS: .*|Couldn't interpret value .*|Failed to .*flag.*", done.stderr
    ):
        raise UserError(
            f"XLA_FLAGS={os.environ['XLA_FLAGS']!r}: XLA does not take it ({found[0].rstrip('.')}); correct it, or "
            "unset XLA_FLAGS"
        )


def typed(text: str) -> str:
    """An argument that is text, and no file's name: what is not UTF-8 was typed in the terminal's encoding."""
    if not _is_utf8(text):
        with suppress(UnicodeError, LookupError):
            text = os.fsencode(text).decode(sys.stdout.encoding)
    return text.removeprefix("\ufeff")  # a byte order mark, as of a file's first line that was pasted


def _is_utf8(text: str) -> bool:
    """False where a lone surrogate stands for a byte that is none of it."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def is_debugged() -> bool:
    return os.environ.get(DEBUG, "0") not in ("", "0")


def guarded(command: Callable[[list[str] | None], int], argv: list[str] | None = None, more: dict | None = None) -> int:
    """Runs a command: 2 and one message for bad input and for what the machine lacks, 1 and a traceback for a bug, 130
    or 75 after a signal that training does not answer, 76 where something hung or another process of the run is gone.

    Without `argv` it is this process's own (`python -m launch.train`): it gets its environment, and `more` of it.
    """
    if argv is None:
        leave_on_signals()
        with_environment(more)
        return alone(partial(guarded, command))
    try:
        refuse_lost_folder()
        return command(argv)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except Exception as error:
        message = meaning(error)
        if message is None or is_debugged():
            sys.excepthook(type(error), error, error.__traceback__)
        _say(message or _bug())
        if isinstance(error, Hung) or message == LOST:  # its threads would wait for what does not come
            sys.stdout.flush()
            os._exit(HUNG)
        return 1 if message is None else 2


def alone(command: Callable[[list[str]], int]) -> int:
    """Runs a command whose process this is, on a screen that may be a closed pipe, or know little but ASCII."""
    screens = _screen()
    if not is_debugged():
        _silence()
    try:
        code = command(sys.argv[1:])
    except SystemExit as error:  # argparse's, and training's after a signal
        code = error.code or 0
    for screen in screens:
        screen.flush()
    if error := screens[0].buffer.raw.error:
        _say(f"what was printed did not all arrive: {error.strerror}")
        code = code or 2
    if not is_debugged():
        sys.stderr = io.StringIO()  # what fails at exit is no part of the work
    return code


def leave_on_signals() -> None:
    """SIGINT and SIGTERM end this process at once; training has its own answer while it runs.

    No exception: one that is raised inside a garbage collector's callback, as during imports, is printed and lost.
    """

    def leave(number, _):
        shows_cursor = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar hides it
        with suppress(OSError):  # nobody may read it
            os.write(2, shows_cursor + b"mot: interrupted\n")
        os._exit(75 if number == signal.SIGTERM else 130)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def end_with(parent: int) -> None:
    """Ends this process at once when `parent`, the process that began it, is gone, however that ended."""

    def watch():
        while os.getppid() == parent:
            time.sleep(WATCHED)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


# --- the screen ------------------------------------------------------------------------------------------------------


class _Output(io.FileIO):
    """Where a standard stream goes. What cannot be written is lost, and never costs the work that printed it."""

    error: OSError | None = None  # the first that somebody should hear of

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # whoever read our output has seen enough, or is gone
                self.error = self.error or error
            return len(data)


def _screen() -> list[io.TextIOWrapper]:
    """stdout and stderr, which show as escapes what their encoding has not."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would be the screen
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        given = getattr(sys, name)
        stream = io.TextIOWrapper(
            io.BufferedWriter(_Output(number, "w", closefd=False)),
            encoding=getattr(given, "encoding", "utf-8"),
            errors="backslashreplace",
            line_buffering=name == "stderr" or os.isatty(number),
        )
        setattr(sys, name, stream)
    return [sys.stdout, sys.stderr]


def _silence() -> None:
    """Nothing that a library logs, warns of or fails at beside our work is for a user; what is, mot says itself."""
    import logging
    import threading
    import warnings

    def ignore(_):
        pass

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.unraisablehook = ignore  # in callbacks and at exit
    threading.excepthook = ignore  # in a library's own threads; ours hand over what they raise


def _say(message: str) -> None:
    print(f"mot: {shortened(message)}", file=sys.stderr, flush=True)


# --- what errors mean ------------------------------------------------------------------------------------------------

SHARED = "/dev/shm"
FULL = "make room there, then give the same command again: what was finished is kept"
LOST = (
    "another process of this run has ended or is out of reach; start all of them again: they go on from the newest "
    "checkpoint"
)
REMEDIES = {  # what to do about an error of the system that names a path
    errno.EEXIST: "; it is in the way: move it away, or name another place",
    errno.ENOTDIR: "; a file stands where a folder is needed: move it away, or name another place",
    errno.EISDIR: "; it is a folder: name a file in it",
    errno.ENOTEMPTY: "; name an empty folder",
    errno.EACCES: "; this user may not: change its permissions, or name another place",
    errno.EPERM: "; this user may not: change its permissions, or name another place",
    errno.EROFS: "; it can only be read: name a place that can be written",
    errno.ENOENT: "; name one that exists",
    errno.ENAMETOOLONG: "; choose a shorter name",
    errno.ELOOP: "; its links lead to themselves: mend them, or name another place",
    errno.EMFILE: "; too many files are open: raise the limit (ulimit -n)",
}
LESS = {
    "train": "fewer rows (data.batch), more microbatches (optim.accumulate), --config.model.remat=block",
    "demo": "a smaller size, as --config=configs/digits.py:size=smoke",
    "sample": "fewer rows (--n), shorter ones (--max-text, --max-media)",
    "data": "fewer --workers, a smaller --sample or --shard",
    "tokenizer": "a smaller --batch, --width or --sample",
    "plan": "--quick, or a machine with more memory",
}


def meaning(error: BaseException) -> str | None:
    """What an error says to a person: the input or the machine is at fault; None where mot is."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    of_buckets = type(error).__module__.partition(".")[0] in ("gcsfs", "google", "aiohttp")
    if of_buckets or isinstance(error, socket.gaierror):
        return (
            f"a bucket could not be read or written ({type(error).__name__}: {text[:300]}); see that it exists, that "
            "this machine's account may use it, and that the network is there"
        )
    if isinstance(error, OSError) and not error.filename and not _is_writable(SHARED):
        return f"{SHARED}, where processes share memory, is missing, full or not to be written; mount a tmpfs there"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        if error.filename2:
            text += f" -> {error.filename2}"
    first = next(iter(text.splitlines()), "")
    if re.search("no space left on device|disk quota exceeded", text, re.IGNORECASE):
        return f"{first}; {FULL}"
    if isinstance(error, OSError):
        return f"{text}{REMEDIES.get(error.errno, '')}"
    if isinstance(error, ValueError) and (message := _refused_by_jax(text)):
        return message
    if isinstance(error, MemoryError) or re.search("RESOURCE_EXHAUSTED|out of memory|bad_alloc", text, re.IGNORECASE):
        less = LESS.get(_command(), "less at a time")
        return f"not enough memory{first and f' ({first[:300]})'}; ask for less: {less}; or free some"
    if re.search(r"Gloo \S+ failed|coordination service|heartbeat timeout", text):
        return LOST
    if re.search("Unable to initialize backend|Unknown backend", text) or _raised_in(error) == "xla_bridge.py":
        asked = os.environ.get("JAX_PLATFORMS", "")
        return f"JAX has no device of JAX_PLATFORMS={asked}{first and f' ({first[:300]})'}; change or unset it"
    if odd := [name for name in (*sys.argv, _working_directory()) if not _is_utf8(name)]:
        return f"{odd[0]}: some libraries that mot uses take no name that is not UTF-8 ({first[:300]}); rename it"
    return None


def _refused_by_jax(text: str) -> str:
    """Of a variable JAX_... with a value that JAX does not take, which it says as it is imported; else ""."""
    if found := re.match(r"invalid truth value '(.*)' for environment '(\w+)'", text, re.DOTALL):
        value = found[1]
        name = found[2]
        allowed = "allowed: true or false, 1 or 0"
    elif found := re.match(r'Invalid value "(.*)" for JAX flag (\w+)', text, re.DOTALL):
        value = found[1]
        name = found[2].upper()
        allowed = "JAX takes no such value for it"
    else:
        return ""
    return f"{name}={value!r}: {allowed}; correct it in the environment, or unset it"


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _raised_in(error: BaseException) -> str:
    """The name of the file whose code raised it: JAX asserts that there is a device, and says no more."""
    at = error.__traceback__
    while at and at.tb_next:
        at = at.tb_next
    return Path(at.tb_frame.f_code.co_filename).name if at else ""


def _is_writable(folder: str) -> bool:
    return os.access(folder, os.W_OK | os.X_OK) and os.statvfs(folder).f_bavail > 0


def _command() -> str:
    """The command's name in this process's command line."""
    name = Path(sys.argv[0]).stem
    return name if name in LESS else next(iter(sys.argv[1:]), "")


def _bug() -> str:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    def of(package):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"{package} not installed"

    versions = [*map(of, ("mot", "jax", "jaxlib", "numpy")), f"Python {platform.python_version()}", platform.platform()]
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return (
        "this is a bug of mot, not of your input; please open an issue where you have mot from, with all of the above "
        f"and this: {command} ({', '.join(versions)})"
    )

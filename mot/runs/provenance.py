"""Where a result came from: which code, which command, which machine, and when."""

import functools
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import jax

PACKAGES = {name: name for name in ("jax", "jaxlib", "flax", "optax", "numpy")} | {"orbax": "orbax-checkpoint"}
GIT_TIMEOUT = 2  # seconds; a checkout may lie on a slow network disk
HIDDEN = "***"
SHORTEST = 6  # characters of a value of the environment that is hidden elsewhere; a shorter one is part of many words
# A word of a name that says that its value is secret: token, but not tokens or tokenizer, which mot's own names have.
_SECRET_WORD = re.compile(
    r".*(secrets?|passw(or)?d|passphrase|credentials?)|(hf|gh|api|auth|access|bearer)?token"
    r"|(api|access|auth|private|secret|account)?key",
    re.IGNORECASE,
)
# What tokens look like: of Hugging Face, GitHub, GitLab, OpenAI and Anthropic, AWS, Google, Slack, PyPI, npm; a JWT;
# what follows `Bearer`; the user and password of an address.
_SECRET_FORMS = re.compile(
    r"hf_\w{16,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{16,}|(AKIA|ASIA)[A-Z0-9]{12,}"
    r"|AIza[\w-]{30,}|ya29\.[\w.-]+|xox[a-z]-[\w-]{10,}|pypi-[\w-]{16,}|npm_\w{20,}"
    r"|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*|(?<=Bearer )\S+|(?<=://)[^/@\s]+(?=@)"
)
# NAME=VALUE, also among others in one argument, and "NAME": VALUE, as JSON has it.
_NAME = re.compile(r"""([\w.-]+)(?:=|["']\s*:\s*)""")
_VALUE = re.compile(r""""[^"]*"|'[^']*'|[^,&;\s"'}]+""")


def now() -> str:
    """The time of day: ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def made_by() -> dict:
    """What a start event and a checkpoint say of where they come from; None where it cannot be found out.

    `devices` are those of the mesh that is set, or else all there are. Nothing of the environment is in it.
    """
    revision, dirty = commit()
    mesh = jax.sharding.get_mesh()
    devices = jax.devices() if mesh.empty else list(mesh.devices.flat)
    about = {"version": version("mot"), "commit": revision, "dirty": dirty, "command": command()}
    about |= {"host": socket.gethostname(), "backend": devices[0].platform, "device_kind": devices[0].device_kind}
    about |= {"devices": len(devices), "cpu": cpu(), "platform": platform.platform()}
    about |= {name: version(package) for name, package in PACKAGES.items()}
    return about | {"python": platform.python_version(), "time": now()}


def told(about: dict) -> str:
    """One line of where and when something was made; `about` is a `made_by`, or empty where nobody wrote it down."""
    if not about:
        return "made by a version of mot that did not write down where and when"
    of = f", commit {about['commit'][:12]}" if about.get("commit") else ""
    of += " with changes" if about.get("dirty") else ""
    devices = f"{about.get('devices')} x {about.get('device_kind')}"
    if about.get("backend") == "cpu":
        devices += f", {about.get('cpu')}"
    went_on = [
        f"; at step {x['step']} it went on with other {', '.join(x['kinds'])}" for x in about.get("accepted", ())
    ]
    return (
        f"made {about.get('time')} on {about.get('host')} ({devices}) by mot {about.get('version')}{of}, "
        f"jax {about.get('jax')}{''.join(went_on)}"
    )


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache  # of the code that this process has loaded, however the checkout changes while it runs
def commit() -> tuple[str | None, bool | None]:
    """The commit of the checkout that mot's code lies in, and whether tracked files differ from it.

    Both None where there is none: mot was installed from a wheel, git is absent, or it does not answer in time.
    """
    folder = Path(__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", "--", "__init__.py") is None:
        return None, None  # a folder below somebody else's checkout, as an environment's is
    status = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    found = re.search(r"^# branch\.oid ([0-9a-f]{40,64})$", status or "", re.MULTILINE)
    if found is None:
        return None, None
    return found[1], any(line and not line.startswith("#") for line in status.splitlines())


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails. The caller's GIT_DIR would lead elsewhere; a monitor would be a program."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            timeout=GIT_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def command(argv: Sequence[str] | None = None) -> str:
    """This process's command line, as a shell takes it, without what looks secret."""
    words = _typed() if argv is None else list(argv)
    hidden, hides_next = [], False
    for word in words:
        value = HIDDEN if hides_next else _without_secrets(word)
        hides_next = word.startswith("-") and "=" not in word and _is_secret(word)
        hidden.append(value)
    return shlex.join(hidden).encode(errors="backslashreplace").decode()  # a byte that is not UTF-8 stands as an escape


def _typed() -> list[str]:
    """`mot ...`, or `python -m MODULE ...`: Python puts a path in place of either."""
    program, *arguments = sys.argv or [""]
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        return ["python", "-m", spec.name.removesuffix(".__main__"), *arguments]
    installed = Path(program).parent == Path(sys.executable).parent
    return [Path(program).name if installed else program, *arguments]


def _is_secret(name: str) -> bool:
    joined = re.sub(r"[-_]", "", name.rpartition(".")[2])
    words = re.split(r"[^a-zA-Z0-9]|_", name)
    return any(_SECRET_WORD.fullmatch(word) for word in [*words, joined])


def _without_secrets(word: str) -> str:
    name, equals, _ = word.partition("=")
    if equals and re.fullmatch(r"[\w.-]+", name) and _is_secret(name):
        return f"{name}={HIDDEN}"
    for found in reversed(list(_NAME.finditer(word))):
        if _is_secret(found[1]) and (value := _VALUE.match(word, found.end())):
            word = word[: value.start()] + HIDDEN + word[value.end() :]
    return _SECRET_FORMS.sub(HIDDEN, word)


def hidden(text: str) -> str:
    """A text of whatever source without what looks secret, and without what the environment keeps secret."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and _is_secret(name):
            text = text.replace(value, HIDDEN)
    return _SECRET_FORMS.sub(HIDDEN, text)


def cpu() -> str:
    """The processor's model and how many of its cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model}, {usable} core{'' if usable == 1 else 's'}"

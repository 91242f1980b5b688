"""How processes end where the machine lacks something: one message, no traceback, nothing half-written."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import cores, process
from mot import files
from mot.errors import UserError
from mot.generate import codecs
from tests.conftest import ROOT

ENV = os.environ | {"JAX_PLATFORMS": "cpu"}
MOT = [sys.executable, "-m", "launch.cli"]
PREPARE = ["--format", "text", "--separator", r"\n\n", "--text-ids", "300", "--workers", "1"]
LINES = [f"Zeile {i}: Grüße aus Köln, 漢字 😀.\n" for i in range(20)]


def mot(*args, env=None, **kwargs):
    found = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 300} | kwargs
    return subprocess.run([*MOT, *args], cwd=ROOT, env=ENV | (env or {}), encoding="latin-1", **found)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "Köln.txt").write_text("\n".join(LINES), encoding="utf-8")
    done = mot("data", "prepare", str(folder / "Köln.txt"), *PREPARE, "--out", str(folder / "a"))
    assert done.returncode == 0, done.stderr
    return folder


def closed_pipe():
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(("args", "code"), [(["--help"], 0), (["fly"], 2)])
def test_a_pipe_that_nobody_reads_is_no_error(args, code, stream):
    done = mot(*args, **{stream: closed_pipe()})
    assert done.returncode == code
    assert "Error" not in (done.stdout or "") + (done.stderr or "")


def test_closed_streams_take_nothing_and_break_nothing():
    command = f"{sys.executable} -m launch.cli --help <&- >&- 2>&-; echo $?"
    assert subprocess.run(command, shell=True, cwd=ROOT, env=ENV, capture_output=True).stdout == b"0\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_what_a_full_disk_did_not_take_of_the_output_is_told(dataset):
    with open("/dev/full", "wb") as full:
        for args in (["--help"], ["data", "inspect", str(dataset / "a")]):
            done = mot(*args, stdout=full)
            assert done.returncode == 2
            told = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]  # what takes long says so
            assert told == ["mot: what was printed did not all arrive: No space left on device"]


def test_a_terminal_of_few_characters_shows_escapes(dataset):
    """And Python's own word, that there be no UTF-8, changes nothing of the files."""
    strict = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for env, shown in (
        ({"PYTHONIOENCODING": "cp1252"}, r"Grüße aus Köln, \u6f22\u5b57 \U0001f600"),
        (strict, r"Gr\xfc\xdfe aus K\xf6ln, \u6f22\u5b57 \U0001f600"),
    ):
        done = mot("data", "inspect", str(dataset / "a"), "--document", "1", env=env)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout
    again = mot("data", "prepare", str(dataset / "Köln.txt"), *PREPARE, "--out", str(dataset / "b"), env=strict)
    assert again.returncode == 0, again.stderr
    a, b = (json.loads((dataset / x / "dataset.json").read_text(encoding="utf-8")) for x in "ab")
    assert (a["splits"], a["tokenizers"]) == (b["splits"], b["tokenizers"])


def test_prompts_are_text_in_the_terminals_encoding(monkeypatch):
    class Terminal:
        encoding = "latin-1"

    monkeypatch.setattr(sys, "stdout", Terminal)
    assert process.typed(os.fsdecode("Grüße".encode("latin-1"))) == "Grüße"
    assert process.typed("Grüße 漢字") == "Grüße 漢字"
    assert process.typed("\ufeffa") == "a"


NOBODY = "import os, pwd; pwd.getpwuid = lambda uid: {}[uid]; os.environ.pop('HOME', 0); "


@pytest.mark.parametrize("home", ["", "nowhere", "file"])
def test_without_a_home_the_cache_is_a_temporary_folder_or_none(tmp_path, home):
    """As root, too, for whom nothing is read-only: no home is made where none was."""
    (tmp_path / "file").touch()
    temporary = tmp_path / "t"
    temporary.mkdir()
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XDG_", "MOT_"))}
    bare |= {"TMPDIR": str(temporary), "HOME": str(tmp_path / "nowhere")}
    bare |= {"XDG_CACHE_HOME": str(tmp_path / "file")} if home == "file" else {}
    code = f"{'' if home else NOBODY}from launch import cli; cli.with_environment()"
    used = temporary / f"mot-{os.getuid()}"
    for instead in (f"{used} is used", "nothing is kept"):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, encoding="utf-8", timeout=100)
        assert done.returncode == 0, done.stderr
        assert instead in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        used.chmod(0o777)  # anybody's: what lies there is not trusted
    assert not (tmp_path / "nowhere").exists()


def test_a_file_is_whole_or_absent_and_the_error_names_it(tmp_path, monkeypatch):
    def full(self, content):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space") as caught:
        files.write_atomically(tmp_path / "a.json", "x")
    assert caught.value.filename == str(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def _is_mountable(folder):
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", str(folder)], capture_output=True)
    return done.returncode == 0


def test_a_full_disk_is_one_message_and_the_same_command_goes_on(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if not _is_mountable(small):
        pytest.skip("may not mount a small disk")
    try:
        text = "\n\n".join(f"The number {i} follows {i - 1}, {i * 7919 % 10007}." for i in range(3000))
        (tmp_path / "t.txt").write_text(text, encoding="utf-8")
        command = ["data", "prepare", str(tmp_path / "t.txt"), *PREPARE, "--shard", "1000", "--out", str(small / "d")]
        done = mot(*command)
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"mot: No space left on device: {small}")
        assert last.endswith("the same command again: what was finished is kept")
        assert "Traceback" not in done.stderr
        assert not list(small.rglob("*partial*"))
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        assert mot(*command).returncode == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


def fails_with(error):
    def command(argv):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("a fault; mend it"), 2, "mot: a fault; mend it"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2, "mot: No space left on device: a/b; make room"),
        (ValueError('RESOURCE_EXHAUSTED: Failed writing: "x": No space left on device\nmore'), 2, "make room there"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "mot: Permission denied: a/b"),
        (MemoryError("Unable to allocate 9. TiB"), 2, "mot: not enough memory (Unable to allocate 9. TiB); ask for"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), 2, "mot: not enough memory (RESOURCE"),
        (RuntimeError("Unable to initialize backend 'cuda': none"), 2, "; change or unset it"),
        (KeyboardInterrupt(), 130, "mot: interrupted"),
    ],
    ids=repr,
)
def test_what_the_machine_lacks_is_one_message(error, code, says, capsys):
    assert process.guarded(fails_with(error), []) == code
    told = capsys.readouterr().err
    assert says in told
    assert len(told.splitlines()) == 1


def test_a_platform_that_is_not_there_is_one_message():
    code = "import sys, jax; from launch import process; sys.exit(process.guarded(lambda argv: jax.devices(), []))"
    command, env = [sys.executable, "-c", code], ENV | {"JAX_PLATFORMS": "cuda"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, encoding="utf-8", timeout=100)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("mot: JAX has no device of JAX_PLATFORMS=cuda")
    assert "Traceback" not in done.stderr


def test_a_bug_shows_its_traceback_and_what_to_report(capsys, monkeypatch):
    assert process.guarded(fails_with(KeyError("odd")), []) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("Traceback")
    assert told[-1].startswith("mot: this is a bug of mot")
    assert f"Python {sys.version.split()[0]}" in told[-1]
    monkeypatch.setenv(process.DEBUG, "1")
    assert process.guarded(fails_with(UserError("a fault")), []) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("Traceback")
    assert told[-1] == "mot: a fault"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("JAX_NUM_CPU_DEVICES", "abc", "JAX_NUM_CPU_DEVICES='abc': must be a whole number, 1 or more"),
        ("JAX_ENABLE_X64", "maybe", "JAX_ENABLE_X64='maybe': allowed: true or false, 1 or 0"),
        ("JAX_DEFAULT_MATMUL_PRECISION", "foo", "JAX_DEFAULT_MATMUL_PRECISION='foo': JAX takes no such value"),
        ("XLA_FLAGS", "--xla_nonsense=1", "XLA_FLAGS='--xla_nonsense=1': XLA does not take it (Unknown flag"),
        ("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=abc", "Couldn't interpret value abc"),
    ],
)
def test_a_variable_that_jax_does_not_take_is_named_with_its_remedy(name, value, says):
    done = mot("data", "inspect", "--config=configs/digits.py:size=smoke", env={name: value})
    assert done.returncode == 2, done.stderr
    assert f"mot: {says}" in done.stderr or (says in done.stderr and f"mot: {name}=" in done.stderr)
    assert "unset" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["", "2.5", "0", "-1"])
def test_devices_are_a_whole_number(monkeypatch, value):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", value)
    with pytest.raises(UserError, match=f"JAX_NUM_CPU_DEVICES='{value}': must be a whole number, 1 or more.*unset it"):
        process.refuse_odd_environment()


def test_a_deleted_working_directory_is_named(tmp_path):
    command = f"mkdir gone && cd gone && rmdir ../gone && PYTHONPATH={ROOT} {sys.executable} -m launch.cli report x"
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=ENV, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"mot: the working directory, {tmp_path / 'gone'}, cannot be read")


NOISY = """
import logging, sys, threading, warnings, multiprocessing, atexit
sys.path.insert(0, '.')
from launch import cores, process
from mot.generate import codecs
def command(argv):
    logging.getLogger("absl").error("an error of absl's")
    warnings.warn("a warning")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    class Unraisable:
        def __del__(self): 1 / 0
    Unraisable()
    atexit.register(lambda: 1 / 0)
    return 0
sys.exit(process.alone(command))
"""


def test_what_libraries_say_is_for_debugging():
    for debug, lines in (("", 0), ("1", 10)):
        env = ENV | {process.DEBUG: debug}
        done = subprocess.run([sys.executable, "-c", NOISY], cwd=ROOT, env=env, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        assert (len(done.stderr.splitlines()) > lines) == bool(debug), done.stderr


def test_ctrl_c_for_all_processes_of_prepare_is_one_line(tmp_path):
    text = "\n\n".join(f"The number {i} follows {i - 1}, {i * 7919 % 10007}." for i in range(20000))
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    command = ["data", "prepare", str(tmp_path / "t.txt"), *PREPARE[:-1], "2", "--shard", "100", "--out"]
    out = tmp_path / "d"
    begun = subprocess.Popen(
        [*MOT, *command, str(out)], cwd=ROOT, env=ENV, stderr=subprocess.PIPE, start_new_session=True
    )
    while not (out / "tokenizers" / "chosen.json").exists():
        assert begun.poll() is None
        time.sleep(0.01)
    time.sleep(1.5)  # workers are being imported
    os.killpg(begun.pid, signal.SIGINT)
    told = begun.communicate(timeout=60)[1].decode()
    assert begun.returncode == 130
    assert told.splitlines()[-1] == "mot: interrupted"
    assert "Traceback" not in told


def test_an_accelerator_that_is_not_used_is_told(monkeypatch):
    """JAX only logs it, and what libraries log is not shown."""
    monkeypatch.setattr(cores.os.path, "exists", lambda file: file == "/dev/nvidia0")
    assert cores.unused() == ""  # JAX was told to take the CPU
    monkeypatch.setattr(cores.jax, "config", SimpleNamespace(jax_platforms=None))
    assert "has an NVIDIA GPU and JAX computes on the CPU: install '.[cuda]'" in cores.unused()


def test_a_prompt_files_byte_order_mark_is_no_part_of_it(tmp_path):
    (tmp_path / "doc.json").write_text('[{"text": "Grüße"}]', encoding="utf-8-sig")
    assert [part.content for part in codecs.read_document(tmp_path / "doc.json")] == ["Grüße"]

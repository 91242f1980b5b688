"""A sweep's page that renews itself: made anew when its runs have written, and served to this machine alone."""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mot.console import phase
from mot.errors import UserError
from mot.runs import swept
from scaling import report, runs

HOST = "127.0.0.1"  # loopback: no other machine reaches it
TICK = 2.0  # seconds between two looks at the runs' directories
EASE = 4  # times as long as a page took to make, before the next is made: the runs shall have the machine
REFRESH = 10  # seconds after which a browser asks again
OURS = {".png": "image/png", ".csv": "text/csv", ".parquet": "application/vnd.apache.parquet"}
LINKED = ("config.json", "metrics.jsonl", "probes.jsonl")  # of a run: what the page links to, and is made of


def watch(folder: Path, out: Path, port: int) -> None:
    """Serves the page until this process is interrupted; `UserError` where the port or `out` is not to be had."""
    before = signature(folder)
    with phase("reading the runs and drawing the page"):
        make(folder, out)
    with serving(out, port) as server:
        print(f"http://{HOST}:{server.server_port}/ shows {folder}; Ctrl-C ends it", flush=True)
        said = ""
        took = 0.0
        while True:
            time.sleep(max(TICK, EASE * took))
            now = signature(folder)
            if now == before:
                continue
            before = now
            began = time.monotonic()
            try:
                make(folder, out)
                said = ""
            except (UserError, OSError) as error:  # the page that is there stays until the runs can be read again
                if str(error) != said:
                    print(f"mot: the page is not renewed: {error}", file=sys.stderr, flush=True)
                said = str(error)
            took = time.monotonic() - began


def make(folder: Path, out: Path) -> None:
    found = swept.begun(folder)
    report.write(runs.find(found) if found else [], out, folder)


def signature(folder: Path) -> list[tuple[str, int, int]]:
    """What changes whenever a run of the sweep, or the sweep itself, has written something that the page shows."""
    files = [folder / swept.FILE]
    for run in swept.begun(folder):
        files += [run / name for name in (*LINKED, "checkpoints", "samples", "lock")]
    return [(str(file), s.st_mtime_ns, s.st_size) for file in files if (s := _stat(file))]


def _stat(file: Path):
    try:
        return file.stat()
    except OSError:  # there is none, or it is being replaced
        return None


def serving(out: Path, port: int) -> ThreadingHTTPServer:
    """A server of the page in `out`, whose thread has begun; it ends with this process."""
    try:
        server = ThreadingHTTPServer((HOST, port), partial(_Page, partial(page_file, out)))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--port={port}: this machine does not give it ({getattr(error, 'strerror', None) or error}); name another "
            "one, or 0 for any that is free"
        ) from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="page", daemon=True).start()
    return server


def page_file(out: Path, asked: str) -> tuple[Path, str] | None:
    """The file of the page that a URL's path names, and its type; None for all else, wherever it leads."""
    try:
        name = unquote(urlsplit(asked).path).removeprefix("/") or "report.html"
    except ValueError:  # no URL
        return None
    folder, _, last = name.rpartition("/")
    if name == "report.html":
        kind = "text/html; charset=utf-8"
    elif not folder and Path(last).suffix in OURS:
        kind = OURS[Path(last).suffix]
    elif "/" not in folder and last in LINKED and swept.is_sweep(out) and folder in swept.names(out):
        kind = "text/plain; charset=utf-8"
    else:
        return None
    file = out / name
    if "\0" in name or not file.is_file() or not file.resolve().is_relative_to(out.resolve()):
        return None
    return file, kind


class _Page(BaseHTTPRequestHandler):
    """Answers for files of the page alone, and only where this machine was asked for by its own name."""

    def __init__(self, find: Callable[[str], tuple[Path, str] | None], *args):
        self.find = find
        super().__init__(*args)

    def do_GET(self):
        with suppress(ConnectionError, TimeoutError):  # whoever asked is gone
            self._answer(with_body=True)

    def do_HEAD(self):
        with suppress(ConnectionError, TimeoutError):
            self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        name = self.headers.get("Host", "").rpartition(":")[0]
        if name not in (HOST, "localhost"):  # a foreign page's script, whose name was made to lead here
            return self.send_error(HTTPStatus.FORBIDDEN)
        if (found := self.find(self.path)) is None:
            return self.send_error(HTTPStatus.NOT_FOUND)
        file, kind = found
        try:
            content = file.read_bytes()
        except OSError:
            return self.send_error(HTTPStatus.NOT_FOUND)
        self.send_response(HTTPStatus.OK)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        headers |= {"X-Content-Type-Options": "nosniff"}
        headers |= {"Refresh": str(REFRESH)} if kind.startswith("text/html") else {}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass

"""The other end of `worker`: asks a process of its own for parts, and outlives it."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from bench.device.worker import END
from mot.plan import process

GPU_MEMORY = "0.92"  # that JAX takes, where the user has not said it: its own choice is three quarters
LATE = "stopped: the time is over"
WAIT = 10  # seconds in which a process that is done may end


class Worker:
    """A process that has the devices, begun when it is first asked."""

    def __init__(self):
        self.running: subprocess.Popen | None = None

    def rows(self, part: dict, deadline: float) -> Iterator[dict]:
        """A part's rows as they come. Where the process ends before it answers, or the `deadline` (of
        `time.monotonic`) passes, a row that says so is the last."""
        if self.running is None:
            self._begin()
        with suppress(BrokenPipeError):  # it has ended, which its lines tell
            print(json.dumps(part), file=self.running.stdin, flush=True)
        while True:
            try:
                line = self.lines.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                self.end(kill=True)
                yield {"failed": LATE}
                return
            if line is None:
                yield {"failed": self._last_words()}
                return
            if (row := json.loads(line)) == END:
                return
            yield row

    def end(self, kill: bool = False) -> None:
        """Ends the process, which gives its devices back; the next part begins another."""
        if self.running is None:
            return
        if kill:
            self.running.kill()
        with suppress(BrokenPipeError):
            self.running.stdin.close()
        try:
            self.running.wait(WAIT)
        except subprocess.TimeoutExpired:
            self.running.kill()
            self.running.wait()
        self.said.close()
        self.running = None

    def _begin(self) -> None:
        self.said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115, until `end`
        env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # compiling is measured
        env = {"XLA_PYTHON_CLIENT_MEM_FRACTION": GPU_MEMORY} | env
        command = [sys.executable, "-m", "bench.device.worker", str(os.getpid())]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said)
        self.running = subprocess.Popen(command, env=env, encoding="utf-8", **pipes)
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self.running.stdout, self.lines), daemon=True).start()

    def _last_words(self) -> str:
        code = self.running.wait()
        self.said.seek(0)
        words = process.last_words(self.said.read())
        self.end()
        return f"the process ended with {code}: {words}"


def _read(stdout, lines: queue.SimpleQueue) -> None:
    for line in stdout:
        lines.put(line)
    lines.put(None)

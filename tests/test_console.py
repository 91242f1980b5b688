"""What takes long says what it is: on a terminal with the seconds so far, elsewhere by a line before it."""

import io
import sys
import time

import pytest

from mot import console
from mot.runs import writer


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_a_line_before_each_phase(monkeypatch):
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    with console.phase("opening the data"):
        assert said.getvalue() == "opening the data ...\n"
    with console.phase("of another process", is_first=False):
        pass
    assert said.getvalue() == "opening the data ...\n"


def test_a_terminal_sees_the_seconds_and_then_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", said := Terminal())
    monkeypatch.setattr(console, "OFTEN", 0.02)

    def fails():
        with console.phase("opening the data"):
            time.sleep(0.2)
            raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        fails()
    shown = said.getvalue()
    assert "\ropening the data ... 0 s\x1b[K" in shown
    assert shown.endswith("\r\x1b[K")
    assert "\n" not in shown


def test_the_live_line_tells_what_takes_long_before_a_step(monkeypatch):
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    with writer.Live("run", 0, 2) as live:
        live.phase("compiling the step")
        live.update(1, "text 3.21")
    assert said.getvalue().splitlines() == ["compiling the step ..."]
    task = live.bar.tasks[0]
    assert writer._Line().render(task).plain == "text 3.21"
    live.bar.update(live.task, line="compiling the step ...", since=time.monotonic() - 3)
    assert writer._Line().render(task).plain == "compiling the step ... 3 s"

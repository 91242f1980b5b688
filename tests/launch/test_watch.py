"""A page that renews itself: it serves its own files alone, to this machine alone, and ends with Ctrl-C."""

import http.client
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

from launch import cli, watch
from tests.support.reports import planted, prose, rewritten, swept
from tests.support.sources import ROOT


@pytest.fixture
def sweep(tmp_path):
    root = tmp_path / "out"
    planted(root, "dense")
    planted(root, "mot", steps=20, name="mot-seed0")
    swept(root, "configs/sweeps.py:archs")
    rows = json.loads((root / "sweep.json").read_text(encoding="utf-8"))
    rows["rows"].append({"config": "configs/digits.py", "run.name": "mot-seed1"})
    (root / "sweep.json").write_text(json.dumps(rows), encoding="utf-8")
    (root / "secret.txt").write_text("mine", encoding="utf-8")
    (root / "dense-seed0.log").write_text("mine", encoding="utf-8")
    (tmp_path / "beyond.png").write_bytes(b"mine")
    (root / "link.png").symlink_to(tmp_path / "beyond.png")
    return root


def test_the_state_of_every_row_comes_first_and_unfinished_runs_are_shown_as_such(sweep):
    watch.make(sweep, sweep)
    text = (sweep / "report.html").read_text(encoding="utf-8")
    shown = prose(text)
    assert "mot-seed1 waiting" in shown
    assert text.index("mot-seed1") < text.index("<h1>")
    assert re.search(r"mot-seed0 interrupted 20 of 60 text 2\.\d+, image 1\.\d+", shown)
    assert "3 runs: 2 interrupted, 1 waiting" in shown
    assert "Unfinished runs so far" in shown
    assert "mot-seed0: unfinished: step 20 of 60" in shown


def test_a_sweep_of_which_nothing_has_begun_has_a_page(tmp_path):
    rows = [{"config": "configs/digits.py", "run.name": "mot-seed1"}]
    (tmp_path / "sweep.json").write_text(json.dumps({"sweep": "mine.py:x", "rows": rows}), encoding="utf-8")
    watch.make(tmp_path, tmp_path)
    assert "mot-seed1 waiting" in prose((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_only_the_pages_own_files_are_served(sweep):
    watch.make(sweep, sweep)
    for served in (
        "/",
        "/report.html",
        "/report.html?x=1",
        "/curves_text.png",
        "/runs.csv",
        "/dense-seed0/config.json",
    ):
        assert watch.page_file(sweep, served), served
    for kept in (
        "/secret.txt",
        "/dense-seed0.log",
        "/link.png",
        "/../beyond.png",
        "/%2e%2e/beyond.png",
        "//etc/passwd",
        "/dense-seed0/../../beyond.png",
        "/../out/dense-seed0/config.json",
        "/dense-seed0/checkpoints",
        "/dense-seed0",
        "/sweep.json",
        "/report.html%00.png",
        "/nowhere.png",
    ):
        assert watch.page_file(sweep, kept) is None, kept


def ask(port, path, host=None, method="GET"):
    connection = http.client.HTTPConnection(watch.HOST, port, timeout=10)
    connection.request(method, path, headers={"Host": host or f"{watch.HOST}:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def test_the_server_answers_this_machine_by_its_own_name(sweep):
    watch.make(sweep, sweep)
    with watch.serving(sweep, 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        status, headers, body = ask(server.server_port, "/")
        assert status == 200
        assert headers["Refresh"] == str(watch.REFRESH)
        assert body == (sweep / "report.html").read_bytes()
        assert ask(server.server_port, "/", method="HEAD")[2] == b""
        assert ask(server.server_port, "/../beyond.png")[0] == 404
        assert ask(server.server_port, "/", host=f"evil.example:{server.server_port}")[0] == 403
        assert ask(server.server_port, "/", method="POST")[0] == 501
        server.shutdown()


def test_what_is_no_url_and_a_browser_that_is_gone_say_nothing(sweep, capfd):
    watch.make(sweep, sweep)
    with watch.serving(sweep, 0) as server:
        for path in ("http://[", "/nowhere"):
            with socket.create_connection((watch.HOST, server.server_port)) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost:1\r\n\r\n".encode())
        assert ask(server.server_port, "http://[")[0] == 404
        assert ask(server.server_port, "/")[0] == 200
        server.shutdown()
    assert "Traceback" not in capfd.readouterr().err


def test_a_port_that_is_taken_is_one_message(sweep, capsys):
    with watch.serving(sweep, 0) as server:
        assert cli.main(["report", "--watch", str(sweep), f"--port={server.server_port}"]) == 2
        server.shutdown()
    assert f"--port={server.server_port}: this machine does not give it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dense-seed0"], "give one folder of this machine in which a sweep was begun"),
        (["nowhere"], "give one folder of this machine in which a sweep was begun"),
        ([".", "."], "give one folder of this machine in which a sweep was begun"),
        ([".", "--port=70000"], "--port=70000: must be from 1 to 65535"),
    ],
)
def test_what_cannot_be_watched_is_one_message(sweep, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(sweep)
    assert cli.main(["report", "--watch", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not (sweep / "report.html").exists()


def test_a_port_of_no_server_is_refused(sweep, capsys):
    assert cli.main(["report", str(sweep), "--port=3"]) == 2
    assert "--port=3: is for --watch; leave it out, or add --watch" in capsys.readouterr().err
    assert not (sweep / "report.html").exists()


def test_the_page_is_made_anew_when_a_run_has_written_and_ctrl_c_ends_it(sweep):
    command = [sys.executable, "-m", "mot", "report", "--watch", str(sweep), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    try:
        port = int(re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
        before = ask(port, "/")[2]
        rewritten(sweep / "mot-seed0", lambda row: row | ({"loss/text": 7.125} if row["kind"] == "eval" else {}))
        for _ in range(600):
            time.sleep(0.1)
            if b"7.125" in (after := ask(port, "/")[2]):
                break
        assert b"7.125" in after
        assert b"7.125" not in before
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.communicate()

"""FAULTS 18: what the environment keeps secret stands in no file of a run, and is never printed."""

from tests.conftest import ROOT
from tests.support.commands import succeeds
from tests.support.devices import devices
from tests.support.trackers import installed

SECRETS = {
    "HF_TOKEN": "hf_planted0123456789",
    "WANDB_API_KEY": "planted-wandb-9876543210",
    "TRACKIO_WRITE_TOKEN": "planted-trackio-0123",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret",
    "GOOGLE_APPLICATION_CREDENTIALS": "/planted/credentials.json",
    "MY_PASSWORD": "planted-password",
}


def test_a_planted_secret_is_nowhere(tmp_path, monkeypatch):
    """Also where a tracker fails and says its key; what another is told of the run is looked at, too."""
    refusing, taking = installed(monkeypatch, "wandb", "trackio")

    def refuse(step):
        raise PermissionError(f"403 for key {SECRETS['WANDB_API_KEY']}")

    refusing.fault = refuse
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "runs" / "digits-mot-smoke"
    config = f"--config={ROOT}/configs/digits.py:size=smoke"
    with devices(1):
        said = [
            *succeeds("train", config, f"--config.run.root={tmp_path / 'runs'}", "--config.run.trackers=wandb,trackio"),
            *succeeds("evaluate", str(run)),
            *succeeds("report", str(run), "--out", str(tmp_path / "report")),
            *succeeds("config", f"{ROOT}/configs/digits.py:size=smoke"),
        ]
    assert any("ALARM: wandb failed (PermissionError: 403 for key ***)" in text for text in said)
    said += [str([taking.abouts, taking.rows])]
    held = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(held) > 20
    for secret in SECRETS.values():
        assert not any(secret in text for text in said)
        assert not [path for path in held if secret.encode() in path.read_bytes()]

"""A cluster of Slurm on loopback for the time of the tests: munged, slurmctld and one slurmd, all in one folder."""

import getpass
import os
import shutil
import socket
import subprocess
import time

import pytest

CONFIG = """
ClusterName=mot
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
# A requeued job waits until its old credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
KillWait=20
MinJobAge=600
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=here Nodes=localhost Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""
PATIENCE = 60.0  # seconds


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(found, what):
    end = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The folder of a running cluster, which this process and those that it starts find by SLURM_CONF."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    text = CONFIG.format(
        host=socket.gethostname().partition(".")[0],
        user=getpass.getuser(),
        folder=folder,
        ports=free_ports(2),
        cores=os.cpu_count(),
    )
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    munge = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "key-file", "log-file", "pid-file")]
    env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    os.environ["SLURM_CONF"] = env["SLURM_CONF"]
    # Both commands lie where only an administrator's PATH leads.
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    commands = [
        ["munged", "--foreground", "--force", *munge, f"--seed-file={folder}/munge.seed"],
        ["slurmctld", "-D", "-i"],
        ["slurmd", "-D", "-N", "localhost"],
    ]
    started = []
    try:
        for command in commands:
            program = shutil.which(command[0], path=path)
            assert program, f"{command[0]} is not installed; `make test-slurm` installs it"
            with (folder / f"{command[0]}.out").open("wb") as said:
                started.append(subprocess.Popen([program, *command[1:]], env=env, stdout=said, stderr=said))
            if command[0] == "munged":
                wait_for((folder / "munge.socket").exists, (folder / "munged.out").read_text(encoding="utf-8"))
        wait_for(is_idle, (folder / "slurmctld.out").read_text(encoding="utf-8", errors="replace"))
        yield folder
    finally:
        subprocess.run(["scancel", "--me"], env=env, check=False, timeout=30)
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def is_idle():
    done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, encoding="utf-8")
    return done.stdout.strip() == "idle"

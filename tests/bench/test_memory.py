"""What a figure took is there for the next one, and for the processes that it starts."""

import os
import subprocess
import sys

SCRIPT = """
import resource
from launch import process
process.with_environment()
from bench import memory
MIB = 2**20

def held():
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * resource.getpagesize() // MIB

blocks = [bytearray(8 * MIB) for _ in range(32)]
last = bytearray(MIB)  # above them: the heap cannot shrink
del blocks
before = held()
memory.give_back()
print(before - held())
"""


def test_free_pages_go_back_to_the_kernel():
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}  # a user's would stay
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, encoding="utf-8", check=True)
    assert int(done.stdout) > 200

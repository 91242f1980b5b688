"""A bucket on loopback, served by gcp-storage-emulator: `python -m tests.support.bucket PORT` serves until it is ended.

It keeps objects in memory, lists them and refuses what is not there as Cloud Storage does. It does not know accounts
and permissions, conditions on an object's generation, errors that come and go, nor how long a real bucket takes.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "bucket"


@contextmanager
def served() -> Iterator[dict[str, str]]:
    """The environment in which programs find `gs://bucket` there."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.support.bucket", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout.readline() == b"serving\n"
            address = f"http://localhost:{port}"
            yield {
                "STORAGE_EMULATOR_HOST": address,  # gcsfs
                "TENSORSTORE_GCS_HTTP_URL": address,
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # or it asks Google what kind of bucket it is
                "GCE_METADATA_HOST": "localhost:1",  # where nobody answers: credentials are looked for there
            }
        finally:
            server.kill()


def _with_generation(download):
    """A download with the header by which tensorstore knows an object's version; the emulator leaves it out."""

    def with_header(request, response, storage, *args, **kwargs):
        try:
            held = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = held["generation"]
        except Exception:
            pass  # as `download` tells
        return download(request, response, storage, *args, **kwargs)

    return with_header


def main() -> None:
    from gcp_storage_emulator.handlers import objects

    objects.download = _with_generation(objects.download)
    from gcp_storage_emulator.server import create_server

    create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket=NAME).start()
    print("serving", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()

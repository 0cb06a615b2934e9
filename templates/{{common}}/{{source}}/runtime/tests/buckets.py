"""Servers on loopback that speak the protocols of Google Cloud Storage and S3, in a process."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from ...records import objects

BUCKET = "bucket"
NEEDED = {"gs": ("gcsfs", "gcp_storage_emulator"), "s3": ("s3fs", "moto.server")}
GS = """
import sys
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).run()
"""
S3 = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False)
server.start()
import boto3
boto3.client("s3").create_bucket(Bucket=sys.argv[2])
import threading
threading.Event().wait()
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def serving(scheme: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The URL of an empty bucket, and the variables by which clients find its server."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    variables = {
        "gs": {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address},
        "s3": {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        },
    }[scheme]
    code = {"gs": GS, "s3": S3}[scheme]
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(port), BUCKET],
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        probe = {"gs": f"{address}/storage/v1/b/{BUCKET}", "s3": f"{address}/{BUCKET}"}[scheme]
        end_s = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(probe).close()
                break
            assert server.poll() is None, f"the server of {scheme} ended"
            assert time.monotonic() < end_s, f"no server of {scheme} answers"
            time.sleep(0.1)
        yield f"{scheme}://{BUCKET}", variables
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module", params=list(NEEDED))
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a bucket whose server this process and, by `variables`, its children find."""
    for module in NEEDED[request.param]:
        pytest.importorskip(module, reason="uv sync --extra gcs --extra s3 --group buckets")
    with serving(request.param) as (url, found), pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        objects._open.cache_clear()  # it knows the server of another module's tests
        yield url


def variables() -> dict[str, str]:
    """What a child needs to find the server: it is forked from a process that began earlier."""
    starts = ("STORAGE_", "TENSORSTORE_", "AWS_")
    return {name: value for name, value in os.environ.items() if name.startswith(starts)}

"""A real S3 server in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.distributed import free_port

START_S = 120


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Yields the environment variables that lead to a server without a bucket."""
    port = free_port()
    server = subprocess.Popen(
        [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_S
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None, "the S3 server has ended"
            assert time.monotonic() < deadline, "the S3 server does not come up"
            time.sleep(0.05)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.kill()
        server.wait()


@contextmanager
def s3_bucket() -> Iterator[dict[str, str]]:
    """Yields the variables of a server with the empty bucket `bucket`; they are not set in the environment."""
    import s3fs

    with s3_server() as settings:
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem(
            key=settings["AWS_ACCESS_KEY_ID"],
            secret=settings["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=settings["AWS_ENDPOINT_URL"],
        ).mkdir("bucket")
        try:
            yield settings
        finally:
            s3fs.S3FileSystem.clear_instance_cache()

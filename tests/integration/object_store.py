"""A real S3 server on this machine, and s3fs told of it."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from rlpipe.runtime.local import free_port


@contextlib.contextmanager
def served(bucket: str) -> Iterator[dict[str, str]]:
    """The environment in which `s3://bucket` is that of a server of the tests."""
    import boto3

    port = free_port()
    # In a process of its own: what Flask leaves in this one's modules stops vLLM from starting.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for(port, server)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "of-the-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client("s3", **_client(environment)).create_bucket(Bucket=bucket)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield environment
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        server.kill()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the S3 server does not answer on port {port} (exit code {server.poll()})")


def _client(environment: dict[str, str]) -> dict[str, str]:
    return {
        "endpoint_url": environment["AWS_ENDPOINT_URL"],
        "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
        "region_name": environment["AWS_DEFAULT_REGION"],
    }

"""moto's S3 on 127.0.0.1, with an empty bucket."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs the server. Yields the name of the bucket. Skips the test without moto or obstore."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("obstore")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        values = {
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ENDPOINT": f"http://{host}:{port}",
            "AWS_ALLOW_HTTP": "true",
        }
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        name = f"boxes-{uuid.uuid4()}"  # all servers of a process have the same buckets
        boto3.client("s3").create_bucket(Bucket=name)
        yield name
    finally:
        server.stop()

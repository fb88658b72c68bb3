"""Azurite, Microsoft's emulator of Azure's blobs, on 127.0.0.1, with an empty container."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import hmac
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import free_port, listening, writing_its_id

from kimbox.run import which

#: The account that each Azurite has, and its key, which is in its documentation.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

CONTAINER = "boxes"

#: The version of the protocol.
VERSION = "2021-08-06"


def create_container(port: int) -> None:
    """Sends Create Container, authorised with Shared Key (both in the REST API of Azure Storage)."""
    date = email.utils.formatdate(usegmt=True)
    resource = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    signed = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{VERSION}\n{resource}"
    digest = hmac.digest(base64.b64decode(KEY), signed.encode(), hashlib.sha256)
    signature = base64.b64encode(digest).decode()
    headers = {"x-ms-date": date, "x-ms-version": VERSION, "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("PUT", f"/{ACCOUNT}/{CONTAINER}?restype=container", headers=headers)
        assert 201 == connection.getresponse().status


@contextlib.contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs the emulator. Yields the name of the container. Skips the test without the program or obstore."""
    pytest.importorskip("obstore")
    program = which("azurite-blob")
    if program is None:
        pytest.skip("needs azurite-blob: `npm install --global azurite`")
    port, pid_file = free_port(), folder / "azurite.pid"
    options = ["--inMemoryPersistence", "--disableTelemetry", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    argv = writing_its_id([str(program), *options], pid_file)
    with listening(argv, port, pid_file, folder / "azurite.log"):
        create_container(port)
        values = {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_ENDPOINT": f"http://127.0.0.1:{port}/{ACCOUNT}",
            "AZURE_ALLOW_HTTP": "true",
        }
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        yield CONTAINER

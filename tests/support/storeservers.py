"""Empty stores of each kind on real servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import azurite
import bucket
import davserver
import nginxdav
import pytest
import realsshd
import registry

#: Azure's emulator is no package of Debian or Python: `script/test soak` installs it.
KINDS = ("folder", "sftp", "web", "nginx", "oci", "s3", pytest.param("az", marks=pytest.mark.soak))


@contextlib.contextmanager
def serving(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs the server of an empty store. Yields the URL of the store. HOME is the folder, with what a login needs."""
    monkeypatch.setenv("HOME", str(folder))
    if kind == "folder":
        yield str(folder / "store")
    elif kind == "web":
        with davserver.serving(folder / "served") as dav:
            yield dav.url
    elif kind == "s3":
        with bucket.serving(monkeypatch) as name:
            yield f"s3://{name}/deep/tiny"
    elif kind == "az":
        with azurite.serving(folder, monkeypatch) as name:
            yield f"az://{name}/deep/tiny"
    elif kind == "nginx":
        with nginxdav.serving(folder) as url:
            yield url
    elif kind == "oci":
        with registry.serving(folder) as port:
            yield f"oci://127.0.0.1:{port}/boxes/tiny"
    else:
        with realsshd.serving(folder, "Subsystem sftp internal-sftp\n") as endpoint:
            (folder / ".ssh").mkdir()
            host_key = (folder / "known_hosts").read_text().partition(" ")[2]
            (folder / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{endpoint.port} {host_key}")
            (folder / ".ssh/config").write_text(f"Host 127.0.0.1\n  IdentityFile {folder}/client\n")
            monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
            yield f"sftp://{endpoint.user}@127.0.0.1:{endpoint.port}{folder}/deep/er"

"""Debian's docker-registry on 127.0.0.1."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import free_port, listening, writing_its_id

from kimbox.run import which

CONFIGURATION = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/registry}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Runs a registry with its blobs in the folder. Yields the port. Skips the test without the program."""
    program = which("docker-registry")
    if program is None:
        pytest.skip("needs the package docker-registry")
    port = free_port()
    (folder / "registry.yaml").write_text(CONFIGURATION.format(folder=folder, port=port))
    pid_file = folder / "registry.pid"
    argv = writing_its_id([str(program), "serve", str(folder / "registry.yaml")], pid_file)
    with listening(argv, port, pid_file, folder / "registry.log"):
        yield port

"""Debian's docker-registry on 127.0.0.1."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import free_port, listening

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
    # The shell writes the id of the process that becomes the registry.
    script = 'echo $$ >"$1"; exec "$2" serve "$3"'
    argv = ["sh", "-c", script, "sh", str(pid_file), str(program), str(folder / "registry.yaml")]
    with listening(argv, port, pid_file, folder / "registry.log"):
        yield port

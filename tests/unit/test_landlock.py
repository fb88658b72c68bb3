"""The limit on the TCP ports to which a program connects, with the kernel of this host."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from waiting import until

from kimbox import landlock, run
from kimbox.errors import KimboxError

#: Connects to each port of its arguments; prints a line for each, and whether it may still listen.
CONNECT = """
import socket, sys
for port in sys.argv[1:]:
    try:
        socket.create_connection(("127.0.0.1", int(port)), timeout=30)
        print("open")
    except PermissionError:
        print("denied")
socket.create_server(("127.0.0.1", 0))
print("listens")
"""


@pytest.mark.skipif(not landlock.limits_ports(), reason="this kernel has no Landlock with ports (Linux 6.7)")
@pytest.mark.parametrize(("expected", "named"), [("open denied", {0}), ("denied denied", set()), ("open open", None)])
def test_a_program_connects_only_to_its_ports(tmp_path: Path, expected: str, named: set[int] | None) -> None:
    """Also through a program that starts another one. It may listen on every port."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [server.getsockname()[1] for server in (first, second)]
        code = run.detach(
            ["prlimit", "--core=0:0", "--", sys.executable, "-c", CONNECT, *map(str, ports)],
            log=tmp_path / "log",
            connects_to=None if named is None else frozenset(ports[index] for index in named),
        )
        until("the program has ended", lambda: code() is not None)
    assert [*expected.split(), "listens"] == (tmp_path / "log").read_text().split()


def test_a_program_is_not_started_without_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that refuses the limit is an error, and the program does not run."""

    def refuse(_: object) -> None:
        raise OSError("no Landlock")

    monkeypatch.setattr(run, "limit_ports", refuse)
    with pytest.raises(KimboxError, match=r"the TCP ports of .* cannot be limited"):
        run.detach(["touch", tmp_path / "ran"], log=tmp_path / "log", connects_to=frozenset())
    assert not (tmp_path / "ran").exists()

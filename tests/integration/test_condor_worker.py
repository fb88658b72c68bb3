"""The script of the box `condor-worker` that waits for its pool, with a real port in place of the central manager."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from servers import free_port

from kimbox import paths, run
from kimbox.errors import KimboxError

SCRIPT = paths.boxes_dir() / "condor-worker/await-pool"


def words(folder: Path, port: int, idle_s: int, *options: str) -> list[str | Path]:
    """The command line of the script, for a pool at a port of this host.

    The first `systemctl` on its PATH writes its arguments to the file `calls`.
    """
    (folder / "systemctl").write_text(f'#!/bin/sh\necho "$*" >>"{folder}/calls"\n')
    (folder / "systemctl").chmod(0o755)
    name_pool(folder, port, idle_s)
    return ["env", "-i", f"PATH={folder}:/usr/bin:/bin", SCRIPT, folder / "pool", *options]


def name_pool(folder: Path, port: int, idle_s: int) -> None:
    """Writes the file that the script reads."""
    new = folder / "pool.new"
    new.write_text(f"CONDOR_POOL=127.0.0.1:{port}\nCONDOR_IDLE_S={idle_s}\n")
    new.replace(folder / "pool")


def test_it_tries_once(tmp_path: Path) -> None:
    """The exit code says whether the manager accepts a connection."""
    assert 1 == run.run(words(tmp_path, free_port(), 60, "--once"), check=False).code
    with socket.create_server(("127.0.0.1", 0)) as manager:
        assert 0 == run.run(words(tmp_path, manager.getsockname()[1], 60, "--once")).code


@pytest.mark.parametrize("idle_s", [0, 600])
def test_it_waits_for_the_pool(tmp_path: Path, idle_s: int) -> None:
    """It ends when the manager accepts a connection, and not before."""
    port = free_port()
    with run.background(words(tmp_path, port, idle_s)) as waiting:
        with pytest.raises(KimboxError, match="does not end"):
            waiting.wait(3)
        with socket.create_server(("127.0.0.1", port)):
            assert 0 == waiting.wait(30), waiting.output()
    assert not (tmp_path / "calls").exists()


def test_it_waits_for_the_pool_that_is_named_last(tmp_path: Path) -> None:
    with run.background(words(tmp_path, free_port(), 0)) as waiting:
        with pytest.raises(KimboxError, match="does not end"):
            waiting.wait(1)
        with socket.create_server(("127.0.0.1", 0)) as manager:
            name_pool(tmp_path, manager.getsockname()[1], 0)
            assert 0 == waiting.wait(30), waiting.output()


def test_without_a_pool_the_box_powers_off(tmp_path: Path) -> None:
    """After the time without a job, and the log says why."""
    done = run.run(words(tmp_path, free_port(), 1), check=False)
    assert (1, "--no-block poweroff\n") == (done.code, (tmp_path / "calls").read_text())
    assert "did not answer within 1 s" in done.stderr

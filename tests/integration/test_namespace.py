"""The namespaces of a build: who may create them, who owns the files, and that they end with kimbox."""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path

import pytest
from refused import refused

from kimbox import run
from kimbox.errors import KimboxError, MissingToolError
from kimbox.image import namespace

#: Module search path for another Python process, which needs kimbox and its libraries.
PYTHONPATH = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)])

#: Timeout of a program in these tests, in seconds.
BOUND_S = 120.0


def usable() -> bool:
    """Whether this user can build images on this host."""
    try:
        namespace.check()
    except KimboxError:
        return False
    return True


needs_namespace = pytest.mark.skipif(not usable(), reason="this user cannot build images here")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann:100000:65536\n", (100000, 65536)),
        ("1000:100000:65536\n", (100000, 65536)),
        ("bob:100000:65536\n", (0, 0)),
        ("ann:100000:1000\nann:200000:65536\nbob:1:99999\n", (200000, 65536)),
        ("anna:1:65536\n10000:1:65536\n", (0, 0)),
        ("# a comment\n\nann\nann:x:y\nann:1:2:3\n", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_subordinate_range(tmp_path: Path, text: str, expected: tuple[int, int]) -> None:
    """The largest range of the user's name or number. Invalid lines are ignored."""
    (tmp_path / "subuid").write_text(text)
    assert expected == namespace.subordinate_range(tmp_path / "subuid", "ann", 1000)


def test_no_table_grants_nothing(tmp_path: Path) -> None:
    """As on a host without the package that creates the tables."""
    assert (0, 0) == namespace.subordinate_range(tmp_path / "none", "ann", 1000)


def test_root_needs_no_user_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user gets one with all ids of the range. Both get mount and pid namespaces."""
    for uid, has_users in ((0, False), (1000, True)):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        made = namespace.command(["sh", "-c", "true"])
        assert ["--", "sh", "-c", "true"] == made[-4:]
        assert {"--mount", "--pid", "--fork", "--kill-child", "--mount-proc"} < set(made)
        assert has_users == ({"--user", "--map-root-user", "--map-auto"} < set(made))


def test_too_few_ids_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint has the command that adds ids."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(run, "require", lambda *_: "")
    monkeypatch.setattr(namespace, "subordinate_range", lambda *_: (1, 1000))
    with refused(MissingToolError, "missing-subordinate-ids", path="/etc/subuid") as caught:
        namespace.check()
    assert "usermod --add-subuids" in (caught.value.hint or "")


@needs_namespace
def test_owners_of_files(tmp_path: Path) -> None:
    """On the host a file of root belongs to the user, one of another id to a subordinate id. remove() removes both."""
    work = tmp_path / "work"
    work.mkdir()
    namespace.call(["sh", "-c", "touch mine; mkdir other; touch other/file; chown -R 65534 other; id -u"], cwd=work)
    assert os.geteuid() == (work / "mine").stat().st_uid
    assert os.geteuid() != (work / "other").stat().st_uid
    assert "0\n" == namespace.call(["id", "-u"]).stdout
    namespace.remove(work)
    assert not work.exists()


def test_remove_keeps_the_target_of_a_link(tmp_path: Path) -> None:
    """It removes the link. A path that does not exist is not an error."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    namespace.remove(tmp_path / "link")
    namespace.remove(tmp_path / "none")
    assert ["kept"] == [p.name for p in tmp_path.iterdir()]


@needs_namespace
def test_an_error_names_the_program_in_the_namespace() -> None:
    """And not unshare, which starts it."""
    with refused(run.CommandError, "command-failed", program="sh") as caught:
        namespace.call(["sh", "-c", "echo no luck >&2; exit 3"])
    assert caught.value.message.startswith("sh failed with exit status 3:\nno luck")


@needs_namespace
def test_mounts_stay_inside(tmp_path: Path) -> None:
    """They are not visible on the host."""
    (tmp_path / "m").mkdir()
    namespace.call(["sh", "-c", 'mount -t tmpfs none "$0" && touch "$0/x"', tmp_path / "m"])
    assert [] == list((tmp_path / "m").iterdir())


#: A kimbox process that is killed as soon as a program runs in the namespaces. All programs there have the FIFO open.
KILLED = """
import os, signal, sys
from kimbox.image import namespace

script = "exec 9>$0; echo up >&9; trap '' TERM HUP; sleep 1000 & sleep 1000 & echo up; wait"
with open(os.devnull, "w") as log:
    namespace.stream(["sh", "-c", script, sys.argv[1]], on_line=lambda _: os.kill(os.getpid(), signal.SIGKILL), log=log)
"""


@needs_namespace
def test_everything_inside_dies_with_kimbox(tmp_path: Path) -> None:
    """SIGKILL of kimbox ends every process in the namespaces: then no process has the FIFO open for writing."""
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        done = run.run(
            [sys.executable, "-c", KILLED, tmp_path / "fifo"],
            env={"PYTHONPATH": PYTHONPATH},
            check=False,
            timeout_s=BOUND_S,
        )
        assert -signal.SIGKILL == done.code, done.stderr
        os.set_blocking(reader, True)
        assert b"up\n" == os.read(reader, 100)
        assert select.select([reader], [], [], BOUND_S)[0], "something inside still runs"
        assert b"" == os.read(reader, 1)
    finally:
        os.close(reader)

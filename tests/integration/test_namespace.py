"""The private world of a build: who may make one, whose its files are, and that it ends with kimbox."""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path

import pytest

from kimbox import run
from kimbox.errors import MissingToolError
from kimbox.image import namespace

#: How another Python finds kimbox and what it needs.
PYTHONPATH = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)])

#: Nothing here takes longer.
BOUND_S = 120.0


def usable() -> bool:
    """Whether this user can build here."""
    try:
        namespace.check()
    except MissingToolError:
        return False
    return True


needs_namespace = pytest.mark.skipif(not usable(), reason="this user cannot build images here")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann:100000:65536\n", 65536),
        ("1000:100000:65536\n", 65536),
        ("bob:100000:65536\n", 0),
        ("ann:100000:1000\nann:200000:65536\nbob:1:99999\n", 65536),
        ("anna:1:65536\n10000:1:65536\n", 0),
        ("# a comment\n\nann\nann:x:y\nann:1:2:3\n", 0),
        ("", 0),
    ],
)
def test_subordinate_ids(tmp_path: Path, text: str, expected: int) -> None:
    """By name or number, the largest range; what is no entry is passed over."""
    (tmp_path / "subuid").write_text(text)
    assert expected == namespace.subordinate_ids(tmp_path / "subuid", "ann", 1000)


def test_no_table_grants_nothing(tmp_path: Path) -> None:
    """As on a machine where shadow was never set up."""
    assert 0 == namespace.subordinate_ids(tmp_path / "none", "ann", 1000)


def test_root_needs_no_user_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user gets one, with all ids of its range; both get mounts and processes of their own."""
    for uid, has_users in ((0, False), (1000, True)):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        made = namespace.command(["sh", "-c", "true"])
        assert ["--", "sh", "-c", "true"] == made[-4:]
        assert {"--mount", "--pid", "--fork", "--kill-child", "--mount-proc"} < set(made)
        assert has_users == ({"--user", "--map-root-user", "--map-auto"} < set(made))


def test_too_few_ids_are_an_error_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives the command that mends it."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(run, "require", lambda *_: "")
    monkeypatch.setattr(namespace, "subordinate_ids", lambda *_: 1000)
    with pytest.raises(MissingToolError) as caught:
        namespace.check()
    assert "usermod --add-subuids" in (caught.value.hint or "")


@needs_namespace
def test_whose_files_are(tmp_path: Path) -> None:
    """What root makes inside belongs to the user; what goes to another id, to another one; and remove() takes both."""
    work = tmp_path / "work"
    work.mkdir()
    namespace.call(["sh", "-c", "touch mine; mkdir other; touch other/file; chown -R 65534 other; id -u"], cwd=work)
    assert os.geteuid() == (work / "mine").stat().st_uid
    assert os.geteuid() != (work / "other").stat().st_uid
    assert "0\n" == namespace.call(["id", "-u"]).stdout
    namespace.remove(work)
    assert not work.exists()


def test_remove_spares_what_a_link_leads_to(tmp_path: Path) -> None:
    """A link goes, its target stays; what is not there is no error."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    namespace.remove(tmp_path / "link")
    namespace.remove(tmp_path / "none")
    assert ["kept"] == [p.name for p in tmp_path.iterdir()]


@needs_namespace
def test_an_error_names_the_program_inside() -> None:
    """Not unshare, which leads there."""
    with pytest.raises(run.CommandError, match=r"^sh failed with exit status 3:\nno luck"):
        namespace.call(["sh", "-c", "echo no luck >&2; exit 3"])


@needs_namespace
def test_mounts_stay_inside(tmp_path: Path) -> None:
    """The host sees nothing of them."""
    (tmp_path / "m").mkdir()
    namespace.call(["sh", "-c", 'mount -t tmpfs none "$0" && touch "$0/x"', tmp_path / "m"])
    assert [] == list((tmp_path / "m").iterdir())


#: A kimbox that is killed as soon as something runs inside. All that does holds the FIFO of its argument open.
KILLED = """
import os, signal, sys
from kimbox.image import namespace

script = "exec 9>$0; echo up >&9; trap '' TERM HUP; sleep 1000 & sleep 1000 & echo up; wait"
with open(os.devnull, "w") as log:
    namespace.stream(["sh", "-c", script, sys.argv[1]], on_line=lambda _: os.kill(os.getpid(), signal.SIGKILL), log=log)
"""


@needs_namespace
def test_everything_inside_dies_with_kimbox(tmp_path: Path) -> None:
    """kill -9 of kimbox ends every process of the namespace: the FIFO that all of them hold comes to its end."""
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

"""Copies to and from a box, with rsync(1), scp(1) and a real sshd."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import realsshd
from refused import refused

from kimbox import run
from kimbox.actions import copy
from kimbox.actions.copy import copy_in, copy_out
from kimbox.errors import GuestError, StateError, UsageError
from kimbox.guest import copying, shared
from kimbox.machine.folder import Machine

SFTP = "/usr/lib/openssh/sftp-server"


@pytest.fixture(params=["rsync", "scp"])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The program that copies. Without rsync on the host, it is scp."""
    if request.param == "scp":
        which = run.which
        monkeypatch.setattr(run, "which", lambda name: None if name == "rsync" else which(name))
    return str(request.param)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine whose guest is an sshd on this host. The user's home folder is `home`."""
    folder, home = tmp_path / "sshd", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    basic = realsshd.configuration
    # The command of a session starts in the home folder of the account, which is not that of this test.
    monkeypatch.setattr(realsshd, "configuration", lambda *a: f"{basic(*a)}Subsystem sftp {SFTP} -d {home}\n")
    with realsshd.serving(folder) as endpoint:
        monkeypatch.setattr(copy, "reach", lambda *_, **__: endpoint)
        monkeypatch.setattr(copy, "check_connection", lambda *_: None)
        try:
            yield Machine("tiny")
        finally:
            shared.close(endpoint.key_path.parent)


def tree(folder: Path) -> dict[str, str]:
    """Returns what is below a folder: path -> content, target of a link, or nothing for a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = f"-> {path.readlink()}" if path.is_symlink() else "" if path.is_dir() else path.read_text()
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with names that a shell, rsync or scp would read as something else."""
    folder = tmp_path / "it's a [folder]"
    (folder / "sub dir/empty").mkdir(parents=True)
    for name in ("-rf", "$(id)", "a*b", "back\\slash", "é\nline", "co:lon", "~", "sub dir/deep"):
        (folder / name).write_text(name)
    (folder / "-rf").chmod(0o751)
    os.utime(folder / "-rf", (1_000_000, 1_000_000))
    return folder


def test_a_folder_there_and_back(box: Machine, data: Path, tmp_path: Path, program: str) -> None:
    """Names, content, permissions and times are those of the source. A second copy does the same."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for _ in range(2):
        assert program == copy_in(box, [str(data)], f"{tmp_path}/in").program
        copy_out(box, [f"{tmp_path}/in/{data.name}"], f"{tmp_path}/out")
    assert {data.name: ""} | {f"{data.name}/{name}": text for name, text in tree(data).items()} == tree(
        tmp_path / "out"
    )
    copied = (tmp_path / "out" / data.name / "-rf").stat()
    assert (0o751, 1_000_000) == (stat.S_IMODE(copied.st_mode), copied.st_mtime)


def test_names_of_targets(box: Machine, data: Path, tmp_path: Path, program: str) -> None:
    """As with cp: a folder that exists takes the source, another name is the name of the copy, `.` is the content."""
    copy_in(box, [str(data)], f"{tmp_path}/new name*")
    assert tree(data) == tree(tmp_path / "new name*")
    copy_out(box, [f"{data}/."], f"{tmp_path}/content")
    assert tree(data) == tree(tmp_path / "content")
    copy_out(box, [f"{data}/a*b"], f"{tmp_path}/a file")
    assert "a*b" == (tmp_path / "a file").read_text()
    copy_out(box, [f"{data}/sub dir", f"{data}/-rf"], str(tmp_path / "content"))
    assert tree(data) == tree(tmp_path / "content")


def test_wildcards_are_those_of_the_guest(box: Machine, data: Path, tmp_path: Path, program: str) -> None:
    """A pattern names several files. A file whose name is the text of the pattern is one of them."""
    (tmp_path / "out").mkdir()
    data = data.rename(tmp_path / "data")
    (data / ".hidden").write_text("")
    copy_out(box, [f"{data}/[-a]*", f"{data}/sub*/d*"], f"{tmp_path}/out")
    assert {"-rf": "-rf", "a*b": "a*b", "deep": "sub dir/deep"} == tree(tmp_path / "out")
    with refused(StateError, "file-not-found", name="tiny", path=f"{data}/x*"):
        copy_out(box, [f"{data}/x*"], f"{tmp_path}/out")
    with refused(StateError, "not-a-folder", path=f"{tmp_path}/none"):
        copy_out(box, [f"{data}/*"], f"{tmp_path}/none")


def test_files_of_a_guest_do_no_harm(box: Machine, tmp_path: Path, program: str) -> None:
    """Nothing is set-uid, and no link leads out of the folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret").write_text("s")
    (folder / "tool").write_text("t")
    (folder / "tool").chmod(0o6755)
    if program == "rsync":  # scp follows links: it reads what the guest can read in any case
        (folder / "out").symlink_to("../secret")
        (folder / "absolute").symlink_to("/etc/passwd")
        (folder / "within").symlink_to("tool")
    copy_out(box, [str(folder)], f"{tmp_path}/copy")
    copy_out(box, [str(folder / "tool")], f"{tmp_path}/single")
    assert {"tool": "t"} | ({"within": "-> tool"} if program == "rsync" else {}) == tree(tmp_path / "copy")
    assert [0o755] * 2 == [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("copy/tool", "single")]


def test_sparse_files(box: Machine, tmp_path: Path) -> None:
    """Holes stay holes with rsync."""
    with (tmp_path / "disk").open("wb") as file:
        file.truncate(64 << 20)
    copy_out(box, [f"{tmp_path}/disk"], f"{tmp_path}/copy")
    done = (tmp_path / "copy").stat()
    assert (64 << 20, True) == (done.st_size, done.st_blocks * 512 < 1 << 20)


def test_a_copy_that_was_interrupted(box: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that was copied is kept out of sight, and the next copy uses it."""
    text = os.urandom(3 << 20)
    (tmp_path / "large").write_bytes(text)
    partial = tmp_path / "out" / copying.PARTIAL
    partial.mkdir(parents=True)
    (partial / "large").write_bytes(text[: 2 << 20])
    copy_out(box, [f"{tmp_path}/large"], f"{tmp_path}/out")
    assert text == (tmp_path / "out/large").read_bytes()
    assert ["large"] == [path.name for path in (tmp_path / "out").iterdir()]


def test_failures(box: Machine, data: Path, tmp_path: Path, program: str) -> None:
    """What is missing, and the reason of the program, are in the error."""
    with refused(StateError, "file-not-found", path="no such file"):
        copy_in(box, ["no such file"], ":")
    with refused(GuestError, "copy-failed", name="tiny") as error:
        copy_in(box, [f"{data}/-rf"], f"{tmp_path}/no/such/folder/x")
    assert "No such file or directory" in str(error.value)
    with refused(StateError, "not-a-folder", path=f"tiny:{tmp_path}/none"):
        copy_in(box, [f"{data}/-rf", f"{data}/~"], f"{tmp_path}/none")
    (tmp_path / "x").mkdir()
    with pytest.raises(UsageError):
        copy_in(box, [f"{data}/-rf", f"{data}/../{data.name}/-rf"], f"{tmp_path}/x")


@pytest.mark.parametrize(
    "answer",
    [
        '"/etc/passwd"', '"../x"', '".bashrc"', '"sub/x.png"', '"."', 'x.png', '"a.png\\0b"', '"\\xZZ"', '"', "é" * 9,
    ],
)  # fmt: skip
def test_a_guest_that_names_other_files(answer: str) -> None:
    """It cannot make the host copy a file under a name that the user did not ask for."""
    listing = copying.Listing(("./*.png", "one"))
    for line in ("=", answer, '"./a.png"', "=", answer, '"two"/'):
        listing.feed(line)
    assert ["./a.png"] == [item.path for item in listing.items[0]]
    assert [("one", "one")] == [(item.path, item.name) for item in listing.items[1]]

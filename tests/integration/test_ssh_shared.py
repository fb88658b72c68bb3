"""The connection that `kimbox ssh` and `kimbox exec` share, with a real sshd and real clients."""

from __future__ import annotations

import os
import resource
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest
import realsshd
from waiting import until

from kimbox.guest import shared
from kimbox.guest.endpoint import Endpoint
from kimbox.run import Completed, background, run

_CLIENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background programs with SIGINT ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup(1), too, with SIGHUP
from pathlib import Path
from kimbox.guest import shared
from kimbox.guest.endpoint import Endpoint
host, port, user, key, known, alias, how, *words = sys.argv[1:]
endpoint = Endpoint(host, int(port), user, Path(key), Path(known), alias)
no_input = how == "exec -n"
run = lambda: shared.execute(endpoint, ["sh", "-c", *words], no_input=no_input)
sys.exit(run() if how.startswith("exec") else shared.shell(endpoint, words))
"""


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    """An sshd of this test alone; the key's folder has a name that is too long for a socket's path, and not simple."""
    folder = tmp_path / f"it's {'long ' * 20}%d"
    folder.mkdir()
    (tmp_path / "sshd").mkdir()
    with realsshd.serving(tmp_path / "sshd") as endpoint:
        key, known = (folder / path.name for path in (endpoint.key_path, endpoint.known_hosts_path))
        endpoint.key_path.rename(key)
        endpoint.known_hosts_path.rename(known)
        try:
            yield attrs.evolve(endpoint, key_path=key, known_hosts_path=known)
        finally:
            shared.close(folder)


def argv(endpoint: Endpoint, how: str, *words: str) -> list[str]:
    """A program that does what `kimbox exec` or `kimbox ssh` does once it knows the endpoint."""
    return [sys.executable, "-c", _CLIENT, *map(str, attrs.astuple(endpoint)), how, *words]


def client(endpoint: Endpoint, how: str, *words: str, input: str | None = None) -> Completed:
    """Runs it to its end."""
    return run(argv(endpoint, how, *words), check=False, input=input, timeout_s=60)


def logins(endpoint: Endpoint) -> int:
    """How often somebody has logged in."""
    return (endpoint.key_path.parents[1] / "sshd/log").read_text().count("Accepted publickey")


def programs(session: int) -> list[str]:
    """The programs of a session. A container may have no init that removes those that have ended."""
    listed = run(["ps", "-o", "stat=,args=", "-s", str(session)], check=False).stdout.splitlines()
    return [line for line in listed if not line.startswith("Z")]


def settled(folder: Path) -> bool:
    """Whether the first has let others at the place of the shared connection."""
    with shared._opened(folder) as handle:
        return shared._answers(handle) and shared._lock(handle)


def test_only_the_first_logs_in(endpoint: Endpoint) -> None:
    """Status, both streams and input are each command's own, as over a connection to itself."""
    for number in range(3):
        done = client(endpoint, "exec", f"cat; echo err >&2; exit {number}", input=f"in {number}\n")
        assert (number, f"in {number}\n", "err\n") == (done.code, done.stdout, done.stderr)
    assert Completed(0, "two words\n", "") == client(endpoint, "ssh", "echo", "two", "words")
    assert 1 == logins(endpoint)


def test_it_is_opened_before_the_first_command(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that comes during the login waits for it. Nothing is opened twice, or stays without an sshd."""
    folder = endpoint.key_path.parent
    shared.open_early(endpoint)
    shared.open_early(endpoint)
    assert Completed(0, "out\n", "") == client(endpoint, "exec", "echo out")
    shared.open_early(endpoint)
    until("the lock is released", lambda: settled(folder))
    assert 1 == logins(endpoint)
    shared.close(folder)
    assert not (folder / shared.SOCKET).exists()
    shared.open_early(attrs.evolve(endpoint, port=1))
    until("its ssh has ended", lambda: is_free(folder))
    assert not (folder / shared.SOCKET).exists()


def test_it_is_opened_and_awaited(endpoint: Endpoint) -> None:
    """The answer is yes, no, and nothing if there is one already."""
    assert shared.opens(attrs.evolve(endpoint, port=1), 30) is False
    assert shared.opens(endpoint, 30) is True
    assert shared.opens(endpoint, 30) is None
    assert Completed(0, "out\n", "") == client(endpoint, "exec", "echo out")
    assert 1 == logins(endpoint)


def is_free(folder: Path) -> bool:
    """Whether no process holds the place of the shared connection, and none listens there."""
    with shared._opened(folder) as handle:
        return shared._lock(handle) and not shared._answers(handle)


def test_a_login_without_an_end_is_ended(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the server accepts the connection and sends nothing."""
    monkeypatch.setattr(shared, "_START_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        shared.open_early(attrs.evolve(endpoint, port=mute.getsockname()[1]))
        assert not is_free(endpoint.key_path.parent)
        until("its ssh has ended", lambda: is_free(endpoint.key_path.parent))


def test_many_at_a_time(endpoint: Endpoint) -> None:
    """Of those that come together one becomes the connection; nobody complains, and all get their answer."""
    with ThreadPoolExecutor(5) as pool:
        for _ in range(2):
            done = list(pool.map(lambda n: client(endpoint, "exec", f"echo {n}"), range(5)))
            assert [Completed(0, f"{n}\n", "") for n in range(5)] == done
    assert logins(endpoint) <= 5


def test_thirty_at_a_time(endpoint: Endpoint) -> None:
    """More than sshd accepts before they have logged in (MaxStartups). Those that come first wait for one login."""
    with ThreadPoolExecutor(30) as pool:
        done = list(pool.map(lambda n: client(endpoint, "exec", f"echo {n}"), range(30)))
    assert [Completed(0, f"{n}\n", "") for n in range(30)] == done
    assert 1 == logins(endpoint)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGINT])
def test_a_program_that_a_signal_killed(endpoint: Endpoint, number: signal.Signals) -> None:
    """The exit code is 128 + N, as in a shell. The shell's report of it is not the program's output."""
    assert Completed(128 + number, "", "") == client(endpoint, "exec", f"kill -{number} $$")


@pytest.mark.parametrize(
    ("number", "script"),
    [
        (signal.SIGINT, "sleep 987 & wait"),
        (signal.SIGTERM, "trap '' INT TERM HUP; sleep 987 & sleep 988"),
        (signal.SIGHUP, "timeout 99 sleep 987"),
    ],
)
def test_a_signal_ends_the_command_and_what_it_started(
    endpoint: Endpoint, tmp_path: Path, number: signal.Signals, script: str
) -> None:
    """Also programs in other process groups, and programs that ignore the signal. Other commands continue."""
    marker = f"{tmp_path}/on"
    script = f"echo $$ >{marker}.new; mv {marker}.new {marker}; {script}"
    with ThreadPoolExecutor(1) as pool, background(argv(endpoint, "exec", script)) as ended:
        until("it is on", Path(marker).exists)
        other = pool.submit(client, endpoint, "exec", f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo other")
        session = os.getsid(int(Path(marker).read_text()))
        assert programs(session)
        ended.send_signal(number)
        assert 128 + number == ended.wait(60)
        assert [] == programs(session)
        (tmp_path / "go").touch()
        assert Completed(0, "other\n", "") == other.result()


def test_a_connection_that_cannot_start_programs(endpoint: Endpoint, tmp_path: Path) -> None:
    """As after a fork bomb, which takes all processes of its connection. A signal ends the command nevertheless."""
    script = f"read -r _ _ _ sshd _ </proc/$PPID/stat; echo $$ $sshd >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/on"
    with background(argv(endpoint, "exec", f"{script}; sleep 987 & wait")) as ended:
        until("it is on", (tmp_path / "on").exists)
        until("the connection is shared", lambda: settled(endpoint.key_path.parent))
        assert shared.can_start(endpoint)
        command, sshd = map(int, (tmp_path / "on").read_text().split())
        session = os.getsid(command)
        # sshd needs files for the streams of a program.
        used = 1 + max(int(file.name) for file in Path(f"/proc/{sshd}/fd").iterdir())
        resource.prlimit(sshd, resource.RLIMIT_NOFILE, (used, used))
        assert 255 == client(endpoint, "exec", "true").code
        assert not shared.can_start(endpoint)
        ended.send_signal(signal.SIGTERM)
        assert 128 + signal.SIGTERM == ended.wait(60)
        assert [] == programs(session)
    shared.retire(endpoint.key_path.parent)
    assert Completed(0, "back\n", "") == client(endpoint, "exec", "echo back")


def test_a_program_that_handles_the_signal(endpoint: Endpoint, tmp_path: Path) -> None:
    """It ends in its own way, with its own exit code and its last output."""
    script = f"trap 'echo saved; exit 7' TERM; touch {tmp_path}/on; while :; do sleep 0.05; done"
    with background(argv(endpoint, "exec", script)) as ended:
        until("it is on", (tmp_path / "on").exists)
        ended.send_signal(signal.SIGTERM)
        # stdout and stderr arrive on two channels: the shell's own message about `sleep` may come later.
        assert (7, True) == (ended.wait(60), "saved" in ended.output().splitlines())


def test_a_program_in_the_background(endpoint: Endpoint, tmp_path: Path) -> None:
    """As with ssh(1), its output is awaited. A program whose files are its own continues after the command."""
    waits = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    with background(argv(endpoint, "exec", f"({waits}; echo late) & echo early; touch {tmp_path}/on")) as waiting:
        until("it is on", (tmp_path / "on").exists)
        own = f"(touch {tmp_path}/own; {waits}; touch {tmp_path}/end) >/dev/null 2>&1 </dev/null &"
        assert Completed(0, "", "") == client(endpoint, "exec", own)
        assert not (tmp_path / "end").exists()
        (tmp_path / "go").touch()
        assert 0 == waiting.wait(60)
        assert "early\nlate\n" == waiting.output()
    until("the other has ended", (tmp_path / "end").exists)


def test_a_loop_keeps_its_input(endpoint: Endpoint, tmp_path: Path) -> None:
    """With an empty stdin, a command in a `while read` loop does not read the rest of the loop's input."""
    words = shlex.join(argv(endpoint, "exec -n", "cat; echo done"))
    done = run(["sh", "-c", f"while read -r line; do echo $line; {words}; done"], input="1\n2\n3\n")
    assert "1\ndone\n2\ndone\n3\ndone\n" == done.stdout


def test_output_that_cannot_be_written(endpoint: Endpoint, tmp_path: Path) -> None:
    """A full disk is an error of stdout, and the command ends. A file that can be written has all of the output."""
    script = f"echo $$ >{tmp_path}/pid; while echo output; do sleep 0.05; done"
    done = run(["sh", "-c", f"{shlex.join(argv(endpoint, 'exec', script))} >/dev/full"], check=False, timeout_s=60)
    assert (1, "stdout") == (done.code, done.stderr.strip().rpartition(": ")[2].strip("'"))
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()
    file = tmp_path / "out"
    script = "head -c 3000000 /dev/zero"
    for _ in range(2):
        run(["sh", "-c", f"{shlex.join(argv(endpoint, 'exec', script))} >>{file}"])
    assert 6_000_000 == file.stat().st_size


def test_where_no_socket_can_be_made(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full, say: each has a connection to itself."""
    folder = endpoint.key_path.parent
    (folder / f"{shared.SOCKET}.probe").touch()
    for _ in range(2):
        assert Completed(0, "in\n", "") == client(endpoint, "exec", "echo in")
    assert 2 == logins(endpoint)
    assert not (folder / shared.SOCKET).exists()


def test_while_the_first_goes_on_another_becomes_it(endpoint: Endpoint, tmp_path: Path) -> None:
    """A shell that is open for hours keeps nobody from sharing a connection after the first was retired."""
    script = f"touch {tmp_path}/on; until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(client, endpoint, "exec", script)
        until("it is on", (tmp_path / "on").exists)
        until("it is settled", lambda: settled(endpoint.key_path.parent))
        shared.retire(endpoint.key_path.parent)
        for _ in range(3):
            assert 0 == client(endpoint, "exec", "true").code
        assert 2 == logins(endpoint)
        (tmp_path / "go").touch()
        assert 0 == going.result().code


def test_options_of_ssh_have_a_connection_to_themselves(endpoint: Endpoint) -> None:
    """What they ask for, a forwarded port say, ends with it; and relative paths are those of the user's folder."""
    assert 0 == client(endpoint, "ssh", "-v", "true").code
    assert not (endpoint.key_path.parent / shared.SOCKET).exists()
    client(endpoint, "exec", "true")
    assert 0 == client(endpoint, "ssh", "-oLogLevel=QUIET", "true").code
    assert 3 == logins(endpoint)


@pytest.mark.parametrize("end", [shared.close, shared.retire])
def test_it_can_be_ended(endpoint: Endpoint, end: Callable[[Path], None]) -> None:
    """The next one makes another; to end what is not there is no error."""
    folder = endpoint.key_path.parent
    end(folder)
    for number in range(1, 3):
        assert 0 == client(endpoint, "exec", "true").code
        assert number == logins(endpoint)
        end(folder)
        assert not (folder / shared.SOCKET).exists()


def test_who_uses_it_when_it_is_retired_goes_on(endpoint: Endpoint, tmp_path: Path) -> None:
    """A snapshot of the box cuts off nobody."""
    client(endpoint, "exec", "true")
    script = f"touch {tmp_path}/on; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo still"
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(client, endpoint, "exec", script)
        until("it is on", (tmp_path / "on").exists)
        shared.retire(endpoint.key_path.parent)
        assert 0 == client(endpoint, "exec", "true").code
        assert 2 == logins(endpoint)
        (tmp_path / "go").touch()
        assert Completed(0, "still\n", "") == going.result()


def test_one_that_was_killed_is_replaced(endpoint: Endpoint) -> None:
    """Its socket is left; the next connects anew, silently."""
    folder = endpoint.key_path.parent
    client(endpoint, "exec", "true")
    told = run(["ssh", "-F", "none", f"-oControlPath={shared.SOCKET}", "-O", "check", "box"], cwd=folder).stderr
    os.kill(int(told.split("pid=")[1].split(")")[0]), signal.SIGKILL)
    for _ in range(2):
        assert Completed(0, "back\n", "") == client(endpoint, "exec", "echo back")
    assert 2 == logins(endpoint)


def test_a_lost_connection_is_told(endpoint: Endpoint) -> None:
    """Whoever shares it ends as ssh does when the other side is gone."""
    assert 255 == client(endpoint, "exec", "read -r _ _ _ sshd _ </proc/$PPID/stat; kill -9 $sshd; sleep 20").code


def test_kimbox_that_is_killed_leaves_its_command_nobody_to_talk_to(endpoint: Endpoint, tmp_path: Path) -> None:
    """As over a connection to itself; that of the others stays."""
    script = f"trap '' PIPE; touch {tmp_path}/on; while echo on 2>/dev/null; do sleep 0.05; done; touch {tmp_path}/gone"
    with background(argv(endpoint, "exec", script)):
        until("it is on", (tmp_path / "on").exists)
    until("it is gone", (tmp_path / "gone").exists)
    assert 0 == client(endpoint, "exec", "true").code
    assert 1 == logins(endpoint)

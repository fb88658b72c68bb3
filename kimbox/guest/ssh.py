"""ssh to a guest: the only module that knows fabric and paramiko.

Our key alone, the box's pinned host key alone, nothing of the user's ssh configuration, and every wait is bounded.
"""

from __future__ import annotations

import codecs
import io
import logging
import select
import shlex
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

from kimbox.errors import GuestError
from kimbox.guest.endpoint import Endpoint

#: Connecting, the banner and the login may each take this long. An emulated guest needs 1-2 s for the handshake, and
#: many times that while the rest of it starts on a busy host; one that is not there refuses at once.
CONNECT_TIMEOUT_S = 60.0

#: stdout kept in memory; what a program writes beyond it is read and dropped.
MAX_STDOUT_BYTES = 16 << 20

#: stderr kept: its end is what tells why.
MAX_STDERR_BYTES = 256 << 10

#: A longer line is handed on in pieces.
MAX_LINE_CHARACTERS = 64 << 10

#: After the exit status, output is awaited for so long: a daemon left behind may hold the channel for ever.
LINGER_S = 1.0

#: Key exchanges and ciphers that cost an emulated guest the least, best first; the others remain as a way out.
LIGHT_KEX = ("curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256")
LIGHT_CIPHERS = ("aes128-gcm@openssh.com", "aes128-ctr", "aes256-gcm@openssh.com", "aes256-ctr")

_PIECE_BYTES = 1 << 16


class Answer(NamedTuple):
    """How a command in the guest ended, and what it said."""

    code: int
    stdout: str
    stderr: str


class Guest:
    """An ssh connection to a guest, open inside `with`. Raises GuestError for all that can go wrong."""

    def __init__(self, endpoint: Endpoint, *, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._connection: Any = None

    def __enter__(self) -> Self:
        self._connection = _connect(self.endpoint, self.timeout_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def put(self, path: Path, remote: str, *, timeout_s: float = 600) -> None:
        """Copies a file to a path that the user of the endpoint may write."""
        answer = self.run(f"cat >{shlex.quote(remote)}", timeout_s=timeout_s, stdin=path)
        if answer.code != 0:
            raise GuestError(f"cannot write {remote} in the guest: {answer.stderr.strip() or 'no reason given'}")

    def run(
        self,
        command: str,
        *,
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
        stdin: Path | bytes | None = None,
    ) -> Answer:
        """Runs a shell command in the guest to its end; `stdin`, a file or what is to be sent, is sent as it is read.

        `on_line` gets each line.

        Raises GuestError if the connection is lost or the command does not end within `timeout_s` seconds; the exit
        status of the command is the caller's to judge.
        """
        import paramiko

        shown = command if len(command) <= 80 else f"{command[:77]}..."
        try:
            channel = self._connection.client.get_transport().open_session(timeout=self.timeout_s)
            with channel:
                channel.settimeout(self.timeout_s)
                channel.exec_command(command)
                with _opened(stdin) as source:
                    session = _Session(channel, source, on_line)
                    return session.to_the_end(time.monotonic() + timeout_s)
        except TimeoutError:
            raise GuestError(f"in the guest, `{shown}` did not end within {timeout_s:g} s") from None
        except (paramiko.SSHException, EOFError, OSError, AttributeError) as error:
            raise GuestError(
                f"the connection to the guest was lost during `{shown}`: {error or type(error).__name__}",
                hint="see `kimbox status` and `kimbox logs`",
            ) from None


def _opened(stdin: Path | bytes | None) -> IO[bytes]:
    """What is sent; a secret is never in a file."""
    return io.BytesIO(stdin) if isinstance(stdin, bytes) else (stdin or Path("/dev/null")).open("rb")


class _Session:
    """One command on one channel: sends stdin and reads both streams while it runs, so that no window fills up."""

    def __init__(self, channel: Any, source: IO[bytes], on_line: Callable[[str], None] | None) -> None:
        self.channel = channel
        self.source: IO[bytes] | None = source
        self.unsent = b""
        self.out = bytearray()
        self.err = bytearray()
        self.lines = [_Lines(on_line), _Lines(on_line)]

    def to_the_end(self, deadline: float) -> Answer:
        ended_at = None
        while True:
            moved = self._send() | self._receive()
            if moved:
                ended_at = None
            if self.channel.exit_status_ready() and not moved:
                ended_at = ended_at or time.monotonic()
                if self.channel.closed or self.channel.eof_received or time.monotonic() - ended_at > LINGER_S:
                    break
            if self.channel.closed and not moved:
                break
            if time.monotonic() > deadline:
                raise TimeoutError
            if not moved:
                # While there is something to send, a look at the window now and then; else until something comes.
                select.select([self.channel], [], [], 0.01 if self.source or ended_at else 0.25)
                if self.channel.eof_received and not self.channel.exit_status_ready():
                    self.channel.status_event.wait(0.02)  # select has nothing more to wait for
        for lines in self.lines:
            lines.end()
        if self.channel.exit_status < 0:
            raise EOFError("the guest closed it without an exit status")
        return Answer(self.channel.exit_status, self.out.decode(errors="replace"), self.err.decode(errors="replace"))

    def _send(self) -> bool:
        if self.source is None or self.channel.closed:
            return False
        self.unsent = self.unsent or self.source.read(_PIECE_BYTES)
        if not self.unsent:
            self.channel.shutdown_write()
            self.source = None
            return True
        if not self.channel.send_ready():
            return False
        try:
            self.unsent = self.unsent[self.channel.send(self.unsent) :]
        except OSError:  # the command has closed its stdin: its exit status says whether it minded
            self.source = None
        return True

    def _receive(self) -> bool:
        moved = False
        if self.channel.recv_ready():
            piece = self.channel.recv(_PIECE_BYTES)
            self.out += piece[: MAX_STDOUT_BYTES - len(self.out)]
            self.lines[0].feed(piece)
            moved = bool(piece)
        if self.channel.recv_stderr_ready():
            piece = self.channel.recv_stderr(_PIECE_BYTES)
            self.err += piece
            del self.err[:-MAX_STDERR_BYTES]
            self.lines[1].feed(piece)
            moved = moved or bool(piece)
        return moved


class _Lines:
    """Cuts a stream into lines of text."""

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self.on_line = on_line
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.rest = ""

    def feed(self, piece: bytes) -> None:
        if self.on_line is None:
            return
        *lines, self.rest = (self.rest + self.decoder.decode(piece)).split("\n")
        if len(self.rest) > MAX_LINE_CHARACTERS:
            lines, self.rest = [*lines, self.rest], ""
        for line in lines:
            self.on_line(line.rstrip("\r"))

    def end(self) -> None:
        if self.on_line and self.rest:
            self.on_line(self.rest)
        self.rest = ""


def _connect(endpoint: Endpoint, timeout_s: float) -> Any:
    """An open fabric connection. Raises GuestError, in words, if the guest does not answer or is another one."""
    import fabric
    import paramiko

    logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)  # it prints tracebacks of what we handle
    config = fabric.Config(lazy=True, ssh_config=paramiko.SSHConfig())  # no file of the system or the user
    connection = fabric.Connection(
        endpoint.host,
        user=endpoint.user,
        port=endpoint.port,
        config=config,
        connect_kwargs={
            "key_filename": str(endpoint.key_path),
            "allow_agent": False,
            "look_for_keys": False,
            "timeout": timeout_s,
            "banner_timeout": timeout_s,
            "auth_timeout": timeout_s,
            "channel_timeout": timeout_s,
            "transport_factory": _light_transport,
        },
    )
    connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())  # fabric has set AutoAddPolicy
    _pin(connection.client, endpoint)
    where = f"{endpoint.alias} ({endpoint.user}@{endpoint.host} port {endpoint.port})"
    try:
        connection.open()
    except paramiko.BadHostKeyException:
        _close(connection)
        raise GuestError(
            f"what answers as {where} has another host key than the box: it is not the box, or its keys were lost",
            code="host-key-mismatch",
            hint="`kimbox destroy` and `kimbox up` make a new one; do not go on if you did not expect this",
        ) from None
    except paramiko.AuthenticationException:
        _close(connection)
        raise GuestError(f"{where} does not accept the box's key {endpoint.key_path}") from None
    except (paramiko.SSHException, EOFError, OSError) as error:
        _close(connection)
        what = "does not answer in time" if isinstance(error, TimeoutError) else f"cannot be reached: {error}"
        raise GuestError(f"{where} {what}", hint="see `kimbox status` and `kimbox logs`") from None
    return connection


def _close(connection: Any) -> None:
    """Closes also what was only half open: paramiko leaves its thread and socket otherwise."""
    connection.client.close()


def _light_transport(sock: socket.socket, **kwargs: Any) -> Any:
    import paramiko

    transport = paramiko.Transport(sock, **kwargs)
    options = transport.get_security_options()
    options.kex = _preferring(LIGHT_KEX, options.kex)
    options.ciphers = _preferring(LIGHT_CIPHERS, options.ciphers)
    return transport


def _preferring(first: tuple[str, ...], known: Any) -> tuple[str, ...]:
    return (*(x for x in first if x in known), *(x for x in known if x not in first))


def _pin(client: Any, endpoint: Endpoint) -> None:
    """Gives the client the host key that known_hosts holds under the alias, as that of this address; and no other."""
    import paramiko

    known = paramiko.HostKeys()
    try:
        known.load(str(endpoint.known_hosts_path))
    except OSError as error:
        raise GuestError(f"the box's host key is not known: {error}") from None
    keys = known.lookup(endpoint.alias)
    if not keys:
        raise GuestError(
            f"the box's host key is not known: {endpoint.known_hosts_path} has none for {endpoint.alias}",
            hint="the box tells it when it boots: `kimbox reload`",
        )
    name = endpoint.host if endpoint.port == paramiko.config.SSH_PORT else f"[{endpoint.host}]:{endpoint.port}"
    for kind in list(keys):
        client.get_host_keys().add(name, kind, keys[kind])

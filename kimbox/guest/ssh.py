"""ssh connections to a guest. The only module that imports fabric and paramiko.

A connection uses the box's own key, accepts only the box's pinned host key, and reads none of the user's ssh
configuration. Every wait has a timeout.
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

#: Timeout of connecting, of the banner, and of the login, in seconds each. An emulated guest needs 1-2 s for the
#: handshake, and much longer while it boots on a busy host. If nothing listens, the connection is refused at once.
CONNECT_TIMEOUT_S = 60.0

#: Maximum size of the stdout that is kept, in bytes. The rest is read and discarded.
MAX_STDOUT_BYTES = 16 << 20

#: Maximum size of the stderr that is kept, in bytes. The end is kept, because it has the reason of a failure.
MAX_STDERR_BYTES = 256 << 10

#: Maximum length of a line, in characters. A longer line is passed on in pieces.
MAX_LINE_CHARACTERS = 64 << 10

#: How long output is read after the exit status, in seconds. A daemon that the command started may keep the channel
#: open without end.
LINGER_S = 1.0

#: Maximum size of a packet, as in OpenSSH (PACKET_MAX_SIZE), and of all lines before the login, in bytes. An ssh server
#: is a guest: without a limit, one packet could take all memory.
MAX_PACKET_BYTES = 256 << 10
MAX_GREETING_BYTES = 64 << 10

#: Key exchanges and ciphers that are fastest in an emulated guest, best first. The other ones are tried after them.
LIGHT_KEX = ("curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256")
LIGHT_CIPHERS = ("aes128-gcm@openssh.com", "aes128-ctr", "aes256-gcm@openssh.com", "aes256-ctr")

#: Size of a read or write, in bytes.
_PIECE_BYTES = 1 << 16


class Answer(NamedTuple):
    """Exit code and output of a command in the guest."""

    code: int
    stdout: str
    stderr: str


class Guest:
    """An ssh connection to a guest, open inside a `with` block. All failures are GuestErrors.

    Codes when it opens: `guest-unreachable`, `host-key-missing`, `host-key-mismatch`, `login-refused`.
    """

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
        """Copies a file to the path `remote` in the guest, as the user of the endpoint.

        Raises GuestError: `guest-write-failed`, and the errors of `run`.
        """
        answer = self.run(f"cat >{shlex.quote(remote)}", timeout_s=timeout_s, stdin=path)
        if answer.code != 0:
            raise GuestError(
                f"cannot write {remote} in the guest: {answer.stderr.strip() or 'no reason given'}",
                code="guest-write-failed",
                fields={"path": remote},
            )

    def run(
        self,
        command: str,
        *,
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
        stdin: Path | bytes | None = None,
    ) -> Answer:
        """Runs a shell command in the guest and waits for its end. Any exit code is returned, none is an error.

        `stdin` is a file, or the bytes to send. `on_line` is called with each line of stdout and stderr.

        Raises GuestError: `connection-lost`, or `timeout` if the command takes longer than `timeout_s` seconds.
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
                    return session.run_to_end(time.monotonic() + timeout_s)
        except TimeoutError:
            raise GuestError(
                f"in the guest, `{shown}` did not end within {timeout_s:g} s",
                code="timeout",
                hint="see `kimbox status` and `kimbox logs`",
            ) from None
        except (paramiko.SSHException, EOFError, OSError, AttributeError) as error:
            raise GuestError(
                f"the connection to the guest was lost during `{shown}`: {error or type(error).__name__}",
                code="connection-lost",
                hint="see `kimbox status` and `kimbox logs`",
            ) from None


def _opened(stdin: Path | bytes | None) -> IO[bytes]:
    """The input as a binary stream. Bytes are not written to a file, because they may be a secret."""
    return io.BytesIO(stdin) if isinstance(stdin, bytes) else (stdin or Path("/dev/null")).open("rb")


class _Session:
    """A command on a channel. Sends stdin and reads stdout and stderr at the same time, so that no window fills up."""

    def __init__(self, channel: Any, source: IO[bytes], on_line: Callable[[str], None] | None) -> None:
        self.channel = channel
        self.source: IO[bytes] | None = source
        self.unsent = b""
        self.out = bytearray()
        self.err = bytearray()
        self.lines = [_Lines(on_line), _Lines(on_line)]

    def run_to_end(self, deadline: float) -> Answer:
        """Runs until the command ends. Raises TimeoutError at `deadline` (time.monotonic), EOFError if it is lost."""
        idle_since = None
        while True:
            has_moved = self._send() | self._receive()
            if has_moved:
                idle_since = None
            if self.channel.exit_status_ready() and not has_moved:
                idle_since = idle_since or time.monotonic()
                if self.channel.closed or self.channel.eof_received or time.monotonic() - idle_since > LINGER_S:
                    break
            if self.channel.closed and not has_moved:
                break
            if time.monotonic() > deadline:
                raise TimeoutError
            if not has_moved:
                # select() does not report that the send window has space: poll it while there is something to send.
                select.select([self.channel], [], [], 0.01 if self.source or idle_since else 0.25)
                if self.channel.eof_received and not self.channel.exit_status_ready():
                    self.channel.status_event.wait(0.02)  # after EOF, select() returns at once
        for lines in self.lines:
            lines.end()
        if self.channel.exit_status < 0:
            raise EOFError("the guest closed the channel without an exit status")
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
        except OSError:  # the command closed its stdin; if that is an error, its exit code reports it
            self.source = None
        return True

    def _receive(self) -> bool:
        has_moved = False
        if self.channel.recv_ready():
            piece = self.channel.recv(_PIECE_BYTES)
            self.out += piece[: MAX_STDOUT_BYTES - len(self.out)]
            self.lines[0].feed(piece)
            has_moved = bool(piece)
        if self.channel.recv_stderr_ready():
            piece = self.channel.recv_stderr(_PIECE_BYTES)
            self.err += piece
            del self.err[:-MAX_STDERR_BYTES]
            self.lines[1].feed(piece)
            has_moved = has_moved or bool(piece)
        return has_moved


class _Lines:
    """Splits a byte stream into lines of text, and passes them to `on_line`."""

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
    """Opens a fabric connection. Raises GuestError, with the codes that `Guest` lists."""
    import fabric
    import paramiko

    logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)  # it prints tracebacks of errors that are handled here
    config = fabric.Config(lazy=True, ssh_config=paramiko.SSHConfig())  # reads no ssh_config of the system or the user
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
    connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())  # fabric's default is AutoAddPolicy
    _pin_host_key(connection.client, endpoint)
    where = f"{endpoint.alias} ({endpoint.user}@{endpoint.host} port {endpoint.port})"
    fields = {"alias": endpoint.alias, "host": endpoint.host, "port": str(endpoint.port)}
    try:
        connection.open()
    except paramiko.BadHostKeyException:
        _close(connection)
        raise GuestError(
            f"the ssh server at {where} has another host key than the box: it is another machine, or the box lost its "
            "keys",
            code="host-key-mismatch",
            hint="if you did not expect this, do not continue; `kimbox destroy` and `kimbox up` make a new box",
            fields=fields,
        ) from None
    except paramiko.AuthenticationException:
        _close(connection)
        raise GuestError(
            f"{where} does not accept the box's key {endpoint.key_path}",
            code="login-refused",
            hint="see `kimbox logs`; `kimbox reload` restores the key of a box that booted without it",
            fields=fields,
        ) from None
    except (paramiko.SSHException, EOFError, OSError) as error:
        _close(connection)
        reason = "does not answer in time" if isinstance(error, TimeoutError) else f"cannot be reached: {error}"
        hint = "see `kimbox status` and `kimbox logs`"
        raise GuestError(f"{where} {reason}", code="guest-unreachable", hint=hint, fields=fields) from None
    return connection


def _close(connection: Any) -> None:
    """Closes a connection that may be half open. `connection.close()` would leave paramiko's thread and socket."""
    connection.client.close()


def _bound_memory(packetizer: Any) -> None:
    """Limits what a server can make paramiko read into memory: the size of a packet, and the lines before the login."""
    import paramiko

    read_all, read_line_part, greeting_bytes = packetizer.read_all, packetizer._read_timeout, 0

    def read_bounded(count: int, *args: Any, **kwargs: Any) -> Any:
        if count > MAX_PACKET_BYTES:
            raise paramiko.SSHException(f"the server announced a packet of {count} bytes")
        return read_all(count, *args, **kwargs)

    def read_greeting(timeout: float) -> Any:
        nonlocal greeting_bytes
        part = read_line_part(timeout)
        greeting_bytes += len(part)
        if greeting_bytes > MAX_GREETING_BYTES:
            raise paramiko.SSHException(f"the server sent more than {MAX_GREETING_BYTES} bytes before the login")
        return part

    packetizer.read_all, packetizer._read_timeout = read_bounded, read_greeting


def _light_transport(sock: socket.socket, **kwargs: Any) -> Any:
    """A paramiko transport that prefers LIGHT_KEX and LIGHT_CIPHERS."""
    import paramiko

    transport = paramiko.Transport(sock, **kwargs)
    _bound_memory(transport.packetizer)
    options = transport.get_security_options()
    options.kex = _preferring(LIGHT_KEX, options.kex)
    options.ciphers = _preferring(LIGHT_CIPHERS, options.ciphers)
    return transport


def _preferring(first: tuple[str, ...], known: Any) -> tuple[str, ...]:
    return (*(x for x in first if x in known), *(x for x in known if x not in first))


def _pin_host_key(client: Any, endpoint: Endpoint) -> None:
    """Makes the client accept only the host key that known_hosts has for the alias.

    Raises GuestError (`host-key-missing`) if known_hosts has none.
    """
    import paramiko

    known = paramiko.HostKeys()
    try:
        known.load(str(endpoint.known_hosts_path))
    except OSError as error:
        raise _missing_host_key(endpoint, str(error)) from None
    keys = known.lookup(endpoint.alias)
    if not keys:
        raise _missing_host_key(endpoint, f"{endpoint.known_hosts_path} has none for {endpoint.alias}")
    name = endpoint.host if endpoint.port == paramiko.config.SSH_PORT else f"[{endpoint.host}]:{endpoint.port}"
    for kind in list(keys):
        client.get_host_keys().add(name, kind, keys[kind])


def _missing_host_key(endpoint: Endpoint, reason: str) -> GuestError:
    return GuestError(
        f"the box's host key is not known: {reason}",
        code="host-key-missing",
        hint="the box reports it when it boots: run `kimbox reload`",
        fields={"alias": endpoint.alias},
    )

"""A store on a server with SFTP, over the user's own ssh keys, agent, ~/.ssh/config and known_hosts."""

from __future__ import annotations

import contextlib
import errno
import getpass
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import attrs

from kimbox.errors import KimboxError, UsageError
from kimbox.files import CHUNK_BYTES
from kimbox.transfer.address import public_url
from kimbox.transfer.stores import base

if TYPE_CHECKING:
    from paramiko import SFTPClient, SSHClient

#: Timeout of the login, and of a request without progress, in seconds.
LOGIN_TIMEOUT_S = 30.0
STALL_S = 60.0


@attrs.define
class SftpStore:
    """A folder of a server. An object gets a temporary name first, and is then renamed."""

    url: str
    folder: str
    _client: SSHClient
    _sftp: SFTPClient

    def read(self, name: str, offset: int, size: int) -> bytes:
        with self._errors(f"reading {name}"):
            try:
                with self._sftp.open(self._path(name), "rb") as file:
                    size = min(size, base.READ_BYTES, max(0, (file.stat().st_size or 0) - offset))
                    if size <= 0:
                        return b""
                    return b"".join(file.readv([(offset, size)]))  # asks for all parts at once
            except FileNotFoundError:
                raise base.missing(self.url, name) from None

    def size(self, name: str) -> int | None:
        with self._errors(f"reading {name}"):
            try:
                return self._sftp.stat(self._path(name)).st_size
            except FileNotFoundError:
                return None

    def write(self, name: str, source: Path) -> None:
        with self._errors(f"writing {name}"), source.open("rb") as file, self._new(name, file) as temporary:
            self._sftp.posix_rename(temporary, self._path(name))

    def create(self, name: str, data: bytes, uses: Sequence[str]) -> bool:
        with self._errors(f"writing {name}"), self._new(name, io.BytesIO(data)) as temporary:
            try:
                self._sftp.rename(temporary, self._path(name))  # of protocol 3: fails if the name is taken
            except OSError:
                if self.size(name) is None:
                    raise
                return False
        return True

    def names(self, folder: str) -> list[str]:
        with self._errors(f"listing {folder}"):
            try:
                found = self._sftp.listdir(f"{self.folder}/{folder}")
            except FileNotFoundError:
                return []
        return sorted(name for name in (f"{folder}/{one}" for one in found[: base.MAX_NAMES]) if base.is_name(name))

    def remove(self, name: str) -> None:
        with self._errors(f"removing {name}"), contextlib.suppress(FileNotFoundError):
            self._sftp.remove(self._path(name))

    def close(self) -> None:
        self._client.close()

    def _path(self, name: str) -> str:
        return f"{self.folder}/{base.check_name(name)}"

    @contextlib.contextmanager
    def _new(self, name: str, data: IO[bytes]) -> Iterator[str]:
        """Writes a temporary file beside the object, and yields its path."""
        place = self._path(name).rpartition("/")[0]
        self._make(place)
        temporary = f"{place}/.{os.urandom(8).hex()}.tmp"
        try:
            with self._sftp.open(temporary, "wbx") as file:
                file.set_pipelined(True)
                while piece := data.read(CHUNK_BYTES):
                    file.write(piece)
            yield temporary
        finally:
            with contextlib.suppress(OSError, EOFError):
                self._sftp.remove(temporary)

    def _make(self, folder: str) -> None:
        """Creates a folder and those above it."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(self._sftp.stat(folder).st_mode or 0):
                return
        if parent := folder.rpartition("/")[0]:
            self._make(parent)
        with contextlib.suppress(OSError):  # another saver was faster, or the next request fails and says why
            self._sftp.mkdir(folder, 0o700 if folder == self.folder else 0o777)  # saves have the files of users

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        from paramiko import SSHException

        try:
            yield
        except (OSError, EOFError, SSHException) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise base.full(self.url, what) from None
            reason = str(error) or "the connection was lost"
            hint = "a server reports a full disk as Failure: look for space there" if reason == "Failure" else None
            raise base.failed(self.url, what, reason[:200], hint) from None


def open_sftp(url: str) -> SftpStore:
    """Opens the store at sftp://[USER@]HOST[:PORT]/PATH. The server's host key must be in known_hosts.

    Raises UsageError (`bad-url`), KimboxError (`store-failed`).
    """
    import paramiko

    shown = public_url(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.path in ("", "/"):
        raise UsageError(f"{shown} is not sftp://HOST/PATH", code="bad-url", fields={"url": shown})
    settings = _settings(host)
    keys = [os.path.expanduser(one) for one in settings.get("identityfile", [])]  # noqa: PTH111 - as ssh does
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    try:
        for known in (settings.get("userknownhostsfile", "~/.ssh/known_hosts").split() or [""])[:4]:
            with contextlib.suppress(FileNotFoundError):
                client.load_host_keys(os.path.expanduser(known))  # noqa: PTH111 - as ssh does
        client.connect(
            settings.get("hostname", host),
            port=port or int(settings.get("port", "22")),
            username=unquote(parts.username) if parts.username else settings.get("user", getpass.getuser()),
            key_filename=keys or None,  # type: ignore[arg-type]  # paramiko takes a list, too
            timeout=LOGIN_TIMEOUT_S,
            banner_timeout=LOGIN_TIMEOUT_S,
            auth_timeout=LOGIN_TIMEOUT_S,
        )
        sftp = client.open_sftp()
        sftp.get_channel().settimeout(STALL_S)  # type: ignore[union-attr]
    except (OSError, EOFError, ValueError, paramiko.SSHException) as error:
        client.close()
        hint = f"check that `sftp {host}` works without a password, and knows the server"
        raise base.failed(shown, "login", str(error)[:200] or type(error).__name__, hint) from None
    return SftpStore(shown, unquote(parts.path).rstrip("/"), client, sftp)


def _settings(host: str) -> dict[str, str]:
    """The settings of a host in ~/.ssh/config."""
    import paramiko

    path = Path("~/.ssh/config").expanduser()
    try:
        return dict(paramiko.SSHConfig.from_path(str(path)).lookup(host))
    except OSError:
        return {}
    except (paramiko.SSHException, ValueError) as error:
        raise KimboxError(
            f"{path} cannot be read: {error}", code="file-unreadable", fields={"path": str(path)}
        ) from None

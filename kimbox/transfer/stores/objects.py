"""A store in a bucket of S3, Google Cloud Storage or Azure, by the library obstore (`pip install 'kimbox[stores]'`).

Credentials come from the environment and from the cloud's own chain: files and metadata services that obstore knows,
and for S3 also boto3, if that is installed. A manifest is created by a conditional request.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from kimbox.errors import MissingToolError, UsageError
from kimbox.transfer.address import public_url
from kimbox.transfer.stores import base

if TYPE_CHECKING:
    from obstore.store import ObjectStore

#: Timeout of a request, as obstore takes it, and maximum number of attempts after the first.
TIMEOUT, RETRIES = "120s", 5

#: Size of the parts in which a pack is uploaded, in bytes.
PART_BYTES = 16 << 20

#: For each kind of bucket, the variables with credentials, and the one that allows HTTP without TLS, all of obstore.
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}


@attrs.frozen
class BucketStore:
    """A prefix of a bucket."""

    url: str
    _store: ObjectStore

    def read(self, name: str, offset: int, size: int) -> bytes:
        import obstore

        with self._errors(f"reading {name}", name):
            total = obstore.head(self._store, base.check_name(name))["size"]
            size = min(size, base.READ_BYTES, total - offset)
            if size <= 0:
                return b""
            return bytes(obstore.get_range(self._store, name, start=offset, length=size))

    def size(self, name: str) -> int | None:
        import obstore

        with self._errors(f"reading {name}"):
            try:
                return int(obstore.head(self._store, base.check_name(name))["size"])
            except FileNotFoundError:
                return None

    def write(self, name: str, source: Path) -> None:
        import obstore

        with self._errors(f"writing {name}"):
            obstore.put(self._store, base.check_name(name), source, chunk_size=PART_BYTES, max_concurrency=2)

    def create(self, name: str, data: bytes, uses: Sequence[str]) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._errors(f"writing {name}"):
            try:
                obstore.put(self._store, base.check_name(name), data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def names(self, folder: str) -> list[str]:
        import obstore

        found: list[str] = []
        with self._errors(f"listing {folder}"):
            for page in obstore.list(self._store, prefix=folder, chunk_size=1000):
                found += [str(one["path"]) for one in page]
                if len(found) > base.MAX_NAMES:
                    raise base.failed(self.url, f"listing {folder}", f"it has more than {base.MAX_NAMES} objects")
        return sorted(name for name in found if base.is_name(name))

    def remove(self, name: str) -> None:
        import obstore

        with self._errors(f"removing {name}"), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, base.check_name(name))

    def close(self) -> None:
        """Does nothing."""

    @contextlib.contextmanager
    def _errors(self, what: str, name: str | None = None) -> Iterator[None]:
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except FileNotFoundError:
            raise base.missing(self.url, name or what) from None
        except (BaseError, OSError) as error:
            hint = None
            if isinstance(error, PermissionDeniedError | UnauthenticatedError):
                hint = f"check the credentials in the environment (as {CREDENTIALS[_scheme(self.url)]})"
            raise base.failed(self.url, what, _short(error), hint) from None


def _short(error: Exception) -> str:
    """The first line of an error of obstore, which may have a request and a response in further lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def open_bucket(url: str) -> BucketStore:
    """Opens the store at s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX.

    Raises MissingToolError without obstore, UsageError (`bad-url`).
    """
    shown = public_url(url)
    if importlib.util.find_spec("obstore") is None:
        raise MissingToolError(
            f"{shown} needs the Python package obstore",
            hint="install it with `pip install 'kimbox[stores]'`",
            fields={"program": "obstore"},
        )
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    if "@" in url.partition("://")[2].partition("/")[0] or "?" in url or "#" in url:
        raise UsageError(
            f"{shown} has a user name, a query or a fragment",
            code="bad-url",
            hint=f"credentials are in the environment, as {CREDENTIALS[_scheme(url)]}",
            fields={"url": shown},
        )
    more: dict[str, Any] = {}
    if _scheme(url) == "s3" and (provider := _boto3()):
        more["credential_provider"] = provider
    is_plain = os.environ.get(ALLOW_HTTP[_scheme(url)], "").lower() == "true"  # options hide it from obstore
    try:
        opened = from_url(
            url,
            client_options={"timeout": TIMEOUT, "allow_http": is_plain},
            retry_config={"max_retries": RETRIES},
            **more,
        )
    except (BaseError, ValueError) as error:
        raise UsageError(
            f"{shown} is not the URL of a bucket: {_short(error)}", code="bad-url", fields={"url": shown}
        ) from None
    return BucketStore(shown, opened)


def _scheme(url: str) -> str:
    """The kind of bucket: s3, gs or az."""
    return url.partition(":")[0]


def _boto3() -> object | None:
    """The credentials of boto3 (~/.aws, profiles, single sign-on); None without it, or if it has none."""
    if importlib.util.find_spec("boto3") is None:
        return None
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except ValueError:  # it has found none
        return None

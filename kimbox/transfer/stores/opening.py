"""Opens the store of a URL. The module of a kind of store is loaded when it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kimbox.errors import UsageError
from kimbox.transfer.address import public_url
from kimbox.transfer.stores.base import Store

#: Maximum length of a URL, in characters.
MAX_URL_CHARACTERS = 2000


def _folder(url: str) -> Store:
    from kimbox.transfer.stores.folder import FolderStore

    if url.startswith("file:"):
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise _refused(url, "a file: URL has an absolute path, as file:///srv/saves/NAME")
        return FolderStore(Path(unquote(parts.path)))
    return FolderStore(Path(url).expanduser().absolute())


def _sftp(url: str) -> Store:
    from kimbox.transfer.stores.sftp import open_sftp

    return open_sftp(url)


def _web(url: str) -> Store:
    from kimbox.transfer.stores.web import open_web

    return open_web(url)


def _oci(url: str) -> Store:
    from kimbox.transfer.stores.oci import open_oci

    return open_oci(url)


def _bucket(url: str) -> Store:
    from kimbox.transfer.stores.objects import open_bucket

    return open_bucket(url)


#: Scheme of a URL -> the function that opens its store. A path has the scheme `file`.
KINDS: dict[str, Callable[[str], Store]] = {
    "file": _folder,
    "sftp": _sftp,
    "https": _web,
    "http": _web,
    "oci": _oci,
    "s3": _bucket,
    "gs": _bucket,
    "az": _bucket,
}


def is_url(word: str) -> bool:
    """Whether a word of the command line is the URL of a store, or a path that begins with /, ./, ../ or ~/."""
    scheme, colon, _ = word.partition(":")
    if colon and scheme in KINDS:
        return True
    return word.startswith(("/", "./", "../", "~/")) and not word.endswith((".yaml", ".yml"))


def open_store(url: str) -> Store:
    """Opens the store at a URL or in a folder. Raises UsageError (`bad-url`) for any other text."""
    if len(url) > MAX_URL_CHARACTERS or not url.isprintable() or not url:
        raise _refused(url[:100], "a URL has 1 to 2000 printable characters")
    scheme, colon, _ = url.partition(":")
    if colon and "/" not in scheme:
        if scheme not in KINDS:
            raise _refused(url, f"kinds of stores: {', '.join(f'{kind}:' for kind in KINDS)} or a folder")
        user_info = url.partition("://")[2].partition("/")[0].rpartition("@")[0]
        if ":" in user_info:
            shown = public_url(url)
            raise UsageError(
                f"the URL of the store {shown} contains a password, which other users can see",
                code="secret-in-url",
                hint="write it into ~/.netrc, and run chmod 600 on that file",
                fields={"url": shown},
            )
        return KINDS[scheme](url)
    return _folder(url)


def _refused(url: str, hint: str) -> UsageError:
    return UsageError(
        f"{public_url(url)[:200]} is not the URL of a store", code="bad-url", hint=hint, fields={"url": public_url(url)}
    )

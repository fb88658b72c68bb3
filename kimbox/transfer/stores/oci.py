"""A store in a repository of an OCI registry (distribution-spec 1.1). Packs, indexes and files are blobs and layers.

A save is the tag `save-000006`: an image manifest whose config is kimbox's manifest, and whose layers are the objects
that it needs. A registry keeps blobs that a tag needs, and collects the others. A signature has a tag of its own.

A registry has no conditional request for tags. kimbox looks for the tag before it writes it, and reads it back: of two
savers in the same moment, both may see that the last one won.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote, urlencode, urljoin, urlsplit

import attrs

from kimbox.errors import KimboxError, UsageError
from kimbox.files import json_bytes, parse_json
from kimbox.log import log
from kimbox.transfer import address
from kimbox.transfer.address import Login, public_url
from kimbox.transfer.stores import base
from kimbox.transfer.stores.requests import Server, StatusError

T = TypeVar("T")

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.kimbox.save.v1+json"
LAYER_TYPE = "application/vnd.kimbox.object.v1"

#: Maximum size of a manifest of the registry, of a list of tags and of a token, in bytes.
MAX_ANSWER_BYTES = 8 << 20

#: Number of tags in one answer, and maximum number of answers.
TAGS, MAX_PAGES = 1000, 100

_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"save-([0-9]{6})")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_CHALLENGE = re.compile(r'([a-z]{1,20})="([^"]{0,1000})"')

#: Hosts of this machine, which are reached without encryption, as other programs do.
LOCAL = ("localhost", "127.0.0.1", "::1")


@attrs.define
class OciStore:
    """A repository. `root` is the URL of its API."""

    url: str
    root: str
    _login: Login | None = attrs.field(repr=False)
    _server: Server
    _token: str | None = attrs.field(default=None, repr=False)
    _configs: dict[str, tuple[str, int]] = attrs.field(factory=dict)

    def read(self, name: str, offset: int, size: int) -> bytes:
        what = f"reading {name}"
        found = self._blob(name)
        if found is None:
            raise base.missing(self.url, name)
        try:
            return self._again(lambda: self._server.part(self._blob_url(found[0]), offset, size, what, self._token))
        except StatusError as error:
            if error.status == 404:
                raise base.missing(self.url, name) from None
            raise self._error(what, error) from None

    def size(self, name: str) -> int | None:
        found = self._blob(name, fresh=True)
        if found is None or found[1] >= 0:
            return found and found[1]
        try:
            what = f"reading {name}"
            return self._again(lambda: self._server.size(self._blob_url(found[0]), what, self._token))
        except StatusError as error:
            raise self._error(f"reading {name}", error) from None

    def write(self, name: str, source: Path) -> None:
        base.check_name(name)
        if name.startswith("signatures/"):
            data = source.read_bytes()
            self._tag(_tag_of(name), self._put_bytes(data), len(data), [])
            return
        with source.open("rb") as file:
            self._put_blob(name[-64:], file, source.stat().st_size)

    def create(self, name: str, data: bytes, uses: Sequence[str]) -> bool:
        tag = _tag_of(base.check_name(name))
        if self._config(tag) is not None:
            return False
        layers = [(used[-64:], self.size(used) or 0) for used in uses if not used.startswith("signatures/")]
        digest = self._put_bytes(data)
        self._tag(tag, digest, len(data), layers)
        found = self._config(tag)
        return found is not None and found[0] == digest

    def names(self, folder: str) -> list[str]:
        if folder != "saves":
            return []
        numbers = (match[1] for tag in self._tags() if (match := _TAG.fullmatch(tag)))
        return sorted(f"saves/{number}.json" for number in numbers)

    def remove(self, name: str) -> None:
        """Removes a tag. The registry collects the blobs that no tag needs, when its owner says so."""
        if name.startswith(("saves/", "signatures/")):
            self._untag(_tag_of(base.check_name(name)))

    def close(self) -> None:
        """Does nothing: each request has a connection of its own."""

    def _blob(self, name: str, *, fresh: bool = False) -> tuple[str, int] | None:
        """Returns digest and size of the blob of an object, the size -1 if it is not known; None if there is none."""
        base.check_name(name)
        if not name.startswith(("saves/", "signatures/")):
            return name[-64:], -1
        tag = _tag_of(name)
        if fresh or tag not in self._configs:
            found = self._config(tag)
            if found is None:
                return None
            self._configs[tag] = found
        return self._configs[tag]

    def _config(self, tag: str) -> tuple[str, int] | None:
        """Returns digest and size of the config of a tag; None if there is no such tag."""
        what = f"reading the tag {tag}"
        try:
            with self._request("GET", f"{self.root}/manifests/{tag}", headers={"Accept": MANIFEST_TYPE}) as answer:
                data = self._server.body(answer, MAX_ANSWER_BYTES, what)
        except StatusError as error:
            if error.status == 404:
                return None
            raise self._error(what, error) from None
        try:
            config = parse_json(data)["config"]
            match = _DIGEST.fullmatch(config["digest"])
            if not match or not isinstance(config["size"], int) or config["size"] < 0:
                raise ValueError("no digest")
            return match[1], config["size"]
        except (ValueError, KeyError, TypeError):
            raise base.failed(self.url, what, "it is not a save of kimbox") from None

    def _put_bytes(self, data: bytes) -> str:
        """Uploads bytes as a blob. Returns its digest."""
        digest = hashlib.sha256(data).hexdigest()
        self._put_blob(digest, io.BytesIO(data), len(data))
        return digest

    def _put_blob(self, digest: str, file: IO[bytes], size: int) -> None:
        what = f"writing the blob {digest[:12]}"
        try:
            headers = {"Content-Length": "0"}
            with self._request("POST", f"{self.root}/blobs/uploads/", file=io.BytesIO(), headers=headers) as answer:
                location = urljoin(answer.url, answer.headers.get("Location", ""))
            if urlsplit(location).netloc != urlsplit(self.root).netloc or not location.startswith(("http:", "https:")):
                raise base.failed(self.url, what, "the registry names another server for the upload")
            mark = "&" if urlsplit(location).query else "?"
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            target = f"{location}{mark}digest=sha256%3A{digest}"
            with self._server.request("PUT", target, file=file, headers=headers, token=self._token):
                pass
        except StatusError as error:
            raise self._error(what, error) from None

    def _tag(self, tag: str, config: str, size: int, layers: list[tuple[str, int]]) -> None:
        """Writes the manifest of a tag."""
        data = json_bytes(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": _descriptor(CONFIG_TYPE, config, size),
                "layers": [_descriptor(LAYER_TYPE, digest, count) for digest, count in layers or [(config, size)]],
            }
        )
        headers = {"Content-Type": MANIFEST_TYPE, "Content-Length": str(len(data))}
        try:
            with self._request("PUT", f"{self.root}/manifests/{tag}", file=io.BytesIO(data), headers=headers):
                self._configs.pop(tag, None)
        except StatusError as error:
            raise self._error(f"writing the tag {tag}", error) from None

    def _untag(self, tag: str) -> None:
        """Removes a tag, if it exists. A registry that does not allow that keeps it, which is a warning."""
        self._configs.pop(tag, None)
        try:
            with self._request("HEAD", f"{self.root}/manifests/{tag}", headers={"Accept": MANIFEST_TYPE}) as answer:
                digest = answer.headers.get("Docker-Content-Digest", "")
            if not _DIGEST.fullmatch(digest):
                raise base.failed(self.url, f"removing the tag {tag}", "the registry does not tell its digest")
            with self._request("DELETE", f"{self.root}/manifests/{digest}"):
                pass
        except StatusError as error:
            if error.status in (405, 403, 400):
                log.warn(f"{self.url} does not allow to remove {tag}: status {error.status}")
            elif error.status != 404:
                raise self._error(f"removing the tag {tag}", error) from None

    def _tags(self) -> Iterator[str]:
        """Yields the tags of the repository."""
        last = ""
        for _ in range(MAX_PAGES):
            query = urlencode({"n": TAGS} | ({"last": last} if last else {}))
            try:
                with self._request("GET", f"{self.root}/tags/list?{query}") as answer:
                    data = self._server.body(answer, MAX_ANSWER_BYTES, "listing the tags")
            except StatusError as error:
                if error.status == 404:
                    return
                raise self._error("listing the tags", error) from None
            try:
                tags = [str(tag) for tag in parse_json(data).get("tags") or []]
            except (ValueError, AttributeError, TypeError):
                raise base.failed(self.url, "listing the tags", "the registry did not send a list") from None
            yield from tags
            if len(tags) < TAGS or tags[-1] == last:
                return
            last = tags[-1]

    @contextlib.contextmanager
    def _request(
        self, method: str, url: str, *, file: IO[bytes] | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[Any]:
        """Sends a request, and a second time with a token if the registry requires one."""
        try:
            opened = contextlib.ExitStack()
            answer = opened.enter_context(
                self._server.request(method, url, file=file, headers=headers, token=self._token)
            )
        except StatusError as error:
            if not self._got_token(error):
                raise
            if file is not None:
                file.seek(0)
            answer = opened.enter_context(
                self._server.request(method, url, file=file, headers=headers, token=self._token)
            )
        with opened:
            yield answer

    def _again(self, call: Callable[[], T]) -> T:
        """Calls a function, and a second time if the registry requires a token."""
        try:
            return call()
        except StatusError as error:
            if not self._got_token(error):
                raise
            return call()

    def _got_token(self, error: StatusError) -> bool:
        """Gets a new token, if an answer requires one. Its server gets the entry of ~/.netrc for it, by https alone."""
        challenge = next((v for k, v in error.headers.items() if k.lower() == "www-authenticate"), "")
        if error.status != 401 or not challenge.lower().startswith("bearer "):
            return False
        words = dict(_CHALLENGE.findall(challenge[:4000]))
        realm = words.get("realm", "")
        if not realm.startswith("https://") and urlsplit(realm).hostname not in LOCAL:
            return False
        query = urlencode({key: words[key] for key in ("service", "scope") if key in words})
        url = f"{realm}{'&' if urlsplit(realm).query else '?'}{query}"
        try:
            with self._server.request("GET", url) as answer:
                value = parse_json(self._server.body(answer, MAX_ANSWER_BYTES, "login"))
        except (StatusError, ValueError):
            return False
        token = (value.get("token") or value.get("access_token")) if isinstance(value, dict) else None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or token == self._token:
            return False
        self._token = token
        return True

    def _blob_url(self, digest: str) -> str:
        return f"{self.root}/blobs/sha256:{digest}"

    def _error(self, what: str, error: StatusError) -> KimboxError:
        if error.status == 507:
            return base.full(self.url, what)
        hint = address.login_hint(self.root) if error.status in (401, 403) else None
        reason = f"the registry answered with {error.status} {error.reason}"
        return base.failed(self.url, what, reason, hint, status=str(error.status))


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def _tag_of(name: str) -> str:
    """Returns the tag of a manifest or a signature."""
    folder, _, rest = name.partition("/")
    return f"save-{rest[:6]}" if folder == "saves" else f"signature-{rest}"


def open_oci(url: str) -> OciStore:
    """Opens the store at oci://HOST[:PORT]/REPOSITORY. Raises UsageError (`bad-url`)."""
    shown = public_url(url)
    clean, login = address.take("https" + url.removeprefix("oci"))
    parts = urlsplit(clean)
    repository = parts.path.strip("/")
    if not parts.hostname or not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise UsageError(
            f"{shown} is not oci://HOST/REPOSITORY",
            code="bad-url",
            hint="a repository has lower-case letters, digits, `.`, `_`, `-` and `/`",
            fields={"url": shown},
        )
    scheme = "http" if parts.hostname in LOCAL else "https"
    root = f"{scheme}://{parts.netloc}/v2/{quote(repository)}"
    clean, login = address.take(f"{scheme}{url.removeprefix('oci')}")
    return OciStore(shown, root, login, Server(shown, login))

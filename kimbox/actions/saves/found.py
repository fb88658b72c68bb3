"""The saves in a store: the newest one, all of them, and a signature. For the verbs that save and that create."""

from __future__ import annotations

import attrs

from kimbox.errors import ImageError, KimboxError, StateError
from kimbox.image.formats import sums
from kimbox.image.saves import manifest as manifests
from kimbox.image.saves.manifest import MAX_MANIFEST_BYTES, Manifest, name_of, number_of
from kimbox.transfer.stores import base
from kimbox.transfer.stores.base import Store

#: Maximum size of a signature, in bytes.
MAX_SIGNATURE_BYTES = 64 << 10

#: The highest number of a save.
MAX_NUMBER = 999_999


@attrs.frozen
class Found:
    """A save in a store. `manifest` is None if it cannot be read; then `problem` says why."""

    number: int
    manifest: Manifest | None
    problem: str | None = None
    is_signed: bool = False


def numbers(store: Store) -> list[int]:
    """Returns the numbers of the saves that a store lists, ascending. Of some stores it is the newest alone."""
    found = (number_of(name) for name in store.names("saves"))
    return sorted(number for number in found if number)


def read(store: Store, number: int) -> tuple[Manifest, bytes]:
    """Returns the manifest of a save, and its bytes. Raises KimboxError: `save-not-found`, `save-damaged`."""
    data = base.all_of(store, name_of(number), MAX_MANIFEST_BYTES)
    return manifests.parse_manifest(data, number, store.url), data


def newest(store: Store) -> int | None:
    """Returns the number of the newest save; None if there is none."""
    return max(numbers(store), default=None)


def require(store: Store, number: int | None) -> tuple[Manifest, bytes]:
    """Returns the save with that number, or the newest one. Raises StateError (`save-not-found`) if there is none."""
    found = number or newest(store)
    if found is None:
        raise StateError(
            f"{store.url} has no save",
            code="save-not-found",
            hint="`kimbox save BOX URL` writes one; check the URL",
            fields={"url": store.url},
        )
    return read(store, found)


def listed(store: Store) -> list[Found]:
    """Returns all saves of a store, the newest first. One that is damaged is named, and does not hide the others."""
    pending = set(numbers(store))
    found: list[Found] = []
    while pending:
        number = max(pending)
        pending.discard(number)
        try:
            manifest, data = read(store, number)
        except KimboxError as error:
            if error.code == "save-not-found":  # removed meanwhile
                continue
            if error.code not in ("save-damaged", "unsupported-format"):
                raise
            found.append(Found(number, None, error.message))
            continue
        if not found:  # of some stores, only the newest is known
            pending |= set(manifest.kept)
        found.append(Found(number, manifest, is_signed=store.size(signature_name(number, data)) is not None))
    return found


def signature_name(number: int, data: bytes) -> str:
    """Returns the name of the signature of a manifest."""
    return f"signatures/{number:06}-{manifests.digest_of(data)}"


def check_signature(store: Store, number: int, data: bytes, keys: tuple[str, ...]) -> None:
    """Raises ImageError (`signature-missing`, `signature-wrong`) unless one of the keys has signed a manifest."""
    name = signature_name(number, data)
    fields = {"url": store.url, "object": name_of(number)}
    if store.size(name) is None:
        message = f"the save {number} in {store.url} is not signed"
        raise ImageError(message, code="signature-missing", hint="`kimbox save --sign KEY` signs a save", fields=fields)
    try:
        sums.verify(data, base.all_of(store, name, MAX_SIGNATURE_BYTES), keys)
    except ImageError as error:
        message = f"none of the given keys has signed the save {number} in {store.url}"
        raise ImageError(message, code=error.code, fields=fields) from None

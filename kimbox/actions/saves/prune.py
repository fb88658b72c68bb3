"""Removes the saves of a store that are not kept, and the objects that no kept save needs.

A save needs objects of its own and of the save before it alone. The objects of a save that is being written have a
higher number than the newest save. Therefore no object that is removed here is one that another saver relies on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from kimbox.actions.saves import found
from kimbox.errors import KimboxError
from kimbox.image.saves.manifest import Manifest, name_of
from kimbox.log import log
from kimbox.transfer.stores.base import Store


def prune(store: Store, newest: Manifest) -> tuple[int, ...]:
    """Removes the saves that are not kept, and objects that no kept save needs.

    The manifest of a save goes before its objects. An object whose number is higher than that of the newest save
    belongs to a saver that is at work. Returns the numbers of the removed saves.
    """
    kept = {newest.number, *newest.kept}
    there = [number for number in found.numbers(store) if number < newest.number]
    removed = sorted({*there, *_former(store, newest)} - kept)
    needed, dropped = _objects_of(store, kept), _objects_of(store, removed)
    for number in removed:
        store.remove(name_of(number))
    if needed is None:  # a kept save cannot be read: what it needs is not known
        return tuple(removed)
    orphans = {
        name
        for folder in ("packs", "indexes", "files", "signatures")
        for name in store.names(folder)
        if int(name.partition("/")[2][:6]) <= newest.number
    }
    for name in sorted(({*(dropped or ()), *orphans}) - needed):
        store.remove(name)
    return tuple(removed)


def _former(store: Store, newest: Manifest) -> set[int]:
    """The saves that the save before the newest one kept. A store that cannot list its objects knows them from it."""
    with contextlib.suppress(KimboxError):
        before = found.read(store, newest.number - 1)[0]
        return {before.number, *before.kept}
    return set()


def _objects_of(store: Store, numbers: Iterable[int]) -> set[str] | None:
    """The names of all objects that saves need. None if one of their manifests cannot be read."""
    names: set[str] = set()
    for number in sorted(numbers):
        try:
            manifest, data = found.read(store, number)
        except KimboxError as error:
            if error.code == "save-not-found":
                continue
            log.warn(f"{error.message}; no objects are removed")
            return None
        names |= {stored.name for stored in manifest.objects}
        names.add(found.signature_name(number, data))
    return names

"""Chooses the packages of an image: those of the lock, or new ones from the archives."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import attrs

from kimbox.errors import ImageError
from kimbox.lock.apt import boxsources
from kimbox.lock.apt import sources as apt
from kimbox.lock.apt.archive import FRESH_S, Archive
from kimbox.lock.apt.boxsources import BoxSources
from kimbox.lock.apt.cache import archives
from kimbox.lock.apt.packages import ALL_PACKAGES, LockedPackages, request_digest
from kimbox.lock.apt.sources import bare
from kimbox.log import log
from kimbox.spec.model import PackageImage


def choose(
    image: PackageImage,
    names: Iterable[str],
    previous: LockedPackages | None,
    *,
    update: Collection[str] | None = (),
    offline: bool = False,
) -> LockedPackages:
    """The packages `names` and all of their dependencies, each at a version.

    `previous` is returned unchanged if the request is the same and nothing is to be updated. If it was edited, it is
    restored if an archive still has all of its packages. Otherwise a package of `previous` keeps its version if the
    archives still have it. `update` names the packages that move to the newest version; None, or ALL_PACKAGES among
    them, means all.

    Raises ImageError: `offline` if packages must be chosen and the network is not allowed, `archive-unreachable`,
    `package-not-found` if there is no such package or no choice without conflicts.
    """
    names = sorted(set(names))
    request = request_digest(image.distribution, image.suite, image.mirror, names, recommends=image.recommends)
    is_kept = previous is not None and previous.request == request and update is not None and not update
    if previous and is_kept and not previous.fault(names):
        return previous if previous.chosen_digest else previous.as_chosen()
    if offline:
        raise ImageError(
            "the packages of the image are not locked yet, or the lock was edited, and choosing them takes the network",
            code="offline",
            hint="run `kimbox lock` without --offline",
        )
    if previous and is_kept and previous.is_edited and (restored := _restored(image, names, previous)):
        return restored
    old = previous.versions if previous else {}
    keep = {} if update is None or ALL_PACKAGES in update else {n: p for n, p in old.items() if n not in update}
    archive = Archive(image.distribution, tuple(apt.sources(image.distribution, image.suite, image.mirror)))
    with archive.opened():
        archive.refresh(0 if update is None or update else FRESH_S)
        versions = archive.choose(names, keep, recommends=image.recommends)
        as_of = archive.as_of()
        left_out = {} if image.recommends else archive.left_out(image.packages, versions)
    for name, others in left_out.items():
        log.info(
            f"note: {name} recommends {', '.join(others)}, which the image does not contain "
            "(add to `image: packages:` what you need, or set `image: recommends: true`)"
        )
    box = boxsources.for_box(archive.sources, image.distribution)
    _warn(box)
    chosen = LockedPackages(request, as_of, box.lines, versions, box.keys).as_chosen()
    is_same = previous and previous.chosen_digest == chosen.digest and attrs.evolve(previous, as_of=as_of) == chosen
    return previous if previous and is_same else chosen


def _restored(image: PackageImage, names: Iterable[str], edited: LockedPackages) -> LockedPackages | None:
    """The packages as they were before the lock was edited, which their digest proves. None if no archive has them."""
    for archive in archives(image, edited):
        try:
            with archive.opened():
                archive.refresh()
                versions = archive.choose(names, edited.versions, recommends=image.recommends)
        except ImageError:
            continue  # if no archive is left, the choice without the digest reports the fault
        whole = attrs.evolve(edited, versions=versions)
        if not whole.is_edited:
            return whole
    log.warn(
        "the packages in the lock were edited, and no archive has all of those that kimbox had chosen: they are chosen "
        "again, and packages that the lock still has keep their versions as far as the archives have these"
    )
    return None


def _warn(box: BoxSources) -> None:
    """Warns of sources that the box does not get, or that its apt will refuse."""
    if box.unreachable:
        names = ", ".join(sorted({f"{bare(source.uri)} {source.suite}" for source in box.unreachable}))
        state = "the box gets the other sources" if box.lines else "apt in the box has no source"
        log.warn(
            f"only this host reaches {names}, so {state}: the packages come from there, but they are no sources of the "
            f"box; `image: mirror:` in the spec names one that the box reaches too"
        )
    for source in box.without_key:
        log.warn(
            f"Signed-By names the key of {bare(source.uri)} {source.suite} by its fingerprint, so the box does not get "
            f"this key, and its apt may refuse this source; name the file of the key in Signed-By instead"
        )

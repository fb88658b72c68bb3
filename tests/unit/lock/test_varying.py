"""The files that differ between two builds: what the lock lists, and what it explains."""

from __future__ import annotations

from kimbox.image.disk.trees import Aspect
from kimbox.lock import varying

FOUND = {"/etc/x.db": ("content", "time"), "/var/lib/y/a81c": ("presence",), "/new": ("presence",)}
LISTED = {"/": "entries", "/etc/x.db": "content, time", "/var/lib/y": "entries"}


def test_what_was_found_is_listed_and_explained() -> None:
    """A file of one build only is listed as its folder, because its name may be random."""
    assert LISTED == varying.joined({}, FOUND)
    assert LISTED == varying.joined(LISTED, {"/etc/x.db": ("time",)})
    assert [] == varying.unexpected(LISTED, FOUND | {"/var/lib/y/ffff": ("presence",)})


def test_other_files_and_other_differences_are_not_explained() -> None:
    """The list is by path and by kind of difference."""
    found = {
        "/etc/x.db": ("content", "mode"),
        "/etc/y.db": ("content",),
        "/var/lib/y": ("mode",),
        "/var/lib/y/ffff": ("content",),
        "/var/lib/y/z/new": ("presence",),
    }
    assert sorted(found) == varying.unexpected(LISTED, found)


def test_a_lock_has_limits() -> None:
    """Number of files and length of a path."""
    assert varying.is_listable(LISTED)
    assert not varying.is_listable({f"/{number}": "mode" for number in range(varying.MAX_FILES + 1)})
    assert not varying.is_listable({"/" + "x" * varying.MAX_PATH_CHARACTERS: "mode"})


def test_the_words_are_those_of_the_comparison() -> None:
    """A lock has all aspects, except that of a file that only one build has."""
    assert Aspect.PRESENCE == varying.PRESENCE
    listed = varying.joined({}, {"/d/x": tuple(Aspect)})
    assert {*Aspect} - {varying.PRESENCE} == set(listed["/d/x"].split(", "))

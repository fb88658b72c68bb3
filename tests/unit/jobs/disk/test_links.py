"""Symbolic links on the disk of a job."""

from __future__ import annotations

import pytest

from kimbox.errors import ImageError
from kimbox.image.disk.ext4.content import Budget
from kimbox.jobs.disk.links import leads_out, relative

#: Links of a disk. `deep/up` leads to the root, so that `..` behind it leads out.
TARGETS = {b"deep/up": b"..", b"loop": b"loop", b"out": b"/etc", b"a": b"b/c", b"b": b"deep/down", b"to-out": b"out/x"}


@pytest.mark.parametrize(
    ("path", "target", "expected"),
    [
        (b"x", b"input/file", False),
        (b"d/x", b"../input", False),
        (b"d/x", b"../../input", True),
        (b"x", b"..", True),
        (b"x", b"/etc/passwd", True),
        (b"x", b"missing/../..", True),
        (b"x", b"missing/../other", False),
        (b"x", b"deep/up/y", False),
        (b"x", b"deep/more/../up/../..", True),
        (b"x", b"deep/up/..", True),
        (b"x", b"loop/y", False),
        (b"x", b"to-out", True),
        (b"x", b"a/y", False),
        (b"x", b".//./input", False),
    ],
)
def test_links_are_followed_as_the_kernel_does(path: bytes, target: bytes, expected: bool) -> None:
    """A link that leaves the disk is found, also behind another link."""
    assert expected == leads_out(path, TARGETS | {path: target}, Budget())


def test_many_long_chains_are_refused() -> None:
    """The work is limited for all links of a disk together."""
    targets = {b"%d" % n: b"./" * 1000 + b"%d" % (n + 1) for n in range(100)}
    budget = Budget(100_000)
    assert not leads_out(b"0", targets, budget)
    with pytest.raises(ImageError):
        [leads_out(path, targets, budget) for path in targets]


@pytest.mark.parametrize(
    ("path", "target", "expected"),
    [
        (b"x", b"/mnt/user/input/a", b"input/a"),
        (b"d/e/x", b"/mnt/user/input", b"../../input"),
        (b"d/x", b"/mnt/user", b"../"),
        (b"x", b"/mnt/user", b"."),
        (b"x", b"/mnt/username", b"/mnt/username"),
        (b"x", b"/etc", b"/etc"),
        (b"x", b"a", b"a"),
    ],
)
def test_a_link_to_the_mounted_disk_becomes_relative(path: bytes, target: bytes, expected: bytes) -> None:
    """It leads to the same file of the disk, wherever that is extracted."""
    assert expected == relative(path, target)

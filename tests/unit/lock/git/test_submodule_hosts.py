"""Submodules on another host than their parent: nothing that only this user can reach gets into a box."""

from __future__ import annotations

import pytest

from kimbox.lock.git import submodules
from kimbox.spec.nodes import Fault

FAR, NEAR = "https://h.org/a/b.git", "file:///srv/a/b"


@pytest.mark.parametrize(
    ("url", "parent", "expected"),
    [
        ("https://a1.de/c", FAR, "https://a1.de/c"),
        ("https://localhost/c", "https://localhost/a", "https://localhost/c"),
        ("git@x.org:c", NEAR, "git@x.org:c"),
        ("git@x.org:c", FAR, "your ssh keys"),
        ("ssh://git@x.org/c", "git@h.org:a/b", "your ssh keys"),
        ("https://127.0.0.1:8080/c", FAR, "private network"),
        ("http://[::1]/c", FAR, "private network"),
        ("http://[::ffff:127.0.0.1]/c", FAR, "private network"),
        ("https://10.1.2.3/c", FAR, "private network"),
        ("https://2130706433/c", FAR, "private network"),
        ("https://0x7f.1/c", FAR, "private network"),
        ("https://x.localhost/c", FAR, "private network"),
        ("https://LOCALHOST./c", "git@h.org:a/b", "private network"),
    ],
)
def test_a_submodule_on_another_host(url: str, parent: str, expected: str) -> None:
    """Public ones over https are fetched. Those that need ssh keys, and those of private networks, are refused."""
    if ":" in expected:
        assert expected == submodules.absolute_url(url, parent)
        return
    with pytest.raises(Fault) as fault:
        submodules.absolute_url(url, parent)
    assert expected in fault.value.message

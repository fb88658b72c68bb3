"""What a job reaches: the text of --network, and the addresses of the servers."""

from __future__ import annotations

import pytest

from kimbox.drivers.base import JobStart, Reach
from kimbox.errors import KimboxError, UsageError
from kimbox.jobs.network import MAX_TARGETS, Network, Target


@pytest.mark.parametrize("text", ["none", "outbound", "example.org:443", "a.test:1,db=192.0.2.7:5432,a.test:2"])
def test_the_text_is_read_and_written(text: str) -> None:
    """The same text comes back, for the record of a job."""
    assert text == str(Network.parse(text))


def test_what_is_reached() -> None:
    """Names are in lower case, and a server that is there twice counts once."""
    assert Network() == Network.parse("none")
    assert Network(is_open=True) == Network.parse("outbound")
    expected = (Target("example.org", "example.org", 443), Target("db", "192.0.2.7", 5432))
    assert expected == Network.parse("Example.org:443,db=192.0.2.7:5432,example.org:443").targets


@pytest.mark.parametrize(
    "text",
    [
        "", "all", "a", "a:", "a:0", "a:65536", "a:1,", "a:1,,b:2", ":1", "a b:1", "a:1 ", "=a:1", "-a:1", "a\n:1",
        "localhost:1", "127.0.0.1:1", "192.0.2.7:443", "1.2:3", "localhost=192.0.2.7:1", "a=[::1]:1", "x" * 300 + ":1",
        "a,b=c:1", "a:1\x1b", ",".join(f"a{number}:1" for number in range(MAX_TARGETS + 1)),
    ],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    """Also an address without a name, and a name that every guest has itself: /etc/hosts could not give it."""
    with pytest.raises(UsageError) as caught:
        Network.parse(text)
    assert "bad-value" == caught.value.code
    assert caught.value.message.isprintable()


def test_names_become_addresses() -> None:
    """This host resolves them once. An unknown one is an error."""
    assert (Reach("web", "127.0.0.1", 80),) == Network.parse("web=127.0.0.1:80").resolve()
    with pytest.raises(KimboxError) as caught:
        Network.parse("unknown.invalid:80").resolve()
    assert "name-not-resolved" == caught.value.code


def test_the_guest_gets_an_address_for_each_name() -> None:
    """Two ports of a server have the same address."""
    reach = (Reach("a", "192.0.2.1", 1), Reach("b", "192.0.2.2", 1), Reach("a", "192.0.2.1", 2))
    start = JobStart("0123456789ab", 60, reach=reach)
    assert {"a": "10.0.2.100", "b": "10.0.2.101"} == start.seen
    assert "0123456789ab 60 a=10.0.2.100,b=10.0.2.101" == start.credential()
    assert "0123456789ab infinity" == JobStart("0123456789ab").credential()

"""Networks between the boxes of a spec: what each box gets, and where faults are."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.errors import SpecError
from kimbox.spec.load import load_box
from kimbox.spec.members import read_members
from kimbox.spec.model import Network, Outbound

SPEC = """\
kimbox: 1
networks:
  lan: {subnet: 10.57.0.0/24, addresses: {a: 10.57.0.1, b: 10.57.0.2}}
  data: {subnet: 192.168.7.0/28, addresses: {b: 192.168.7.1, c: 192.168.7.2}}
boxes:
  a: {}
  b: {secure: {roles: {r: {gateway: {box: a}, outbound: [{host: c, port: 5432}]}}}}
  c: {secure: {roles: {r: {gateway: {box: a}}}}}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "kimbox.yaml").write_text(SPEC)
    return tmp_path / "kimbox.yaml"


def test_each_box_has_the_networks_that_name_it(spec: Path) -> None:
    """With the addresses of all their boxes."""
    lan = Network("lan", "10.57.0.0/24", (("a", "10.57.0.1"), ("b", "10.57.0.2")))
    data = Network("data", "192.168.7.0/28", (("b", "192.168.7.1"), ("c", "192.168.7.2")))
    assert ((lan,), (lan, data), (data,)) == tuple(load_box(spec, member=name).networks for name in "abc")
    assert ("10.57.0.2", None) == (lan.address("b"), lan.address("c"))
    assert 3 == len(read_members(spec))


def test_a_role_reaches_boxes_of_its_networks(spec: Path) -> None:
    """A gateway and a host of `outbound` have the address of the network. A box of another network is at the host."""
    secure = load_box(spec, member="b").secure
    assert secure is not None
    gateway = secure.roles[0].gateway
    assert gateway is not None
    assert ("10.57.0.1", 22, "a", True) == (gateway.host, gateway.port, gateway.box, gateway.is_on_network)
    assert (Outbound("192.168.7.2", 5432),) == secure.roles[0].outbound
    other = load_box(spec, member="c").secure
    assert other is not None
    assert other.roles[0].gateway is not None
    assert ("10.0.2.2", False) == (other.roles[0].gateway.host, other.roles[0].gateway.is_on_network)


@pytest.mark.parametrize(
    ("network", "code"),
    [
        ("{subnet: 10.57.0.0/24}", "missing-key"),
        ("{subnet: 10.57.0.0, addresses: {a: 10.57.0.1}}", "bad-value"),
        ("{subnet: 10.57.0.1/24, addresses: {a: 10.57.0.1}}", "bad-value"),
        ("{subnet: 'fd00::/64', addresses: {a: 'fd00::1'}}", "bad-value"),
        ("{subnet: 8.8.8.0/24, addresses: {a: 8.8.8.1}}", "bad-value"),
        ("{subnet: 10.0.0.0/8, addresses: {a: 10.0.0.1}}", "bad-value"),
        ("{subnet: 10.57.0.0/31, addresses: {a: 10.57.0.1}}", "bad-value"),
        ("{subnet: 10.0.2.0/24, addresses: {a: 10.0.2.9}}", "conflicting-settings"),
        ("{subnet: 10.0.0.0/16, addresses: {a: 10.0.9.9}}", "conflicting-settings"),
        ("{subnet: 10.57.0.0/24, addresses: {a: 10.58.0.1}}", "bad-value"),
        ("{subnet: 10.57.0.0/24, addresses: {a: 10.57.0.0}}", "bad-value"),
        ("{subnet: 10.57.0.0/24, addresses: {a: 10.57.0.255}}", "bad-value"),
        ("{subnet: 10.57.0.0/24, addresses: {a: here}}", "bad-value"),
        ("{subnet: 10.57.0.0/24, addresses: {a: 5}}", "wrong-type"),
        ("{subnet: 10.57.0.0/24, addresses: {a: 10.57.0.1, b: 10.57.0.1}}", "duplicate"),
        ("{subnet: 10.57.0.0/24, addresses: {A: 10.57.0.1}}", "bad-name"),
        ("{subnet: 10.57.0.0/24, addresses: {}, gateway: 10.57.0.1}", "unknown-key"),
    ],
)
def test_faults_of_a_network(tmp_path: Path, network: str, code: str) -> None:
    """Each is one problem, at its line."""
    (tmp_path / "kimbox.yaml").write_text(f"kimbox: 1\nboxes: {{a: {{}}, b: {{}}}}\nnetworks:\n  lan: {network}\n")
    with pytest.raises(SpecError) as caught:
        load_box(tmp_path / "kimbox.yaml", member="a")
    assert [(code, 4)] == [(problem.code, problem.line) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        (
            "{subnet: 10.57.0.0/24, addresses: {}}, two: {subnet: 10.57.0.128/25, addresses: {}}",
            "conflicting-settings",
            3,
        ),
        ("{subnet: 10.57.0.0/24, addresses: {}}, Two: {subnet: 10.58.0.0/24, addresses: {}}", "bad-name", 3),
    ],
)
def test_faults_of_two_networks(tmp_path: Path, text: str, code: str, line: int) -> None:
    """They may not overlap."""
    (tmp_path / "kimbox.yaml").write_text(f"kimbox: 1\nboxes: {{a: {{}}}}\nnetworks: {{one: {text}}}\n")
    with pytest.raises(SpecError) as caught:
        load_box(tmp_path / "kimbox.yaml", member="a")
    assert [(code, line)] == [(problem.code, problem.line) for problem in caught.value.problems]


def test_too_many_networks(tmp_path: Path) -> None:
    """Each needs a card at an address of its own."""
    networks = "".join(f"  n{i}: {{subnet: 10.{57 + i}.0.0/24, addresses: {{a: 10.{57 + i}.0.1}}}}\n" for i in range(5))
    (tmp_path / "kimbox.yaml").write_text(f"kimbox: 1\nboxes: {{a: {{}}}}\nnetworks:\n{networks}")
    with pytest.raises(SpecError) as caught:
        load_box(tmp_path / "kimbox.yaml", member="a")
    assert ["bad-value"] == [problem.code for problem in caught.value.problems]


def test_a_network_needs_boxes_and_no_template(tmp_path: Path) -> None:
    """One box has nothing to reach, a box that the spec lacks has no address, and a clone would have one twice."""
    network = "networks: {lan: {subnet: 10.57.0.0/24, addresses: {a: 10.57.0.1}}}\n"
    spec = tmp_path / "kimbox.yaml"
    for text, member, code in (
        ("name: a\n", None, "bad-value"),
        ("boxes: {a: {warm: true}}\n", "a", "conflicting-settings"),
    ):
        spec.write_text(f"kimbox: 1\n{text}{network}")
        with pytest.raises(SpecError) as caught:
            load_box(spec, member=member)
        assert [code] == [problem.code for problem in caught.value.problems]
    spec.write_text(f"kimbox: 1\nboxes: {{b: {{}}}}\n{network}")
    with pytest.raises(SpecError) as caught:
        read_members(spec)
    assert [("bad-value", 3)] == [(problem.code, problem.line) for problem in caught.value.problems]

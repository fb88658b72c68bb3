"""Builds the networks between the boxes of one spec."""

from __future__ import annotations

import ipaddress
import re

from kimbox.spec import rules
from kimbox.spec.model import Network
from kimbox.spec.nodes import Fault, Node, shown
from kimbox.spec.reader import Reader

#: QEMU's user network, by which every guest reaches the host and the outside.
USER_NETWORK = ipaddress.IPv4Network("10.0.2.0/24")

#: Addresses for private networks (RFC 1918).
PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))

#: Lengths of the prefix of a subnet.
MIN_PREFIX, MAX_PREFIX = 16, 30

_NAME = re.compile(r"[a-z][a-z0-9-]{0,14}")


def network_name(text: str) -> str:
    """The name of a network. It becomes a part of a file name, whose length the kernel limits."""
    if not _NAME.fullmatch(text):
        message = f"{shown(text)} cannot be the name of a network: use lower-case letters, digits and hyphens"
        raise Fault(message, "at most 15, with a letter at the start", code="bad-name")
    return text


def subnet(text: str) -> ipaddress.IPv4Network:
    """A private IPv4 subnet that does not overlap with QEMU's user network."""
    example = "for example 10.57.0.0/24"
    try:
        found = ipaddress.IPv4Network(text)
    except ValueError:
        message = f"{shown(text)} is not a subnet: write the first address and the length of the prefix"
        raise Fault(message, example, code="bad-value") from None
    if not MIN_PREFIX <= found.prefixlen <= MAX_PREFIX:
        raise Fault(
            f"the prefix of {shown(text)} is not from /{MIN_PREFIX} to /{MAX_PREFIX}", example, code="bad-value"
        )
    if not any(found.subnet_of(private) for private in PRIVATE):
        raise Fault(f"{shown(text)} is not a subnet of private addresses (RFC 1918)", example, code="bad-value")
    if found.overlaps(USER_NETWORK):
        message = f"{shown(text)} overlaps with {USER_NETWORK}, by which each box reaches the host"
        raise Fault(message, example, code="conflicting-settings")
    return found


def joined(reader: Reader, tree: Node, name: str) -> tuple[Network, ...]:
    """Returns the networks that the box `name` is in. Reports a template, whose clones would have its address."""
    found = tuple(network for network in read_networks(reader, tree.get("networks")) if network.address(name))
    warm = tree.get("warm")
    if found and warm is not None and reader.switch(warm):
        message = f"a box of a template cannot be in a network: {shown(found[0].name)} has one address for it"
        reader.fault(warm, message, "write `warm: false`, or remove its address", code="conflicting-settings")
    return found


def read_networks(reader: Reader, node: Node | None) -> tuple[Network, ...]:
    """Returns the networks of a spec: names, subnets and addresses each once."""
    found: list[Network] = []
    subnets: list[ipaddress.IPv4Network] = []
    for name, item in node.mapping.items() if node else ():
        name_node = Node(name, node.keys.get(name, item.mark)) if node else item
        reader.text(name_node, network_name, "")
        subnet_node = item.get("subnet")
        range_ = reader.text(subnet_node, subnet, None)
        if range_ is None:
            continue
        for other in subnets:
            if subnet_node and range_.overlaps(other):
                message = f"{shown(str(range_))} overlaps with {other}, the subnet of another network"
                reader.fault(subnet_node, message, code="conflicting-settings")
        subnets.append(range_)
        found.append(Network(name, str(range_), _addresses(reader, item.get("addresses"), range_)))
    return tuple(found)


def _addresses(reader: Reader, node: Node | None, range_: ipaddress.IPv4Network) -> tuple[tuple[str, str], ...]:
    """Returns name and address of each box in a network."""
    example = f"for example {range_[1]}"

    def address(text: str) -> str:
        try:
            found = ipaddress.IPv4Address(text)
        except ValueError:
            raise Fault(f"{shown(text)} is not an IPv4 address", example, code="bad-value") from None
        if found not in range_ or found in (range_.network_address, range_.broadcast_address):
            raise Fault(f"{shown(text)} is no address for a box in {range_}", example, code="bad-value")
        return str(found)

    named: list[tuple[Node, str]] = []
    boxes: list[str] = []
    for name, item in node.mapping.items() if node else ():
        name_node = Node(name, node.keys.get(name, item.mark)) if node else item
        boxes.append(reader.text(name_node, rules.box_name, ""))
        named.append((item, reader.text(item, address, "")))
    reader.refuse_duplicates(named, "address")
    return tuple((box, text) for box, (_, text) in zip(boxes, named, strict=True) if box and text)

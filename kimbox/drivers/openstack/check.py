"""The checks before anything is created in a cloud: names, quotas, and what the flavor has."""

from __future__ import annotations

import attrs

from kimbox.drivers.openstack.cloud import Cloud, Flavor, Limit
from kimbox.errors import KimboxError, SpecError
from kimbox.spec.model import Box, Instance
from kimbox.spec.schema import guess

#: Names in `Cloud.limits` -> how a message calls them.
QUOTAS = {
    "instances": "instances",
    "cores": "processors",
    "ram_mib": "MiB of memory",
    "keys": "key pairs",
    "ports": "ports",
    "addresses": "floating addresses",
}

_GIB = 1 << 30


@attrs.frozen
class Place:
    """What the names in a spec stand for in the cloud: a flavor, and the ids of the networks."""

    flavor: Flavor
    network: str
    #: None: the spec has no `address`.
    outside: str | None


def instance_of(box: Box) -> Instance:
    """Returns what the spec says of the instance. Raises SpecError (`missing-key`) if it says nothing."""
    if box.openstack is None:
        raise SpecError.at(
            box.source,
            f"{box.name} is not for a cloud: its spec has no `openstack`",
            code="missing-key",
            hint="add `openstack: {flavor: NAME, network: NAME}`",
        )
    return box.openstack


def check(cloud: Cloud, box: Box, disk_bytes: int) -> Place:
    """Returns the place of a new instance whose image needs a disk of this size. Creates nothing.

    Raises KimboxError with every fault at once: `cloud-not-found` for an unknown name, else `cloud-quota` with used,
    limit and asked, else `conflicting-settings` for a flavor that the box cannot have.
    """
    instance = instance_of(box)
    flavors, networks = {flavor.name: flavor for flavor in cloud.flavors()}, cloud.networks()
    names = [name for name, id in networks.items() if name != id]
    unknown = [
        _unknown(kind, name, known)
        for kind, name, known, found in (
            ("flavor", instance.flavor, list(flavors), flavors),
            ("network", instance.network, names, networks),
            ("network", instance.address or instance.network, names, networks),
        )
        if name not in found
    ]
    flavor = flavors.get(instance.flavor)
    outside = networks.get(instance.address or "")
    short = _shortfalls(cloud.limits(), _asked(cloud, flavor, outside))
    unfit = _unfit(box, flavor, disk_bytes) if flavor else []
    faults = [*dict.fromkeys(unknown), *short, *unfit]
    if faults or flavor is None:
        raise KimboxError(
            f"the cloud cannot have {box.name}: {'; '.join(faults)}",
            code="cloud-not-found" if unknown else "cloud-quota" if short else "conflicting-settings",
            hint=_hint(
                is_network_unknown=not {instance.network, instance.address or instance.network} <= networks.keys(),
                is_short=not unknown and not unfit,
            ),
            fields={"name": box.name, "faults": "; ".join(faults)},
        )
    return Place(flavor, networks[instance.network], outside)


def _hint(*, is_network_unknown: bool, is_short: bool) -> str | None:
    if is_network_unknown:
        return "if several networks have that name, write the id of one: any project can share a network with yours"
    return "remove what is no longer needed, or ask the cloud for a larger quota" if is_short else None


def _unknown(kind: str, name: str, known: list[str]) -> str:
    nearest = guess(name, known)
    return f"it has no {kind} {name}" + (f" ({nearest})" if nearest else "")


def _asked(cloud: Cloud, flavor: Flavor | None, outside: str | None) -> dict[str, int]:
    """What one more instance needs. A free address is taken first."""
    has_free = outside is None or any(address.is_free for address in cloud.addresses(outside))
    return {
        "instances": 1,
        "cores": flavor.cpus if flavor else 0,
        "ram_mib": flavor.ram_mib if flavor else 0,
        "keys": 1,
        "ports": 1,
        "addresses": 0 if has_free else 1,
    }


def _shortfalls(limits: dict[str, Limit], asked: dict[str, int]) -> list[str]:
    return [
        f"not enough {words}: {limits[name].used} used, limit {limits[name].limit}, {asked[name]} asked"
        for name, words in QUOTAS.items()
        if name in limits and asked[name] and 0 <= limits[name].limit < limits[name].used + asked[name]
    ]


def _unfit(box: Box, flavor: Flavor, disk_bytes: int) -> list[str]:
    """What the flavor lacks."""
    faults = []
    if flavor.disk_gib * _GIB < disk_bytes:
        faults.append(
            f"the flavor {flavor.name} has a disk of {flavor.disk_gib} GiB, and the image needs "
            f"{-(-disk_bytes // _GIB)} GiB"
        )
    scratch_gib = -(-box.scratch.size_bytes // _GIB) if box.scratch else 0
    if scratch_gib and not flavor.ephemeral_gib:
        faults.append(f"the flavor {flavor.name} has no ephemeral disk, which `scratch` needs")
    elif flavor.ephemeral_gib < scratch_gib:
        faults.append(
            f"the flavor {flavor.name} has an ephemeral disk of {flavor.ephemeral_gib} GiB, and `scratch` needs "
            f"{scratch_gib} GiB"
        )
    return faults

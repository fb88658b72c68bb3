"""provisioners/secure: what `health` reports of a sealed box, with stand-ins for what needs a real disk."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from fakeguest import FakeGuest, needs_namespace
from fakeguest import guest as guest

from kimbox import paths
from kimbox.guest.events import Event
from kimbox.guest.health import Health, Space

pytestmark = needs_namespace

HEALTH = "/usr/lib/kimbox/health"

DF = """Filesystem 1-blocks Used Available Capacity Mounted on
/dev/mapper/a 1000 400 600 40% /
/dev/vda1 1000 970 30 97% /boot
/dev/b 1000 10 990 1% /mnt/with blank
/dev/c 1000 10 990 1% /mnt/a:b
/dev/d - - - - /mnt/none
/dev/e 1000 10 990 1% /mnt/$(id)
/dev/f 1000 40 960 4% /persistent
"""


def replace(guest: FakeGuest, **programs: str) -> None:
    """Replaces programs of the guest by scripts."""
    for name, body in programs.items():
        (guest.path("/usr/local/sbin") / name).write_text(f"#!/bin/sh\n{body}\n")
        (guest.path("/usr/local/sbin") / name).chmod(0o755)


def name_time_servers(guest: FakeGuest, servers: str) -> None:
    """Writes what the spec says of the time servers of the sealed box."""
    guest.path("/persistent/secure").mkdir(exist_ok=True)
    guest.path("/persistent/secure/policy.env").write_text(f"KIMBOX_DNS='yes'\nKIMBOX_TIME='{servers}'\n")


def reported(guest: FakeGuest) -> dict[str, Any]:
    """Runs `health`. Returns its event, which must be valid by the schema."""
    done = guest.run(HEALTH)
    assert (0, "", "") == (done.code, done.stdout, done.stderr)
    schema = json.loads((paths.schemas_dir() / "events.schema.json").read_text())
    line = json.loads((guest.ports / "org.kimbox.0").read_text().splitlines()[-1])
    jsonschema.validate(line, schema)
    (event,) = guest.events()
    assert "health" == event.pop("event")
    return event


def test_what_the_host_reads(guest: FakeGuest) -> None:
    """File systems, snapshot and clock. A mount point that the host could misread is left out."""
    (guest.root / "tmp/df").write_text(DF)
    name_time_servers(guest, "192.0.2.1 time.test")
    replace(guest, df="cat /tmp/df", findmnt="echo /dev/mapper/vg-root_snap", perl="echo 5")
    replace(guest, dmsetup='[ "$2" = vg-root_snap ] && echo "0 4202496 snapshot 460288/4202496 1808"')
    event = reported(guest)
    health = Health.of(Event("health", "", 1.0, event))
    assert (Space("/", 40, 600), Space("/boot", 97, 30), Space("/persistent", 4, 960)) == health.spaces
    assert (10, False) == (health.snapshot_percent, health.clock_synchronised)


@pytest.mark.parametrize("status", ["0 4202496 linear 253:0 2048", "0 4202496 snapshot Invalid", ""])
def test_without_a_snapshot(guest: FakeGuest, status: str) -> None:
    """A root that is no snapshot, or one that is lost, has no fill level. A missing perl gives an unknown clock."""
    replace(guest, df=":", findmnt="echo /dev/mapper/vg-root", dmsetup=f"echo '{status}'", perl="exit 127")
    assert {"space": "", "clock": "unknown"} == reported(guest)


@pytest.mark.parametrize(("expected", "answer", "servers"), [
    ("yes", "0", ""), ("yes", "4", "time.test"), ("no", "5", "time.test"), ("unknown", "5", ""), ("unknown", "-1", "x"),
])  # fmt: skip
def test_the_clock(guest: FakeGuest, expected: str, answer: str, servers: str) -> None:
    """A clock that nothing synchronises is as the spec says if the spec names no server."""
    name_time_servers(guest, servers)
    replace(guest, df=":", findmnt=":", dmsetup=":", perl=f"echo {answer}")
    assert expected == reported(guest)["clock"]


def test_many_file_systems(guest: FakeGuest) -> None:
    """The event stays short: the first twelve are reported."""
    rows = "".join(f"/dev/{n} 1000 10 990 1% /mnt/{'x' * 60}{n}\n" for n in range(50))
    (guest.root / "tmp/df").write_text(DF.splitlines()[0] + "\n" + rows)
    replace(guest, df="cat /tmp/df", dmsetup=":", perl="echo 0")
    event = reported(guest)
    assert 12 == len(event["space"].split())
    assert "yes" == event["clock"]


def test_with_the_programs_of_this_host(guest: FakeGuest) -> None:
    """`df`, `findmnt` and `perl` have the options that the script uses."""
    name_time_servers(guest, "time.test")
    event = reported(guest)
    assert event["clock"] in ("yes", "no")  # perl could call adjtimex
    assert [space for space in Health.of(Event("health", "", 1.0, event)).spaces if space.free_bytes]

"""The table of keys that packages create at installation. The guest's scripts and kimbox read the same form."""

from __future__ import annotations

import re

import pytest
from refused import refused

from kimbox.errors import ImageError
from kimbox.image.inputs import identity, provisioners

UNIT = "usr/lib/systemd/system/kimbox-identity.service"

GOOD = "#!/bin/sh\n# needs: /usr/bin/x\n# removes: /etc/x/key\n# data: /var/lib/x/*\n# Why.\ntrue\n"


def test_every_file_is_of_the_form() -> None:
    """The table has the known packages, with the files that they create."""
    makers = {maker.package: maker for maker in identity.makers()}
    assert ("/etc/munge/munge.key",) == makers["munge"].removes
    assert ("/var/lib/postgresql/*/main", "/etc/postgresql/*/main") == makers["postgresql"].data
    assert {
        "bind9",
        "mariadb",
        "nsd",
        "nvme-cli",
        "open-iscsi",
        "pacemaker",
        "rabbitmq-server",
        "ssl-cert",
        "xrdp",
    } < set(makers)


def test_the_unit_waits_for_the_same_files_as_the_table() -> None:
    """The unit runs in a box that has one of these packages, and in no other box."""
    unit = next(file.data.decode() for file in provisioners.load("identity").files if file.path == UNIT)
    conditions = re.findall(r"^ConditionPathExists=\|(.*)$", unit, re.M)
    assert sorted({maker.needs for maker in identity.makers()}) == sorted(conditions)


def test_the_table_is_read() -> None:
    """Each line is in the attribute of its key."""
    maker = identity.parse("x/20-some-thing", GOOD)
    assert identity.Maker("some-thing", "/usr/bin/x", ("/etc/x/key",), ("/var/lib/x/*",)) == maker


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("x/thing", GOOD),
        ("x/20-thing", GOOD.removeprefix("#!/bin/sh\n")),
        ("x/20-thing", GOOD.replace("# needs: /usr/bin/x\n", "")),
        ("x/20-thing", GOOD.replace("needs: /usr/bin/x", "needs: /usr/bin/x y")),
        ("x/20-thing", GOOD.replace("/etc/x/key", "/etc/x/$key")),
        ("x/20-thing", GOOD + "# removes: /etc/late\n"),
        ("x/20-thing", "#!/bin/sh\n# needs: /usr/bin/x\ntrue\n"),
    ],
)
def test_another_form_is_refused(path: str, text: str) -> None:
    """The error names the file. If only one of the two readers accepted a line, a key would stay in an image."""
    with refused(ImageError, "bad-provisioner", path=path):
        identity.parse(path, text)

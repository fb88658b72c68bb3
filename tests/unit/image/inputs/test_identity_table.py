"""The table of what packages make at installation: one form, read by the guest's scripts and by kimbox alike."""

from __future__ import annotations

import re

import pytest

from kimbox.errors import ImageError
from kimbox.image.inputs import identity, provisioners

UNIT = "usr/lib/systemd/system/kimbox-identity.service"

GOOD = "#!/bin/sh\n# needs: /usr/bin/x\n# removes: /etc/x/key\n# data: /var/lib/x/*\n# Why.\ntrue\n"


def test_every_file_is_of_the_form() -> None:
    """The makers that are known, with what they make."""
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
    """A box without any of these packages runs nothing; one with any of them runs it."""
    unit = next(file.data.decode() for file in provisioners.load("identity").files if file.path == UNIT)
    conditions = re.findall(r"^ConditionPathExists=\|(.*)$", unit, re.M)
    assert sorted({maker.needs for maker in identity.makers()}) == sorted(conditions)


def test_the_table_is_read() -> None:
    """Each line under its key."""
    found = identity.parse("x/20-some-thing", GOOD)
    assert identity.Maker("some-thing", "/usr/bin/x", ("/etc/x/key",), ("/var/lib/x/*",)) == found


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
    """By the name of the file: a line that only one of the two readers took would leave a key behind."""
    with pytest.raises(ImageError, match=path):
        identity.parse(path, text)

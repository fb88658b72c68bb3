"""What a real Nova and Neutron refuse, and kimbox that is killed: named errors, and nothing left in the cloud."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from keystoneauth1.exceptions import NotFound
from openstackservices import revoke
from realcloud import RealCloud
from realkimbox import Kimbox, until

from kimbox import run
from kimbox.cli import app
from kimbox.drivers.openstack.sdk import Sdk

pytestmark = [pytest.mark.guest, pytest.mark.soak, pytest.mark.usefixtures("logged")]

NAME = "faulty"


@pytest.fixture(autouse=True)
def unchanged(cloud: RealCloud, kimbox: Kimbox) -> Iterator[None]:
    """At the end of each test the project has its own quotas, and nothing of kimbox but images."""
    yield
    cloud.free()
    left = cloud.left()
    kimbox("destroy", "-y", NAME, check=False)  # after a test that fails
    assert [] == left


def spec(kimbox: Kimbox, *, flavor: str = "small", address: str = "public") -> None:
    """Writes the spec of a box that has a floating address."""
    more = f"openstack: {{cloud: test, flavor: {flavor}, network: private, address: {address}}}\n"
    kimbox.spec(NAME, more)


def refused_up(kimbox: Kimbox) -> dict[str, Any]:
    """Returns the error of an `up` that must fail."""
    return kimbox.json("up", "--provider", "openstack", check=False)


@pytest.mark.parametrize(
    ("quotas", "words"),
    [
        ({"instances": 0}, "not enough instances: 0 used, limit 0, 1 asked"),
        ({"cores": 0}, "not enough processors: 0 used, limit 0, 1 asked"),
        ({"ram": 1000}, "not enough MiB of memory: 0 used, limit 1000, 1024 asked"),
        ({"key_pairs": 0}, "not enough key pairs: 0 used, limit 0, 1 asked"),
        ({"floatingip": 0}, "not enough floating addresses: 0 used, limit 0, 1 asked"),
        ({"port": 2}, "not enough ports: 2 used, limit 2, 1 asked"),
        (
            {"instances": 0, "cores": 0, "floatingip": 0},
            "not enough instances: 0 used, limit 0, 1 asked; not enough processors: 0 used, limit 0, 1 asked; "
            "not enough floating addresses: 0 used, limit 0, 1 asked",
        ),
    ],
)
def test_a_quota(kimbox: Kimbox, cloud: RealCloud, quotas: dict[str, int], words: str) -> None:
    """The check before anything is created finds every shortfall."""
    spec(kimbox)
    cloud.allow(**quotas)
    error = refused_up(kimbox)
    assert ("cloud-quota", words) == (error["code"], error["fields"]["faults"])


def test_a_quota_that_only_nova_knows(kimbox: Kimbox, cloud: RealCloud) -> None:
    """kimbox does not check it: Nova refuses the instance, and the key that was imported goes."""
    spec(kimbox)
    cloud.allow(metadata_items=0)
    assert "cloud-quota" == refused_up(kimbox)["code"]


def test_no_address_is_free(kimbox: Kimbox, cloud: RealCloud) -> None:
    """The external network has one address, and another project has it."""
    with cloud.network("tiny", "198.51.100.0/24", 1) as network:
        cloud.admin.network.create_ip(floating_network_id=network)
        spec(kimbox, address="tiny")
        assert "no-address" == refused_up(kimbox)["code"]


def test_an_address_of_another_network(kimbox: Kimbox, cloud: RealCloud) -> None:
    """No router leads from it to the instance: Neutron refuses it, and the new address goes."""
    with cloud.network("far", "198.51.100.0/24", 9):
        spec(kimbox, address="far")
        error = refused_up(kimbox)
    assert "cloud-not-found" == error["code"]


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In this process each token ends before it is used. Returns what the requests were for."""
    asked: list[str] = []
    call = Sdk._call

    def after_the_end(self: Sdk, service: str, method: str, path: str, what: str, **options: Any) -> Any:
        asked.append(what)
        with contextlib.suppress(NotFound):  # it has ended already, if the last service had it in a cache
            revoke(self)
        return call(self, service, method, path, what, **options)

    monkeypatch.setattr(Sdk, "_call", after_the_end)
    return asked


def test_an_instance_in_the_state_error(
    kimbox: Kimbox,
    cloud: RealCloud,
    ending: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No node is large enough for the flavor. Every token ends before its time, which the error does not show."""
    spec(kimbox, flavor="huge")
    cloud.allow(ram=-1)
    monkeypatch.chdir(kimbox.folder)
    for name, value in kimbox.environment.items():
        monkeypatch.setenv(name, value)
    capsys.readouterr()
    assert 4 == app.run(["--json", "up", "--provider", "openstack"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert "instance-failed" == error["code"]
    assert "No valid host was found" in error["fields"]["reason"]
    assert {"import a key", "create an instance", "delete an instance", "delete a key"} <= set(ending)


def journal(kimbox: Kimbox) -> dict[str, Any]:
    """What kimbox has written of the machine in the cloud; empty before it has."""
    file = kimbox.home / "machines" / NAME / "cloud.json"
    return dict(json.loads(file.read_text())) if file.exists() else {"made": []}


def killed_when(kimbox: Kimbox, what: str, holds: Callable[[], bool]) -> None:
    """Starts `up`, and kills it as soon as a condition holds."""
    variables = [f"{name}={value}" for name, value in kimbox.environment.items()]
    words = [sys.executable, "-m", "kimbox", "up", "--provider", "openstack"]
    with run.background(["env", "-C", kimbox.folder, *variables, *words]) as up:  # its end kills `up`
        until(what, lambda: holds() or up.code() is not None, limit_s=300, every_s=0.1)
        assert up.code() is None, up.output()


def test_killed_during_the_upload(kimbox: Kimbox, cloud: RealCloud) -> None:
    """The next run removes the incomplete image, and uploads another one."""
    spec(kimbox)
    kimbox("unpublish")

    def is_incomplete() -> bool:
        return any(image.status in ("queued", "saving") for image in cloud.user.image.images(owner=cloud.project))

    killed_when(kimbox, "an incomplete image", is_incomplete)
    assert kimbox.json("publish")["uploaded"]
    assert ["active"] == [image.status for image in cloud.user.image.images(owner=cloud.project)]


@pytest.mark.parametrize("point", ["key", "server", "BUILD", "ACTIVE"])
def test_killed_before_it_is_reached(kimbox: Kimbox, cloud: RealCloud, point: str) -> None:
    """`destroy` removes key, instance and port. The point: a kind in the journal, or a status of the instance.

    When the journal names the instance, Nova has not answered: it makes the instance after kimbox was killed.
    """
    spec(kimbox)

    def is_there() -> bool:
        statuses = [item.status for item in cloud.user.compute.servers()] if point.isupper() else []
        return point in (*journal(kimbox)["made"], *statuses)

    killed_when(kimbox, f"the point {point}", is_there)
    kimbox("destroy", "-y", NAME)


def test_killed_with_an_address(kimbox: Kimbox, cloud: RealCloud) -> None:
    """The next `up` begins again: there is one instance with one address."""
    spec(kimbox)
    killed_when(kimbox, "an address", lambda: bool(list(cloud.user.network.ips())))
    kimbox("up")
    assert ["address", "instance", "key", "port"] == sorted(text.split()[0] for text in cloud.left())
    kimbox("destroy", "-y", NAME)

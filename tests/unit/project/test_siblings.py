"""Gateways that are boxes of this host."""

from __future__ import annotations

from pathlib import Path

import attrs
import makemachine
import pytest
from refused import refused

from kimbox import paths
from kimbox.errors import SpecError, StateError
from kimbox.machine import keys
from kimbox.machine.folder import Machine
from kimbox.project import siblings
from kimbox.spec.load import load_box
from kimbox.spec.model import Gateway, Role

PIPELINE = paths.examples_dir() / "pipeline/kimbox.yaml"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))


def worker(spec: Path = PIPELINE) -> Role:
    """The role of the worker of the example, with what is known of its director now."""
    secure = siblings.with_gateways(load_box(spec, member="worker")).secure
    assert secure is not None
    return secure.roles[0]


def test_the_gateway_is_the_director() -> None:
    """Its port and its pinned host key, as soon as it has reported one. Before, the worker cannot be secured."""
    with refused(StateError, "host-key-missing", name="worker", gateway="director"):
        siblings.need_gateway("worker", worker())
    makemachine.make_machine("director", ssh_port=20444)
    assert () == getattr(worker().gateway, "host_keys", None)
    keys.pin_host_key(Machine("director"), makemachine.HOST_KEY)
    assert Gateway("10.57.0.1", 22, (makemachine.HOST_KEY,), "director") == worker().gateway
    siblings.need_gateway("worker", worker())


def test_a_gateway_without_a_network(tmp_path: Path) -> None:
    """It is at the present port of its box on this host."""
    spec = tmp_path / "kimbox.yaml"
    spec.write_text(PIPELINE.read_text().replace("worker: 10.57.0.2", "other: 10.57.0.2"))
    makemachine.make_machine("director", ssh_port=20444)
    keys.pin_host_key(Machine("director"), makemachine.HOST_KEY)
    assert Gateway("10.0.2.2", 20444, (makemachine.HOST_KEY,), "director") == worker(spec).gateway


def test_another_gateway_stays(tmp_path: Path) -> None:
    """A box without such a gateway is returned as it is."""
    box = load_box(PIPELINE, member="director")
    assert box is siblings.with_gateways(box)
    siblings.need_gateway("director", attrs.evolve(worker(), gateway=None))


@pytest.mark.parametrize(
    ("gateway", "codes"),
    [
        ("{box: director, host: 10.0.2.2}", ["conflicting-settings"]),
        (f'{{box: director, host_keys: ["{makemachine.HOST_KEY}"]}}', ["conflicting-settings"]),
        ("{box: Director}", ["bad-name"]),
        ("{port: 22}", ["missing-key", "missing-key"]),
    ],
)
def test_faults_of_a_gateway(tmp_path: Path, gateway: str, codes: list[str]) -> None:
    """Either `box`, or `host` and `host_keys`."""
    spec = tmp_path / "kimbox.yaml"
    spec.write_text(f"kimbox: 1\nname: a\nsecure: {{roles: {{worker: {{gateway: {gateway}}}}}}}\n")
    with pytest.raises(SpecError) as caught:
        load_box(spec)
    assert codes == [problem.code for problem in caught.value.problems]

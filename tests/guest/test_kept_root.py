"""A resnap boot puts back the provisioned root, or provisions an empty snapshot and reports the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Kimbox

from kimbox.machine.folder import Machine

pytestmark = pytest.mark.guest

NAME = "kept-root"

#: The first step makes content that differs each time. The second one runs at every boot.
SPEC = """boot: resnap
provision:
  - {name: make, script: 'echo x >>/persistent/made; head -c 20000000 /dev/urandom >/made; sha256sum /made >/made.sum'}
  - {name: each, run: boot, script: 'echo x >>/each'}
"""

#: Prints how often the first step ran on any root and the second one on this root, and whether /changed is there.
LOOK = "sha256sum --quiet -c /made.sum; wc -l </persistent/made; wc -l </each; ls -d /changed 2>/dev/null || true"


@pytest.fixture(scope="module")
def box(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kimbox]:
    """A box whose first root was provisioned and kept."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp(NAME))
    kimbox.spec(NAME, SPEC)
    kimbox("up")
    yield kimbox
    kimbox("destroy", "-y")


def reloaded(box: Kimbox, *options: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Restarts the box. Returns the output of `LOOK` as words, and `kept_events`."""
    assert box.json("reload", *options)["state"] == "ready"
    return box.sh(NAME, LOOK).split(), kept_events()


def kept_events() -> list[tuple[str, str]]:
    """Returns status and reason of each event `kept` of the last boot."""
    events = Machine(NAME).boot_events()
    return [(event.text("status"), event.text("reason")) for event in events if event.name == "kept"]


def test_a_provisioned_root_is_put_back(box: Kimbox) -> None:
    """The step does not run again, changes since are gone, and `run: boot` runs."""
    assert kept_events() == [("saved", "")]
    made = box.sh(NAME, "cat /made.sum")
    box.sh(NAME, "sudo touch /changed; echo junk | sudo tee /made >/dev/null; sync")
    assert reloaded(box) == (["1", "2"], [("restored", "")])
    assert box.sh(NAME, "cat /made.sum") == made


def test_another_root_and_from_scratch_are_provisioned_again(box: Kimbox) -> None:
    """A maintain boot ends what was kept: the new root has its change. --from-scratch ends it, too."""
    box("reload", "--boot", "maintain", "--once")
    box.sh(NAME, "sudo touch /changed; sync")
    refused = ("refused", "the root itself has changed since")
    assert reloaded(box) == (["2", "1", "/changed"], [refused, ("saved", "")])
    assert reloaded(box, "--from-scratch") == (["3", "1", "/changed"], [("saved", "")])

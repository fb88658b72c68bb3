"""Several machines of one box, on the command line: each verb means the one that is named, and no other."""

from __future__ import annotations

from pathlib import Path

import clirun
import makemachine
import pytest
from clirun import Kimbox, error, result

from kimbox import paths
from kimbox.actions import prune
from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose

kimbox, world = clirun.kimbox, clirun.world  # fixtures

#: Images of the two machines, and one that no machine has.
KEYS = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def pair(kimbox: Kimbox, world: Path) -> tuple[Machine, Machine]:
    """The box of this folder's spec, and a job of it, each made from an image of its own."""
    kimbox("init", "--name", "study")
    for key in KEYS:
        image = paths.images_dir() / key
        image.mkdir(parents=True)
        (image / "image.json").write_text("{}")
    source = str(Path("kimbox.yaml").absolute())
    return (
        makemachine.make_machine("study", source=source, image=KEYS[0]),
        makemachine.make_machine(
            "study-job", source=source, image=KEYS[1], box="study", purpose=Purpose.JOB, ssh_port=20099
        ),
    )


def test_list_and_status_tell_them_apart(kimbox: Kimbox, pair: tuple[Machine, Machine]) -> None:
    """By name, box and purpose; without a name `status` means the box itself."""
    expected = [("study", "study", "box", 20022), ("study-job", "study", "job", 20099)]
    shown = result(kimbox("--json", "list")[1], "list")["boxes"]
    assert expected == [(one["name"], one["box"], one["purpose"], one["ssh_port"]) for one in shown]
    for arguments, which in (((), 0), (("study",), 0), (("study-job",), 1)):
        one = result(kimbox("--json", "status", *arguments)[1], "status")
        assert expected[which] == (one["name"], one["box"], one["purpose"], one["ssh_port"])
    assert "  purpose     job, of study\n" in kimbox("status", "study-job")[1]
    assert "purpose" not in kimbox("status", "study")[1]


def test_halt_and_destroy_take_the_one_that_is_named(kimbox: Kimbox, pair: tuple[Machine, Machine]) -> None:
    """The other one is left as it is."""
    box, job = pair
    assert 0 == kimbox("halt", "study-job")[0]
    assert 0 == kimbox("destroy", "study-job", "-y")[0]
    assert (True, False) == (box.exists, job.exists)


def test_prune_keeps_the_images_of_both(pair: tuple[Machine, Machine]) -> None:
    """And removes the image of neither."""
    assert [KEYS[2]] == [item.path.name for item in prune.unused()]


@pytest.mark.parametrize("verb", ["up", "reload", "provision", "secure", "lock", "build"])
def test_a_job_is_no_box_to_bring_up(kimbox: Kimbox, pair: tuple[Machine, Machine], verb: str) -> None:
    """The verbs that take a spec refuse its name, and say whose it is."""
    code, out, _ = kimbox("--json", verb, "study-job")
    assert 5 == code
    assert "study-job is a machine of the box study for another purpose: job" == error(out, verb)["message"]

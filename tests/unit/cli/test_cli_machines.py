"""Several machines of one box, on the command line: each verb acts only on the machine that is named."""

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

#: Keys of the images of the two machines, and of an image that no machine uses.
KEYS = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def pair(kimbox: Kimbox, world: Path) -> tuple[Machine, Machine]:
    """The machine of this folder's spec, and a job of the same box, each made from another image."""
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


def test_list_and_status_show_both(kimbox: Kimbox, pair: tuple[Machine, Machine]) -> None:
    """They differ in name, box and purpose. Without a name, `status` shows the machine of the spec."""
    keys = ("name", "box", "purpose", "ssh_port")
    expected = [("study", "study", "box", 20022), ("study-job", "study", "job", 20099)]
    summaries = result(kimbox("--json", "list")[1], "list")["boxes"]
    assert expected == [tuple(summary[key] for key in keys) for summary in summaries]
    for arguments, index in (((), 0), (("study",), 0), (("study-job",), 1)):
        summary = result(kimbox("--json", "status", *arguments)[1], "status")
        assert expected[index] == tuple(summary[key] for key in keys)
    assert "  purpose     job, of study\n" in kimbox("status", "study-job")[1]
    assert "purpose" not in kimbox("status", "study")[1]


def test_halt_and_destroy_act_on_the_named_machine(kimbox: Kimbox, pair: tuple[Machine, Machine]) -> None:
    """The other machine does not change."""
    box, job = pair
    assert 0 == kimbox("halt", "study-job")[0]
    assert 0 == kimbox("destroy", "study-job", "-y")[0]
    assert (True, False) == (box.exists, job.exists)


def test_prune_keeps_the_images_of_both(pair: tuple[Machine, Machine]) -> None:
    """It removes only the image that no machine uses."""
    assert [KEYS[2]] == [item.path.name for item in prune.unused()]


@pytest.mark.parametrize("verb", ["up", "reload", "provision", "secure", "lock", "build"])
def test_a_job_is_not_a_box_to_start(kimbox: Kimbox, pair: tuple[Machine, Machine], verb: str) -> None:
    """The verbs that take a spec refuse the name of a job. The message has its box and its purpose."""
    code, out, _ = kimbox("--json", verb, "study-job")
    assert 5 == code
    assert "study-job is a machine of the box study for another purpose: job" == error(out, verb)["message"]

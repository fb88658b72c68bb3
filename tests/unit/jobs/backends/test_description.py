"""The submit description: what HTCondor is asked for, and which keys a user may set."""

from __future__ import annotations

import pytest
from refused import refused

from kimbox.errors import UsageError
from kimbox.jobs.backends.htcondor import description
from kimbox.jobs.backends.htcondor.description import needs, parse_settings, vanilla


def keys_of(text: str) -> dict[str, str]:
    """The keys of a description."""
    return dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)


def make(**changes: object) -> str:
    job = needs(cpus=2, memory_bytes=1 << 30, files_bytes=1 << 20, timeout_s=60, boot_timeout_s=100.0)
    options: dict[str, object] = {"has_delivery": True, "has_image": True, "has_items": True, "settings": {}}
    return vanilla(job, "0123456789ab", **(options | changes))  # type: ignore[arg-type]


def test_a_job_asks_for_what_its_box_needs() -> None:
    """Processors, memory with QEMU around it, disk, and a limit on the time of a run with its boot."""
    keys = keys_of(make())
    assert ("vanilla", "runner.pyz", "2", "280") == (
        keys["universe"], keys["executable"], keys["request_cpus"], keys["allowed_execute_duration"]
    )  # fmt: skip
    assert ("1184M", "1776M") == (keys["request_memory"], keys["retry_request_memory"])
    assert f"{(1 << 21) + 1024}K" == keys["request_disk"]
    assert '"results.raw = results.$(Process).raw"' == keys["transfer_output_remaps"]
    assert '"0123456789ab"' == keys["+KimboxSubmission"]


def test_a_failure_of_the_infrastructure_is_tried_again() -> None:
    """121 to 125 and a signal; every other status is final."""
    keys = keys_of(make())
    assert ("2", "(ExitBySignal =?= false) && (ExitCode < 121 || ExitCode > 125)") == (
        keys["max_retries"], keys["retry_until"]
    )  # fmt: skip
    assert "TARGET.Machine =!= MachineAttrMachine0" in keys["requirements"]


def test_items_and_files() -> None:
    """One job for each item, which is an argument of hex digits. An image at a URL is not sent."""
    assert make().endswith("queue item from items.txt\n")
    assert "order.json $(item)" == keys_of(make())["arguments"]
    one = make(has_items=False, has_image=False)
    assert one.endswith("queue\n")
    assert ("order.json", "order.json, base.raw, delivery.raw") == (
        keys_of(one)["arguments"], keys_of(one)["transfer_input_files"]
    )  # fmt: skip


def test_settings_replace_what_kimbox_has_chosen() -> None:
    """Each key is there once."""
    text = make(settings=parse_settings(["Request_Memory = 3G", '+Project="x"', "requirements=A == 1"]))
    assert ("3G", '"x"', "A == 1") == tuple(
        keys_of(text)[key] for key in ("request_memory", "+Project", "requirements")
    )
    assert 1 == text.count("\nrequest_memory = ")


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("request_memroy=1G", "unknown-submit-key"),
        ("executable=/bin/sh", "unknown-submit-key"),
        ("transfer_input_files=/etc/passwd", "unknown-submit-key"),
        ("+not an attribute=1", "unknown-submit-key"),
        ("queue", "bad-value"),
        ("rank=", "bad-value"),
        ("rank=1\nqueue 100", "bad-value"),
    ],
)
def test_other_settings_are_refused(setting: str, code: str) -> None:
    """HTCondor would take a typo without a word, and a line break would begin another key."""
    with refused(UsageError, code) as caught:
        parse_settings([setting])
    if setting.startswith("request"):
        assert "did you mean request_memory?" == caught.value.hint


def test_a_result_has_the_number_of_its_job() -> None:
    """As in transfer_output_remaps."""
    assert "results.3.raw" == description.result_file(3)


def test_a_job_of_the_vm_universe() -> None:
    """As the document of CHTC has it: two disks, of which that of the job comes back, with its number."""
    job = needs(cpus=2, memory_bytes=1 << 30, files_bytes=1 << 20, timeout_s=None, boot_timeout_s=100.0)
    text = description.vm(job, "0123456789ab", count=3, has_network=True, settings={"rank": "Mips"})
    keys = keys_of(text)
    assert ("vm", "kvm", "1024", "true", "Mips") == tuple(
        keys[key] for key in ("universe", "vm_type", "vm_memory", "vm_networking", "rank")
    )
    assert "image.qcow2:vda:w:qcow2,job.$(Process).raw:vdb:w:raw" == keys["vm_disk"]
    assert "image.qcow2, job.$(Process).raw" == keys["transfer_input_files"]
    assert '"job.$(Process).raw = results.$(Process).raw"' == keys["transfer_output_remaps"]
    assert text.endswith("queue 3\n")
    assert "request_memory" not in keys

"""What is asked for a job, what is known of it while it runs, and what comes back."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import attrs

from kimbox.jobs.disk.pack import Room
from kimbox.jobs.network import Network
from kimbox.jobs.result import Report, Verdict
from kimbox.jobs.terms import Inputs, Terms
from kimbox.jobs.vet import Vetting
from kimbox.machine.folder import Machine
from kimbox.machine.templates import Template
from kimbox.project.plan import Plan
from kimbox.project.project import Project
from kimbox.spec.model import Scratch

#: What a job reaches if nothing is said.
NO_NETWORK = Network()

#: Mount point of scratch space, if the spec has none.
SCRATCH_MOUNT = "/staging"


@attrs.frozen
class RunRequest:
    """The arguments of `job run`. Numbers that are None are those of the spec."""

    project: Project
    folder: Path
    output: Path
    arguments: tuple[str, ...] = ()
    cpus: int | None = None
    memory_bytes: int | None = None
    scratch: Scratch | None = None
    size_bytes: int | None = None
    room: Room | None = None
    #: Limit on the program, in seconds; None: there is none.
    timeout_s: int | None = None
    network: Network = NO_NETWORK
    #: What results must be like; None: everything passes.
    vetting: Vetting | None = None
    #: Keep the machine of a job that was not ok, halted, so that its disk can be looked at.
    keep: bool = False
    #: Boot a new machine instead of a clone of the template.
    is_cold: bool = False
    #: The private ssh key that signs the results; None: they are not signed.
    sign_key: Path | None = None

    @property
    def terms(self) -> Terms:
        """What the results depend on besides the box."""
        return Terms(
            self.folder, self.output, self.arguments, self.timeout_s, self.vetting, self.sign_key, keep=self.keep
        )


@attrs.frozen
class Surroundings:
    """What a job is run in, and what several jobs share. `template` None: the machine boots."""

    plan: Plan
    template: Template | None = None
    #: Follows the name of the box in the names of the machines.
    mark: str = "job"
    #: The job is one of a sweep: its output and steps are not shown, and its guest ends with kimbox.
    is_one_of_many: bool = False
    #: The digest that the folder must have; empty: any.
    folder_digest: str = ""
    #: Set when the job is to end. It is then `interrupted`.
    stopping: threading.Event = attrs.field(factory=threading.Event)


@attrs.frozen
class Death:
    """The end of a guest before that of its program. The job was started again."""

    reason: str
    console: list[str]


@attrs.frozen
class Done:
    """A job that has ended. `record` is the content of job.json."""

    verdict: Verdict
    output: Path
    record: dict[str, Any]


@attrs.define
class Job:
    """A job that runs. Times are those of time.monotonic(); `began_at` is that of the whole command."""

    terms: Terms
    id: str
    machine: Machine
    #: What job.json says of the inputs.
    inputs: Inputs
    #: The machine continues a template.
    is_warm: bool = False
    #: As in Surroundings.
    is_one_of_many: bool = False
    stopping: threading.Event = attrs.field(factory=threading.Event)
    began_at: float = attrs.field(factory=time.monotonic)
    ready_at: float | None = None
    ended_at: float | None = None
    reported: Report | None = None
    #: The verdict of the host, where it does not depend on the reports of the guest.
    verdict: Verdict | None = None
    #: Whether the host has ended the guest after its report.
    is_finished: bool = False
    #: How the guest of the first attempt ended; None: this is the first attempt.
    death: Death | None = None
    #: The machine stays when the job has ended.
    is_kept: bool = False

"""Seals a box in a role, gives a sealed box new credentials, and opens it again without them.

The work is done by scripts in the guest (provisioners/secure). The host keeps the key that encrypts the credentials of
a sealed box, and hands it over at each start; without the key they are lost. Secrets are sent over ssh, or, to a sealed
box, in a file that QEMU reads at its start. No argument and no environment variable holds a secret.
"""

from __future__ import annotations

import io
import secrets
import tarfile

import attrs

from kimbox.actions import stop
from kimbox.actions import up as starting
from kimbox.actions.observe import check_owner, endpoint, is_open_still, state
from kimbox.actions.up import UpRequest
from kimbox.drivers import registry
from kimbox.errors import GuestError, StateError
from kimbox.files import write_atomic
from kimbox.guest.delivery import SUDO
from kimbox.guest.events import printable
from kimbox.guest.ssh import Guest
from kimbox.log import log
from kimbox.machine.bootmode import Choice, refuse_to_provision
from kimbox.machine.folder import Machine, machine_of
from kimbox.machine.record import Sealed
from kimbox.machine.state import require
from kimbox.render import sealing
from kimbox.render.quote import parse_assignments
from kimbox.run import tail
from kimbox.spec.model import BootMode, Box, Role

#: The guest's side of it.
SECURE = "/usr/lib/kimbox/secure"

#: Time limit for the gateway's answer and the encryption of the credentials, in seconds.
TIMEOUT_S = 240

#: Maximum size of a password or a private key.
MAX_SECRET_BYTES = 64 << 10

#: Maximum size of what a guest reports of an earlier attempt.
MAX_ANSWERS_BYTES = 4096

#: Exit status of the guest's script where the box has taken a role already, and where the gateway refuses.
ALREADY, REFUSED = 4, 3


@attrs.frozen
class Secret:
    """What authenticates a user at a site; it is never shown."""

    #: Name of the file in which the guest looks for it: `password`, or `id` for a private key of ssh.
    kind: str
    data: bytes = attrs.field(repr=False)


@attrs.frozen
class Answers:
    """The answers to the four questions."""

    role: Role
    site: str
    username: str
    secret: Secret


def secure(request: UpRequest, answers: Answers) -> Sealed:
    """Lets a box that is ready take a role, and restarts it as a sealed box. Returns its role.

    Raises GuestError, with the guest's message, where the site refuses or cannot be reached: the box is unchanged then.
    """
    machine = machine_of(request.project.name)
    with machine.locked():
        check_owner(machine, request.project)
        registry.need_sealing(machine, "secure")
        record = machine.record()
        if record.sealed:
            return record.sealed
        require("secure", machine.name, state(machine))
        refuse_to_provision(machine)
        with log.step(f"asking for the credentials of {answers.site}"):
            sealed = _take_role(machine, request.project.box, answers)
        machine.write_record(attrs.evolve(record, sealed=sealed))
    close(request)
    return sealed


def close(request: UpRequest) -> None:
    """Restarts a box that has taken its role and is still open, as after an interrupted `secure`."""
    machine = machine_of(request.project.name)
    if is_open_still(machine, state(machine)):
        stop.halt(machine)
        starting.up(request)


def _take_role(machine: Machine, box: Box, answers: Answers) -> Sealed:
    """Sends the guest the answers; returns its role.

    After an interrupted attempt the guest may have its role already. The data key of that attempt is used again, as the
    guest has encrypted with it.
    """
    assert box.secure is not None  # noqa: S101 - the role comes from there
    if not machine.data_key.exists():
        write_atomic(machine.data_key, secrets.token_hex(32) + "\n", mode=0o600)
    files = sealing.files(box.secure, answers.role) | {
        "answers.env": sealing.answers(answers.role, answers.site, answers.username),
        "data_key": machine.data_key.read_bytes(),
        answers.secret.kind: answers.secret.data,
    }
    with Guest(endpoint(machine)) as guest:
        answer = guest.run(f"{SUDO}{SECURE}", timeout_s=TIMEOUT_S, stdin=_tar(files))
    if answer.code in (0, ALREADY):
        return _taken(machine, answers, answer.stdout if answer.code == ALREADY else "")
    said = tail(answer.stderr, 3).removeprefix("secure: ")
    if answer.code == 127 or (answer.code == 1 and "command not found" in said):
        hint = f"`kimbox destroy {machine.name}` and `kimbox up` make it anew"
        raise GuestError(f"{machine.name} was made by a kimbox that knew nothing of roles", hint=hint)
    what = "was refused" if answer.code == REFUSED else "could not take its role"
    raise GuestError(f"{machine.name} {what}: {said}", hint="the box is as it was; nothing was kept of the answers")


def _taken(machine: Machine, answers: Answers, earlier: str) -> Sealed:
    """The role of the guest: from these answers, or from those of an earlier attempt (its answers.env), which win."""
    try:
        told = parse_assignments(earlier.encode()[:MAX_ANSWERS_BYTES])
    except ValueError as error:
        raise GuestError(f"{machine.name} says that it has taken a role, and not which: {error}") from None
    names = ("KIMBOX_ROLE", "KIMBOX_SITE", "KIMBOX_USERNAME")
    role, site, user = (printable(told.get(name, ""))[:300] for name in names)
    if not role or not site or (role, site, user) == (answers.role.name, answers.site, answers.username):
        return Sealed(answers.role.name, answers.site)
    log.warn(
        f"{machine.name} has taken its role in an earlier try, as {role} of {site} for {user}: these answers hold; "
        f"`kimbox secure --unseal {machine.name}` undoes it"
    )
    return Sealed(role, site)


def rotate(request: UpRequest, username: str, secret: Secret) -> None:
    """Restarts a sealed box, which then gets new credentials from its gateway, or hashes the new password.

    Raises GuestError where that failed: the box keeps its former credentials.
    """
    machine = machine_of(request.project.name)
    check_owner(machine, request.project)
    if not machine.record().sealed:
        raise StateError(f"{machine.name} is not sealed: it has no credentials", hint="`kimbox secure` gives it some")
    stop.halt(machine)
    files = {
        "answers.env": sealing.username(username), "nonce": secrets.token_bytes(16), secret.kind: secret.data
    }  # fmt: skip
    try:
        write_atomic(machine.rotate_file, _tar(files), mode=0o600)
        starting.up(request)
    finally:
        machine.rotate_file.unlink(missing_ok=True)
    told = next((event for event in reversed(machine.boot_events()) if event.name == "rotated"), None)
    if told is None or told.text("status") != "done":
        reason = told.text("reason")[:500] if told else "the box has not said why"
        raise GuestError(f"{machine.name} keeps the credentials that it had: {reason}")


def unseal(request: UpRequest) -> None:
    """Opens a sealed box: removes its data key first, then boots maintain mode, where the guest removes the rest.

    It may be repeated until it has succeeded. Raises StateError if the box was never sealed.
    """
    machine = machine_of(request.project.name)
    with machine.locked():
        check_owner(machine, request.project)
        if not machine.record().sealed and not machine.unseal_mark.exists():
            raise StateError(f"{machine.name} is not sealed", hint=f"it is open: `kimbox ssh {machine.name}`")
        write_atomic(machine.unseal_mark, "")
        machine.data_key.unlink(missing_ok=True)
    stop.halt(machine)
    starting.up(attrs.evolve(request, boot=Choice(BootMode.MAINTAIN, once=True)))
    with machine.locked():
        if all(event.name != "unsealed" for event in machine.boot_events()):
            raise GuestError(
                f"{machine.name} has not said that it is open", hint="see `kimbox logs --serial`; try again"
            )
        machine.write_record(attrs.evolve(machine.record(), sealed=None))
        machine.unseal_mark.unlink()


def _tar(files: dict[str, bytes]) -> bytes:
    """The files as a tar archive; only root may read them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.mode, info.size = 0o600, len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()

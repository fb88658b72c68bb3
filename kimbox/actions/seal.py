"""Seals a box in a role, gives a sealed box new credentials, and opens a sealed box without its credentials.

Scripts in the guest (provisioners/secure) do the work. The host keeps the key that encrypts the credentials of a sealed
box, and gives it to the guest at each start. Without the key the credentials are lost. Secrets are sent over ssh, or to
a sealed box in a file that QEMU reads at its start. No argument and no environment variable contains a secret.
"""

from __future__ import annotations

import io
import re
import secrets
import tarfile

import attrs

from kimbox.actions import stop
from kimbox.actions import up as starting
from kimbox.actions.observe import check_owner, endpoint, needs_restart_to_seal, state
from kimbox.actions.up import UpRequest
from kimbox.drivers import registry
from kimbox.errors import GuestError, StateError
from kimbox.files import erase, write_atomic
from kimbox.guest.delivery import SUDO
from kimbox.guest.events import printable
from kimbox.guest.ssh import Guest
from kimbox.image.disk import pristine
from kimbox.image.store import images
from kimbox.log import log
from kimbox.machine import foreign
from kimbox.machine.bootmode import Choice, refuse_kept_root, refuse_to_provision
from kimbox.machine.folder import Machine, machine_of
from kimbox.machine.record import Known, Record, Sealed
from kimbox.machine.state import last_manifest_event, require, sent_manifest
from kimbox.project import siblings
from kimbox.project.plan import make_plan
from kimbox.render import sealing
from kimbox.render.quote import parse_assignments
from kimbox.run import tail
from kimbox.spec.model import BootMode, Box, Role

#: Path of the script in the guest.
SECURE = "/usr/lib/kimbox/secure"

#: Timeout for the gateway's answer and the encryption of the credentials, in seconds.
TIMEOUT_S = 240

#: Maximum size of a password or a private key.
MAX_SECRET_BYTES = 64 << 10

#: Maximum size of the answers of an earlier attempt, which a guest reports.
MAX_ANSWERS_BYTES = 4096

#: Maximum length of the role, site and user name that a guest reports, in characters.
MAX_ANSWER_CHARACTERS = 300

#: Maximum length of the reason that a guest reports, in characters.
MAX_REASON_CHARACTERS = 500

#: Exit status of the guest's script: the box has a role already; the gateway refuses.
ALREADY, REFUSED = 4, 3

#: A sha256 digest in hex.
_DIGEST = re.compile(r"[0-9a-f]{64}")


@attrs.frozen
class Secret:
    """The password or private key of a user at a site; it is never shown."""

    #: Name of the file that the guest reads it from: `password`, or `id` for a private ssh key.
    kind: str
    data: bytes = attrs.field(repr=False)


@attrs.frozen
class Answers:
    """The answers to the four questions of `kimbox secure`."""

    role: Role
    site: str
    username: str
    secret: Secret


def secure(request: UpRequest, answers: Answers) -> Sealed:
    """Gives a role to a box that is ready, and restarts it as a sealed box. Returns its role.

    If the box is sealed already, returns its role and changes nothing. Raises GuestError, with the guest's message, if
    the gateway refuses or cannot be reached; StateError if the box has snapshots, or boots keep and its spec does not
    allow that; ImageError if its disk cannot be put back at each start. The box does not change then.
    """
    machine = machine_of(request.project.name)
    with machine.locked():
        check_owner(machine, request.project, is_locked=True)
        registry.need_sealing(machine, "secure")
        record = machine.record()
        if record.sealed:
            return record.sealed
        foreign.check(record, "secure")
        require("secure", machine.name, state(machine))
        refuse_to_provision(machine)
        refuse_kept_root(request.project.box, request.boot)
        siblings.need_gateway(machine.name, answers.role)
        _check_disk(machine, record)
        # A fault of the lock must be found before the box takes its role and is restarted.
        request = attrs.evolve(request, plan=make_plan(request.project, made_from=record.image))
        with log.step(f"requesting the credentials of {answers.site}"):
            sealed, caches = _take_role(machine, request.project.box, answers)
        _keep_role(machine, request.project.box, sealed, answers.role)
        machine.write_record(attrs.evolve(record, sealed=sealed, known=Known(_manifests(machine), caches)))
    close(request)
    return sealed


def _check_disk(machine: Machine, record: Record) -> None:
    """Checks that each start of the sealed box can put its disk back to its image.

    Raises StateError (`has-snapshots`) if that would lose snapshots, ImageError (`disk-layout`) if the image has no
    volume `persistent`.
    """
    if names := sorted(path.name for path in machine.snapshots.glob("*")):
        raise StateError(
            f"cannot secure {machine.name}: it has snapshots, which its first start as a sealed box would remove: "
            f"{', '.join(names):.200}",
            code="has-snapshots",
            hint=f"`kimbox snapshot delete {names[0]} {machine.name}` removes one of them",
            fields={"verb": "secure", "name": machine.name, "snapshots": " ".join(names)},
        )
    if record.disk_bytes:
        raise StateError(
            f"cannot secure {machine.name}: its disk has grown, and each start of a sealed box puts its disk back to "
            "the image",
            code="disk-grown",
            hint=f"set `disk: size:` in the spec; `kimbox destroy {machine.name}` and `kimbox up {machine.name}` give "
            "it such an image",
            fields={"name": machine.name, "verb": "secure"},
        )
    if image := images.find(record.image):
        pristine.check(image.disk, image.format)


def close(request: UpRequest) -> None:
    """Restarts a box that has its role and is not sealed yet, as after an interrupted `secure`."""
    machine = machine_of(request.project.name)
    if needs_restart_to_seal(machine, state(machine)):
        request = request if request.plan else starting.plan_restart(request)
        stop.halt(machine)
        starting.up(request)


def _keep_role(machine: Machine, box: Box, sealed: Sealed, asked: Role) -> None:
    """Writes the file with role, site and rules that the guest gets at each start. `asked`: the role in the answers."""
    assert box.secure is not None  # noqa: S101 - `asked` is one of its roles
    role = box.secure.role(sealed.role) or attrs.evolve(asked, name=sealed.role)
    write_atomic(machine.role_file, _tar(sealing.role_files(box.secure, role, sealed.site)), mode=0o600)


def _manifests(machine: Machine) -> tuple[str, ...]:
    """Returns the digests of the manifests that a ready box has: the one of its last event, and the one it was sent."""
    last = last_manifest_event(machine.boot_events())
    both = dict.fromkeys((last.text("manifest"), sent_manifest(last))) if last else {}
    return tuple(digest for digest in both if _DIGEST.fullmatch(digest))


def _take_role(machine: Machine, box: Box, answers: Answers) -> tuple[Sealed, str]:
    """Sends the answers to the guest; returns its role, and the digest of the list of its caches.

    After an interrupted attempt the guest may have its role already. The data key of that attempt is reused, because
    the guest has encrypted the credentials with it.
    """
    assert box.secure is not None  # noqa: S101 - `answers.role` is one of its roles
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
        return _taken(machine, answers, answer.stdout)
    output = tail(answer.stderr, 3).removeprefix("secure: ")
    if answer.code == 127 or (answer.code == 1 and "command not found" in output):
        raise GuestError(
            f"cannot secure {machine.name}: it was made by an older kimbox that has no roles",
            code="box-outdated",
            hint=f"`kimbox destroy {machine.name}` and `kimbox up {machine.name}` make the box again",
            fields={"name": machine.name},
        )
    is_refusal = answer.code == REFUSED
    what = "its gateway refused" if is_refusal else "the guest could not take the role"
    raise GuestError(
        f"cannot secure {machine.name}: {what}: {output}",
        code="credentials-refused" if is_refusal else "guest-failed",
        hint="the box did not change, and the answers were not stored",
        fields={"name": machine.name, "site": answers.site, "exit_status": str(answer.code)},
    )


def _taken(machine: Machine, answers: Answers, output: str) -> tuple[Sealed, str]:
    """The role of the guest, and the digest of the list of its caches; empty if it reports none.

    `output` has the answers.env of an earlier attempt, if there was one, which stays valid.
    """
    try:
        reported = parse_assignments(output.encode()[:MAX_ANSWERS_BYTES])
    except ValueError as error:
        raise GuestError(
            f"{machine.name} has a role, but did not report it in a valid form: {error}",
            code="unexpected-output",
            hint=f"`kimbox destroy {machine.name}` and `kimbox up {machine.name}` create the box again",
            fields={"name": machine.name},
        ) from None
    keys = ("KIMBOX_ROLE", "KIMBOX_SITE", "KIMBOX_USERNAME")
    role, site, user = (printable(reported.get(key, ""))[:MAX_ANSWER_CHARACTERS] for key in keys)
    listed = reported.get("KIMBOX_CACHES", "")
    caches = listed if _DIGEST.fullmatch(listed) else ""
    if not role or not site or (role, site, user) == (answers.role.name, answers.site, answers.username):
        return Sealed(answers.role.name, answers.site), caches
    log.warn(
        f"{machine.name} took its role in an earlier attempt, with other answers: it is {role} of {site} for {user}; "
        f"`kimbox secure --unseal {machine.name}` removes this role"
    )
    return Sealed(role, site), caches


def rotate(request: UpRequest, username: str, secret: Secret) -> None:
    """Restarts a sealed box, which then gets new credentials from its gateway, or hashes the new password.

    Raises StateError if the box is not sealed, GuestError if the box could not get new credentials. It keeps its
    former credentials then.
    """
    machine = machine_of(request.project.name)
    check_owner(machine, request.project)
    if not machine.record().sealed:
        raise StateError(
            f"{machine.name} is not sealed, so it has no credentials",
            code="wrong-state",
            hint=f"`kimbox secure {machine.name}` seals it",
            fields={"verb": "secure", "name": machine.name},
        )
    request = starting.plan_restart(request)
    stop.halt(machine)
    files = {
        "answers.env": sealing.username(username), "nonce": secrets.token_bytes(16), secret.kind: secret.data
    }  # fmt: skip
    try:
        write_atomic(machine.rotate_file, _tar(files), mode=0o600)
        starting.up(request)
    finally:
        erase(machine.rotate_file)
    event = next((event for event in reversed(machine.boot_events()) if event.name == "rotated"), None)
    if event is None or event.text("status") != "done":
        reason = event.text("reason")[:MAX_REASON_CHARACTERS] if event else "the guest reported no reason"
        raise GuestError(
            f"{machine.name} keeps its former credentials: {reason}",
            code="credentials-refused",
            fields={"name": machine.name, "reason": reason},
        )


def unseal(request: UpRequest) -> None:
    """Opens a sealed box: removes its data key, then boots maintain mode, where the guest removes the other secrets.

    A caller may repeat it until it succeeds. Raises StateError if the box was never sealed, GuestError if the guest
    does not report that it is open.
    """
    machine = machine_of(request.project.name)
    with machine.locked():
        check_owner(machine, request.project, is_locked=True)
        if not machine.record().sealed and not machine.unseal_mark.exists():
            raise StateError(
                f"{machine.name} is not sealed",
                code="wrong-state",
                hint=f"it is open: `kimbox ssh {machine.name}`",
                fields={"verb": "secure", "name": machine.name},
            )
        request = attrs.evolve(request, plan=make_plan(request.project, made_from=machine.record().image))
        write_atomic(machine.unseal_mark, "")
        erase(machine.data_key)
    stop.halt(machine)
    starting.up(attrs.evolve(request, boot=Choice(BootMode.MAINTAIN, once=True)))
    with machine.locked():
        if all(event.name != "unsealed" for event in machine.boot_events()):
            raise GuestError(
                f"{machine.name} did not report that it is open",
                code="guest-failed",
                hint=f"`kimbox logs --serial {machine.name}` shows its console; then run "
                f"`kimbox secure --unseal {machine.name}` again",
                fields={"name": machine.name, "missing_event": "unsealed"},
            )
        machine.write_record(attrs.evolve(machine.record(), sealed=None, known=None, put_back=None))
        machine.role_file.unlink(missing_ok=True)
        machine.unseal_mark.unlink()


def _tar(files: dict[str, bytes]) -> bytes:
    """The files as a tar archive, with permissions for root only."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.mode, info.size = 0o600, len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()

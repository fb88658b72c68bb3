"""kimbox secure: give a box a role of its site and seal it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from kimbox.cli import several, target
from kimbox.cli.output import report, settings
from kimbox.errors import StateError, UsageError

if TYPE_CHECKING:
    from kimbox.actions.seal import Answers, Secret
    from kimbox.machine.record import Sealed
    from kimbox.spec.members import Member
    from kimbox.spec.model import Box, Gateway, Role, Secure

#: Maximum number of characters of an unknown role that the message repeats.
MAX_SHOWN_CHARACTERS = 100

RoleName = Annotated[
    str | None, typer.Option("--role", metavar="ROLE", help="The role that the box takes: one of those in the spec.")
]
Site = Annotated[str | None, typer.Option("--site", metavar="NAME", help="Name of the site, for example openkim.org.")]
Username = Annotated[str | None, typer.Option("--username", metavar="NAME", help="User name at the site.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--password-file", metavar="FILE", help="File with the password in its first line. - reads it from stdin."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="FILE", help="Private ssh key, without a passphrase, in place of a password."),
]
Netrc = Annotated[
    bool,
    typer.Option("--netrc", help="Take user name and password from ~/.netrc, from the entry of the gateway's host."),
]
Rotate = Annotated[bool, typer.Option("--rotate", help="Give a sealed box new credentials, and restart it.")]
Unseal = Annotated[bool, typer.Option("--unseal", help="Destroy the credentials of a sealed box, and open it.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="With --unseal: open it without a confirmation.")]

#: What `--unseal` prints at its end.
OPENED = "{name} is open, in maintain mode, and has no role (`kimbox reload {name}` leaves the mode)"


def secure(
    box: target.Name = None,
    file: target.File = None,
    role: RoleName = None,
    site: Site = None,
    username: Username = None,
    password_file: PasswordFile = None,
    key_file: KeyFile = None,
    netrc: Netrc = False,
    rotate: Rotate = False,
    unseal: Unseal = False,
    yes: Yes = False,
) -> None:
    """Give a box a role of its site, for example worker or director, and seal it. A sealed box accepts no login.

    kimbox prompts for role, sitename, username and password, unless options give them. With these, the box requests the
    credentials of the site from the gateway of the role (`secure:` in the spec). If the gateway refuses or cannot be
    reached, the box reports why and stays unchanged. Otherwise the box restarts. At this and every later boot it seals
    itself before its network starts, and then does the work of its role. `kimbox status` and `kimbox audit` show its
    state. The host can halt, reload and destroy it. Each start puts its disk, except /persistent, back to its image.

    --unseal opens the box again: kimbox destroys the key of the credentials, and the box restarts in maintain mode,
    with a new root. Of /persistent it keeps only its ssh host keys.

    Of a spec with several boxes, each that has roles is secured, in the order of their needs, with the same answers.

    \b
    Examples:
      kimbox secure worker
      kimbox secure worker --role worker --site openkim.org --username alice --password-file -
      kimbox secure worker --rotate --username alice
      kimbox secure worker --unseal
    """
    if rotate and unseal:
        raise UsageError("--rotate and --unseal exclude each other", code="usage", fields={"option": "--rotate"})
    given = Given(role, site, username, password_file, key_file, netrc)
    if found := target.several(box, file):
        if rotate or unseal or role:
            raise UsageError("--role, --rotate and --unseal require one box", code="usage", hint="name the box")
        _secure_all(*found, given)
        return
    report("secure", *_secure_one(box, file, given, rotate=rotate, unseal=unseal, yes=yes)[:2])


@attrs.frozen
class Given:
    """What the command line says about role, site and credentials, or what an earlier box of the same spec has got."""

    role: str | None
    site: str | None
    username: str | None
    password_file: Path | None
    key_file: Path | None
    netrc: bool
    secret: Secret | None = None


def _secure_all(spec: Path, members: Sequence[Member], given: Given) -> None:
    """Secures each box of a spec that has roles, in the order of the needs, with the same site and credentials."""
    done = []
    for member in members:
        project = target.project(member.name, spec, settings=target.RECORDED)
        if project.box.secure is None:
            continue
        result, text, answers = _secure_one(member.name, spec, given)
        done.append((result, text))
        if answers:
            given = Given(None, answers.site, answers.username, None, None, netrc=False, secret=answers.secret)
    if not done:
        raise StateError(
            f"no box of {spec} has roles: the key `secure` is missing",
            code="missing-key",
            hint="docs/spec.md describes the key `secure`",
            fields={"path": str(spec), "key": "secure"},
        )
    several.print_all("secure", done)


def _secure_one(
    box: str | None, file: Path | None, given: Given, *, rotate: bool = False, unseal: bool = False, yes: bool = False
) -> tuple[dict[str, Any], str, Answers | None]:
    """Secures, rotates or opens a box. Returns its result and text, and the answers if there were any."""
    from kimbox.actions import seal as sealing
    from kimbox.actions.up import UpRequest
    from kimbox.actions.watch import BOOT_TIMEOUT_S
    from kimbox.machine.folder import machine_of

    project = target.project(box, file, settings=target.RECORDED)
    spec, policy = project.box, _policy(project.box)
    request = UpRequest(project, timeout_s=settings.timeout_s or BOOT_TIMEOUT_S)
    machine = machine_of(spec.name)
    sealed, answers = machine.record().sealed, None
    if unseal:
        if not yes:
            _confirm(f"Destroy the credentials of {spec.name} and open it?")
        sealing.unseal(request)
        return _result(spec.name, None), OPENED.format(name=spec.name), None
    if rotate:
        if sealed is None:
            raise _not_sealed(spec.name)
        answers = _collect_answers(policy, attrs.evolve(given, role=sealed.role, site=sealed.site))
        sealing.rotate(request, answers.username, answers.secret)
        text = f"{spec.name} has new credentials, as {answers.username}"
    elif sealed:
        sealing.close(request)
        text = f"{spec.name} is sealed already, as {sealed.role} of {sealed.site}"
    else:
        answers = _collect_answers(policy, given)
        sealed = sealing.secure(request, answers)
        text = f"{spec.name} is sealed, as {sealed.role} of {sealed.site}"
    return _result(spec.name, sealed), text, answers


def _not_sealed(name: str) -> StateError:
    return StateError(
        f"{name} is not sealed, so it has no credentials to replace",
        code="wrong-state",
        hint=f"`kimbox secure {name}` seals it",
        fields={"name": name},
    )


def _policy(spec: Box) -> Secure:
    if spec.secure is None:
        raise StateError(
            f"the spec of {spec.name} has no roles: its key `secure` is missing",
            code="missing-key",
            hint="docs/spec.md describes the key `secure`; the boxes openkim-worker and openkim-director have it",
            fields={"name": spec.name, "key": "secure"},
        )
    return spec.secure


def _result(name: str, sealed: Sealed | None) -> dict[str, Any]:
    return {"name": name, "role": sealed.role if sealed else None, "site": sealed.site if sealed else None}


def _collect_answers(policy: Secure, given: Given) -> Answers:
    """Returns the answers, from options or prompts. Raises UsageError if one is invalid or there is no terminal."""
    from kimbox.actions.seal import Answers
    from kimbox.spec.nodes import Fault
    from kimbox.spec.sealing import account_name, login_name, site_name

    site, username, secret = given.site, given.username, given.secret
    if sum((given.password_file is not None, given.key_file is not None, given.netrc)) > 1:
        raise UsageError(
            "--password-file, --key-file and --netrc exclude each other",
            code="usage",
            fields={"option": "--password-file"},
        )
    names = [role_of_site.name for role_of_site in policy.roles]
    role = given.role or (names[0] if len(names) == 1 else None)
    has_secret = secret or given.password_file or given.key_file or given.netrc
    _need_terminal_or({"--role": role, "--site": site or policy.site, "--username": username or given.netrc,
                       "--password-file, --key-file or --netrc": has_secret})  # fmt: skip
    chosen_role = _role(policy, role or _prompt(f"role ({', '.join(names)})"))
    try:
        sitename = site_name(site or (policy.site if not _is_terminal() else _prompt("sitename", policy.site)) or "")
        if given.netrc:
            netrc_username, secret = _from_netrc(chosen_role.gateway)
            username = username or netrc_username
        check_username = login_name if chosen_role.gateway else account_name
        username = check_username(username or _prompt("username"))
        if not chosen_role.gateway and username in chosen_role.accounts:
            raise Fault(
                f"{username} is an account of the role {chosen_role.name} itself",
                "choose another name",
                code="duplicate",
            )
    except Fault as fault:
        raise UsageError(fault.message, code=fault.code, hint=fault.hint) from None
    return Answers(chosen_role, sitename, username, secret or _secret(given.password_file, given.key_file))


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty() and not settings.json


def _need_terminal_or(answers: dict[str, object]) -> None:
    """Raises UsageError, with every option that lacks a value, if there is no terminal to prompt on."""
    missing = ", ".join(option for option, answer in answers.items() if not answer)
    if missing and not _is_terminal():
        raise UsageError(
            "no terminal to prompt on", code="no-terminal", hint=f"pass {missing}", fields={"options": missing}
        )


def _prompt(question: str, default: str | None = None) -> str:
    return str(typer.prompt(question, default=default, err=True))


def _role(policy: Secure, name: str) -> Role:
    from kimbox.spec.schema import guess

    role = policy.role(name)
    if role is None:
        raise UsageError(
            f"role {name[:MAX_SHOWN_CHARACTERS]} not found in the spec",
            code="role-not-found",
            hint=guess(name, [role_of_site.name for role_of_site in policy.roles]),
            fields={"role": name},
        )
    return role


def _secret(password_file: Path | None, key_file: Path | None) -> Secret:
    """Returns the password or the key. Raises UsageError if the file does not contain one."""
    from kimbox.actions.seal import MAX_SECRET_BYTES, Secret
    from kimbox.files import read_bounded

    if key_file is not None:
        data = read_bounded(key_file, limit_bytes=MAX_SECRET_BYTES)
        if b"PRIVATE KEY-----" not in data:
            raise UsageError(
                f"{key_file} is not a private ssh key", code="bad-credentials", fields={"path": str(key_file)}
            )
        return Secret("id", data)
    if password_file is None:
        text = typer.prompt("password", hide_input=True, err=True)
        return Secret("password", text.encode() + b"\n")
    if str(password_file) == "-":
        data = sys.stdin.buffer.read(MAX_SECRET_BYTES)
    else:
        data = read_bounded(password_file, limit_bytes=MAX_SECRET_BYTES)
    line = data.split(b"\n", 1)[0].rstrip(b"\r")
    if not line:
        raise UsageError(
            f"the first line of {password_file} is empty: it must be the password",
            code="bad-credentials",
            fields={"path": str(password_file)},
        )
    return Secret("password", line + b"\n")


def _from_netrc(gateway: Gateway | None) -> tuple[str, Secret]:
    """Returns user name and password of the gateway from ~/.netrc.

    Raises UsageError if the file has none, is invalid, or may be read by other users.
    """
    from kimbox.actions.seal import Secret
    from kimbox.transfer.address import netrc_entry

    path = Path.home() / ".netrc"
    if gateway is None:
        raise UsageError(
            "--netrc requires a role with a gateway: the entry of ~/.netrc is found by the gateway's host",
            code="usage",
            hint="pass --password-file",
            fields={"option": "--netrc"},
        )
    entry = netrc_entry(gateway.host)
    if not entry:
        raise UsageError(
            f"{path} has no login and password for {gateway.host}", code="bad-credentials", fields={"path": str(path)}
        )
    return entry[0], Secret("password", entry[1].encode() + b"\n")


def _confirm(question: str) -> None:
    """Prompts for a confirmation. Raises UsageError if there is no terminal to prompt on."""
    if not _is_terminal():
        raise UsageError(
            "--unseal needs a confirmation, and there is no terminal to prompt on", code="no-terminal", hint="add --yes"
        )
    typer.confirm(question, abort=True, err=True)

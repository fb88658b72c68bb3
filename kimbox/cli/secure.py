"""kimbox secure: a box takes a role of its site, and closes itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import report, settings
from kimbox.errors import StateError, UsageError

if TYPE_CHECKING:
    from kimbox.actions.seal import Answers, Secret
    from kimbox.machine.record import Sealed
    from kimbox.spec.model import Box, Gateway, Role, Secure

RoleName = Annotated[
    str | None, typer.Option("--role", metavar="ROLE", help="What the box becomes: a role of the spec.")
]
Site = Annotated[str | None, typer.Option("--site", metavar="NAME", help="Name of the site, such as openkim.org.")]
Username = Annotated[str | None, typer.Option("--username", metavar="NAME", help="Whom the site knows.")]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", metavar="FILE", help="The password is its first line; - is stdin.")
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="FILE", help="A private ssh key, without a passphrase, in its place."),
]
Netrc = Annotated[bool, typer.Option("--netrc", help="User name and password from ~/.netrc, by the gateway's host.")]
Rotate = Annotated[bool, typer.Option("--rotate", help="Give a sealed box new credentials; it restarts.")]
Unseal = Annotated[bool, typer.Option("--unseal", help="Open a sealed box; its credentials are destroyed first.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether to unseal.")]


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
    """Make a box a worker or a director of its site, and close it: from then on nobody enters it.

    Four questions, role, sitename, username and password, are asked where options do not answer them. With them the box
    asks the gateway of the role (`secure:` in the spec) for the site's credentials. Where the site refuses, or cannot
    be reached, the box says so and stays as it was. Else it restarts, closes itself before its network comes up, at
    this and every later boot, and does the work of its role. `kimbox status` and `kimbox audit` tell how it is; the
    host can halt, reload and destroy it.

    --unseal is the way back: the key of the credentials is destroyed, and the box restarts in maintain mode without
    anything that it kept in its role.

    \b
    Examples:
      kimbox secure worker
      kimbox secure worker --role worker --site openkim.org --username alice --password-file -
      kimbox secure worker --rotate --username alice
      kimbox secure worker --unseal
    """
    from kimbox.actions import seal as sealing
    from kimbox.actions.up import UpRequest
    from kimbox.actions.watch import BOOT_TIMEOUT_S
    from kimbox.machine.folder import machine_of

    if rotate and unseal:
        raise UsageError("--rotate and --unseal exclude each other")
    project = target.project(box, file)
    spec, policy = project.box, _policy(project.box)
    request = UpRequest(project, timeout_s=settings.timeout_s or BOOT_TIMEOUT_S)
    machine = machine_of(spec.name)
    sealed = machine.record().sealed
    if unseal:
        if not yes:
            _confirm(f"destroy the credentials of {spec.name} and open it?")
        sealing.unseal(request)
        _report(spec.name, None, f"{spec.name} is open, in maintain mode, and has no role: `kimbox reload {spec.name}`")
    elif rotate:
        if sealed is None:
            raise StateError(f"{spec.name} is not sealed: it has no credentials", hint="`kimbox secure` gives it some")
        given = _given(policy, sealed.role, sealed.site, username, password_file, key_file, netrc)
        sealing.rotate(request, given.username, given.secret)
        _report(spec.name, sealed, f"{spec.name} has new credentials, as {given.username}")
    elif sealed:
        sealing.close(request)
        _report(spec.name, sealed, f"{spec.name} is sealed already, as {sealed.role} of {sealed.site}")
    else:
        sealed = sealing.secure(request, _given(policy, role, site, username, password_file, key_file, netrc))
        _report(spec.name, sealed, f"{spec.name} is sealed, as {sealed.role} of {sealed.site}")


def _policy(spec: Box) -> Secure:
    if spec.secure is None:
        hint = "docs/spec.md has the key `secure`; the boxes openkim-worker and openkim-director show it"
        raise StateError(f"the spec of {spec.name} does not say what it can become: it has no `secure`", hint=hint)
    return spec.secure


def _report(name: str, sealed: Sealed | None, text: str) -> None:
    facts = {"name": name, "role": sealed.role if sealed else None, "site": sealed.site if sealed else None}
    report("secure", facts, text)


def _given(
    policy: Secure, role: str | None, site: str | None, username: str | None, password_file: Path | None,
    key_file: Path | None, netrc: bool,
) -> Answers:  # fmt: skip
    """The answers, from options or by asking. Raises UsageError naming every option that lacks where nobody answers."""
    from kimbox.actions.seal import Answers
    from kimbox.spec.nodes import Fault
    from kimbox.spec.sealing import account_name, login_name, site_name

    if sum((password_file is not None, key_file is not None, netrc)) > 1:
        raise UsageError("--password-file, --key-file and --netrc exclude each other")
    names = [one.name for one in policy.roles]
    role = role or (names[0] if len(names) == 1 else None)
    _must_be_answered({"--role": role, "--site": site or policy.site, "--username": username or netrc,
                       "--password-file, --key-file or --netrc": password_file or key_file or netrc})  # fmt: skip
    chosen = _role(policy, role or _ask(f"role ({', '.join(names)})"))
    try:
        where = site_name(site or (policy.site if not _is_terminal() else _ask("sitename", policy.site)) or "")
        secret: Secret | None = None
        if netrc:
            found, secret = _from_netrc(chosen.gateway)
            username = username or found
        who = (login_name if chosen.gateway else account_name)(username or _ask("username"))
        if not chosen.gateway and who in chosen.accounts:
            raise Fault(f"{who} is an account of the role {chosen.name} itself", "choose another name")
    except Fault as fault:
        raise UsageError(fault.message, hint=fault.hint) from None
    return Answers(chosen, where, who, secret or _secret(password_file, key_file))


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty() and not settings.json


def _must_be_answered(answers: dict[str, object]) -> None:
    lacking = [option for option, answer in answers.items() if not answer]
    if lacking and not _is_terminal():
        raise UsageError(
            f"nobody is there to answer: {', '.join(lacking)} must be given", hint="see `kimbox secure --help`"
        )


def _ask(question: str, default: str | None = None) -> str:
    return str(typer.prompt(question, default=default, err=True))


def _role(policy: Secure, name: str) -> Role:
    from kimbox.spec.schema import guess

    found = policy.role(name)
    if found is None:
        raise UsageError(f"there is no role {name[:100]}", hint=guess(name, [one.name for one in policy.roles]))
    return found


def _secret(password_file: Path | None, key_file: Path | None) -> Secret:
    """The password or the key. Raises UsageError if there is none in what is named."""
    from kimbox.actions.seal import MAX_SECRET_BYTES, Secret
    from kimbox.files import read_bounded

    if key_file is not None:
        data = read_bounded(key_file, limit_bytes=MAX_SECRET_BYTES)
        if b"PRIVATE KEY-----" not in data:
            raise UsageError(f"{key_file} holds no private key of ssh")
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
        raise UsageError(f"{password_file} holds no password in its first line")
    return Secret("password", line + b"\n")


def _from_netrc(gateway: Gateway | None) -> tuple[str, Secret]:
    """User name and password of the gateway in ~/.netrc. Raises UsageError if it has none, or others may read it."""
    import netrc

    from kimbox.actions.seal import Secret

    path = Path.home() / ".netrc"
    if gateway is None:
        raise UsageError("this role has no gateway: ~/.netrc cannot name it", hint="give --password-file")
    try:
        if path.stat().st_mode & 0o077:
            raise UsageError(f"{path} may be read by others", hint=f"chmod 600 {path}")
        found = netrc.netrc(path).authenticators(gateway.host)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except netrc.NetrcParseError as error:
        raise UsageError(f"{path}:{error.lineno}: {error.msg}") from None
    if not found or not found[0] or not found[2]:
        raise UsageError(f"{path} has no login and password for {gateway.host}")
    return found[0], Secret("password", found[2].encode() + b"\n")


def _confirm(question: str) -> None:
    if not _is_terminal():
        raise UsageError("nobody is there to confirm it", hint="--yes says so beforehand")
    typer.confirm(question, abort=True, err=True)

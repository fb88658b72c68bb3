"""Files that hold a secret or an identity by their place, whatever their form: each with what it is. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from kimbox.image.sanitize.key_formats import Kind

#: So much of a file's beginning is looked at where its place alone does not tell.
HEAD_BYTES = 4096


def _any(head: bytes) -> bool:
    return bool(head)


def _is_machine_id(head: bytes) -> bool:
    """systemd writes `uninitialized` where the first boot shall make one (machine-id(5))."""
    return head.strip() not in (b"", b"uninitialized")


def _has_initiator(head: bytes) -> bool:
    """open-iscsi's file, before a name is made, says `GenerateName=yes` alone."""
    return any(line.startswith(b"InitiatorName=") for line in head.splitlines())


def _has_popcon_id(head: bytes) -> bool:
    values = [line.partition(b"=")[2] for line in head.splitlines() if line.startswith(b"MY_HOSTID=")]
    return any(value.strip(b"\"' ") for value in values)


#: Whole paths, with wildcards in one name each; kind; what the beginning of the file has to be.
PLACES: tuple[tuple[str, Kind, Callable[[bytes], bool]], ...] = (
    # Secrets that the machines of a cluster or programs of one machine share.
    ("/etc/munge/munge.key", Kind.SECRET, _any),
    ("/etc/corosync/authkey", Kind.SECRET, _any),
    ("/etc/pacemaker/authkey", Kind.SECRET, _any),
    ("/etc/bind/rndc.key", Kind.SECRET, _any),
    ("/etc/krb5.keytab", Kind.SECRET, _any),
    ("/etc/krb5kdc/stash", Kind.SECRET, _any),
    ("/etc/krb5kdc/.k5.*", Kind.SECRET, _any),
    ("/etc/slurm/*.key", Kind.SECRET, _any),
    ("/etc/condor/passwords.d/*", Kind.SECRET, _any),
    ("/etc/condor/tokens.d/*", Kind.SECRET, _any),
    ("/etc/wireguard/*", Kind.SECRET, _any),
    ("/etc/cryptsetup-keys.d/*", Kind.SECRET, _any),
    ("/etc/xrdp/rsakeys.ini", Kind.SECRET, _any),
    ("/var/lib/samba/private/secrets.tdb", Kind.SECRET, _any),
    ("/var/lib/systemd/credential.secret", Kind.SECRET, _any),
    ("/var/lib/systemd/random-seed", Kind.SECRET, _any),
    ("/var/lib/urandom/random-seed", Kind.SECRET, _any),
    # Names by which others know one machine.
    ("/etc/machine-id", Kind.IDENTITY, _is_machine_id),
    ("/var/lib/dbus/machine-id", Kind.IDENTITY, _is_machine_id),
    ("/etc/hostid", Kind.IDENTITY, _any),
    ("/etc/iscsi/initiatorname.iscsi", Kind.IDENTITY, _has_initiator),
    ("/etc/nvme/hostid", Kind.IDENTITY, _any),
    ("/etc/nvme/hostnqn", Kind.IDENTITY, _any),
    ("/etc/popularity-contest.conf", Kind.IDENTITY, _has_popcon_id),
    ("/var/lib/cloud/data/instance-id", Kind.IDENTITY, _any),
    # Databases of services, which have identities, accounts and often passwords in them.
    ("/var/lib/ldap/data.mdb", Kind.DATABASE, _any),
    ("/var/lib/krb5kdc/principal", Kind.DATABASE, _any),
    ("/var/lib/samba/private/sam.ldb", Kind.DATABASE, _any),
)

#: The last names of paths, wherever they lie.
NAMES: tuple[tuple[str, Kind], ...] = (
    ("/global/pg_control", Kind.DATABASE),
    ("/ibdata1", Kind.DATABASE),
    ("/.erlang.cookie", Kind.SECRET),
    ("/key3.db", Kind.NSS),
    ("/key4.db", Kind.NSS),
    ("/private-keys-v1.d/*.key", Kind.GNUPG),
    ("/dropbear_*_host_key", Kind.DROPBEAR),
    ("/ssh_host_*_key", Kind.OPENSSH),
)


def _pattern(paths: Iterable[str]) -> re.Pattern[bytes]:
    """Matches one of these at the end, with a group for each; a star is any part of one name."""
    groups = (re.escape(path).replace(r"\*", "[^/]*") for path in paths)
    return re.compile(f"(?:{'|'.join(f'({group})' for group in groups)})\\Z".encode())


_WHOLE = {path.encode(): (kind, is_one) for path, kind, is_one in PLACES if "*" not in path}
_WILD = [place for place in PLACES if "*" in place[0]]
_WILD_PATTERN = _pattern(path for path, _, _ in _WILD)
_NAME_PATTERN = _pattern(path for path, _ in NAMES)


def of_path(path: bytes, head: Callable[[], bytes]) -> Kind | None:
    """What a regular file at this path is; `head` gives its first HEAD_BYTES, and is called only where that decides."""
    found = _WHOLE.get(path)
    if found and found[1](head()):
        return found[0]
    match = _NAME_PATTERN.search(path)
    if match and match.lastindex and head():
        return NAMES[match.lastindex - 1][1]
    match = _WILD_PATTERN.match(path)
    if match and match.lastindex:
        _, kind, is_one = _WILD[match.lastindex - 1]
        return kind if is_one(head()) else None
    return None

"""Detects files that hold a secret, an identity or a database, by their path. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from kimbox.image.sanitize.key_formats import Kind

#: Number of bytes at the start of a file that are read if its path alone does not decide.
HEAD_BYTES = 4096


def _any(head: bytes) -> bool:
    """Whether the file has content."""
    return bool(head)


def _is_machine_id(head: bytes) -> bool:
    """Whether there is an ID: `uninitialized` asks systemd to write one at the first boot (machine-id(5))."""
    return head.strip() not in (b"", b"uninitialized")


def _has_initiator(head: bytes) -> bool:
    """Whether there is a name: before open-iscsi generates one, its file has only `GenerateName=yes`."""
    return any(line.startswith(b"InitiatorName=") for line in head.splitlines())


def _has_popcon_id(head: bytes) -> bool:
    """Whether the configuration of popularity-contest has a host ID that is not empty."""
    values = [line.partition(b"=")[2] for line in head.splitlines() if line.startswith(b"MY_HOSTID=")]
    return any(value.strip(b"\"' ") for value in values)


#: Absolute paths (`*` matches any part of one name), the kind, and a test of the start of the file.
PLACES: tuple[tuple[str, Kind, Callable[[bytes], bool]], ...] = (
    # Secrets that the machines of a cluster, or the programs of one machine, share.
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
    # Identities: names that identify one machine to others.
    ("/etc/machine-id", Kind.IDENTITY, _is_machine_id),
    ("/var/lib/dbus/machine-id", Kind.IDENTITY, _is_machine_id),
    ("/etc/hostid", Kind.IDENTITY, _any),
    ("/etc/iscsi/initiatorname.iscsi", Kind.IDENTITY, _has_initiator),
    ("/etc/nvme/hostid", Kind.IDENTITY, _any),
    ("/etc/nvme/hostnqn", Kind.IDENTITY, _any),
    ("/etc/popularity-contest.conf", Kind.IDENTITY, _has_popcon_id),
    ("/var/lib/cloud/data/instance-id", Kind.IDENTITY, _any),
    # Databases of services: they hold identities, accounts and often passwords.
    ("/var/lib/ldap/data.mdb", Kind.DATABASE, _any),
    ("/var/lib/krb5kdc/principal", Kind.DATABASE, _any),
    ("/var/lib/samba/private/sam.ldb", Kind.DATABASE, _any),
)

#: Ends of paths in any folder (`*` matches any part of one name), and the kind.
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
    """A pattern that matches one of these paths at the end of a path, with a group for each."""
    groups = (re.escape(path).replace(r"\*", "[^/]*") for path in paths)
    return re.compile(f"(?:{'|'.join(f'({group})' for group in groups)})\\Z".encode())


_EXACT = {path.encode(): (kind, is_secret) for path, kind, is_secret in PLACES if "*" not in path}
_WILD = [place for place in PLACES if "*" in place[0]]
_WILD_PATTERN = _pattern(path for path, _, _ in _WILD)
_NAME_PATTERN = _pattern(path for path, _ in NAMES)


def kind_of_path(path: bytes, head: Callable[[], bytes]) -> Kind | None:
    """Returns the kind of a regular file at this path, or None.

    `head` returns the first HEAD_BYTES of the file. It is called only if the path matches.
    """
    kind, is_secret = _EXACT.get(path, (None, _any))
    if kind and is_secret(head()):
        return kind
    match = _NAME_PATTERN.search(path)
    if match and match.lastindex and head():
        return NAMES[match.lastindex - 1][1]
    match = _WILD_PATTERN.match(path)
    if match and match.lastindex:
        _, kind, is_secret = _WILD[match.lastindex - 1]
        return kind if is_secret(head()) else None
    return None

"""The rules for names, paths, packages, refs and digests in a spec.

Each rule takes a text and returns it unchanged, or raises a Fault.
"""

from __future__ import annotations

import posixpath
import re

from kimbox.spec.nodes import Fault, shown

#: Maximum length of a ref. In a mirror the ref is a file name, and git appends `.lock` to it.
MAX_REF_CHARACTERS = 250

#: Maximum length of a name in device-mapper (DM_NAME_LEN less the NUL at its end), less a suffix such as -real that LVM
#: appends.
MAX_DM_NAME_CHARACTERS = 127 - len("-real")

#: Prefixes and parts of LV names that LVM reserves (lvm(8), VALID NAMES).
RESERVED_LV_PREFIXES = ("snapshot", "pvmove")
RESERVED_LV_PARTS = (
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog", "_pmspare", "_rimage",
    "_rmeta", "_tdata", "_tmeta", "_tpool", "_vdata", "_vorigin", "_wcorig",
)  # fmt: skip

#: Maximum length of a path in the guest.
MAX_GUEST_PATH_CHARACTERS = 255

#: Entries of /dev: LVM could not create the folder of a volume group that has the same name.
DEV_NAMES = frozenset({
    "block", "bus", "char", "console", "core", "cpu", "disk", "dri", "fd", "full", "fuse", "hpet", "input", "kmsg",
    "kvm", "log", "loop-control", "mapper", "mem", "mqueue", "net", "null", "port", "ppp", "pts", "ptmx", "ram",
    "random", "rfkill", "rtc", "shm", "snapshot", "snd", "stderr", "stdin", "stdout", "tty", "urandom", "vfio",
    "vhost-net", "virtio-ports", "zero", "vda", "vdb", "sda", "sdb",
})  # fmt: skip

#: Guest folders below which no checkout and no mount point may be: they are not on root, or the system owns them.
FORBIDDEN_TREES = ("/proc", "/sys", "/dev", "/run", "/boot", "/persistent")

#: Guest folders that may contain a checkout or a mount point, but cannot be one, because they have other contents.
SYSTEM_FOLDERS = frozenset({
    "/", "/bin", "/etc", "/home", "/home/vagrant", "/lib", "/lib64", "/media", "/mnt", "/opt", "/root", "/sbin",
    "/srv", "/tmp", "/usr", "/usr/bin", "/usr/include", "/usr/lib", "/usr/local", "/usr/local/bin",  # noqa: S108
    "/usr/local/lib", "/usr/local/sbin", "/usr/local/share", "/usr/local/src", "/usr/sbin", "/usr/share",
    "/usr/src", "/var", "/var/cache", "/var/lib", "/var/log", "/var/tmp",  # noqa: S108
})  # fmt: skip

#: Guest folders that a new root has from its image.
OF_THE_IMAGE = frozenset({
    "/", "/bin", "/etc", "/lib", "/lib64", "/sbin", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/sbin",  # noqa: S108
    "/usr/share", "/var", "/var/cache", "/var/lib", "/var/log", "/var/tmp",  # noqa: S108
})  # fmt: skip

#: Maximum length of the name of a time zone; the longest has 32 characters.
MAX_ZONE_CHARACTERS = 64

_BOX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}(/[A-Za-z0-9][A-Za-z0-9._-]{0,62})?")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LVM_NAME = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*")
_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_STEP = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,127}")
_GUEST_PATH = re.compile(r"/[A-Za-z0-9._+@/-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9][A-Za-z0-9_+-]*){0,2}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NOT_IN_A_LABEL = re.compile(r"[^a-z0-9]+")
_NOT_IN_A_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]")
_BARE_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_LOOSE_DIGEST = re.compile(r"sha256:[0-9a-fA-F]{64}")


def box_name(text: str) -> str:
    """The name of a box: a label of RFC 1123, because it becomes the host name of the guest."""
    if _LABEL.fullmatch(text):
        return text
    suggestion = _NOT_IN_A_LABEL.sub("-", text.lower()).strip("-")[:63].strip("-")
    raise Fault(
        f"{shown(text)} cannot be the name of a box: use lower-case letters, digits and hyphens, at most 63, with a "
        "letter or digit at both ends",
        f"for example {suggestion}" if suggestion else None,
        code="bad-name",
    )


def volume_group(text: str) -> str:
    """The name of a volume group, as lvm(8) allows it."""
    _check_lvm_name(text, "a volume group")
    if text in DEV_NAMES:
        raise Fault(f"{shown(text)} cannot be the name of a volume group: /dev/{text} exists", code="bad-name")
    return text


def volume_name(text: str) -> str:
    """The name of a logical volume, as lvm(8) allows it."""
    _check_lvm_name(text, "a volume")
    for prefix in RESERVED_LV_PREFIXES:
        if text.startswith(prefix):
            reason = f"LVM reserves names that start with {prefix}"
            raise Fault(f"{shown(text)} cannot be the name of a volume: {reason}", code="bad-name")
    for part in RESERVED_LV_PARTS:
        if part in text:
            reason = f"LVM reserves names that contain {part}"
            raise Fault(f"{shown(text)} cannot be the name of a volume: {reason}", code="bad-name")
    return text


def _check_lvm_name(text: str, kind: str) -> None:
    if text in (".", "..") or not _LVM_NAME.fullmatch(text):
        raise Fault(
            f"{shown(text)} cannot be the name of {kind}: use letters, digits and + _ . - , and no hyphen at the start",
            code="bad-name",
        )
    if len(text) > MAX_DM_NAME_CHARACTERS:
        raise Fault(
            f"{shown(text)} is too long for the name of {kind}: at most {MAX_DM_NAME_CHARACTERS} characters",
            code="bad-name",
        )


def repository_name(text: str) -> str:
    """The name of a repository. It becomes the name of a folder and of a mirror, and messages show it."""
    if not _REPOSITORY.fullmatch(text):
        raise Fault(
            f"{shown(text)} cannot be the name of a repository: use lower-case letters, digits and hyphens, at most "
            "63, and no hyphen at the start",
            code="bad-name",
        )
    return text


def step_name(text: str) -> str:
    """The name of a provision step. It becomes a file name in the guest."""
    if not _STEP.fullmatch(text):
        raise Fault(
            f"{shown(text)} cannot be the name of a step: use lower-case letters, digits and . _ - , at most 63, with "
            "a letter or digit at the start",
            code="bad-name",
        )
    return text


def package(text: str) -> str:
    """The name of a package, as Debian policy 5.6.1 has it; apt must not read anything else in it."""
    if "=" in text:
        raise Fault(
            f"{shown(text)} names a version",
            f"write {text.split('=')[0].strip()}: the lock has the version that the mirror offers",
            code="bad-name",
        )
    if ":" in text:
        name = text.split(":")[0].strip()
        raise Fault(f"{shown(text)} names an architecture", f"write {name}", code="bad-name")
    if "/" in text:
        raise Fault(f"{shown(text)} names a suite or a file", "write only the name of the package", code="bad-name")
    if not _PACKAGE.fullmatch(text):
        raise Fault(
            f"{shown(text)} is not the name of a package: use lower-case letters, digits and + . - , at least two, "
            "with a letter or digit at the start",
            code="bad-name",
        )
    if text.endswith("-"):
        raise Fault(f"{shown(text)} ends with a hyphen: apt would remove the package", code="bad-name")
    return text


def ref(text: str) -> str:
    """A branch, a tag, or a full commit hash: allowed by git-check-ref-format(1), and not an option of any command."""
    if _COMMIT.fullmatch(text):
        return text
    is_bad = (
        not text
        or len(text) > MAX_REF_CHARACTERS
        or text == "@"
        or text[0] in "-+/"
        or text[-1] in "/."
        or any(piece in text for piece in ("..", "//", "@{"))
        or _NOT_IN_A_REF.search(text)
        or any(part.startswith(".") or part.endswith(".lock") for part in text.split("/"))
    )
    if is_bad:
        raise Fault(f"{shown(text)} is not a branch, a tag or a commit", "see git check-ref-format(1)", code="bad-ref")
    return text


def _simple_path(text: str) -> str:
    """An absolute path of the guest in its simplest form, of characters that no shell changes."""
    if not text.startswith("/"):
        example = f"/opt/{text.strip('./~') or 'x'}"
        raise Fault(f"{shown(text)} is not an absolute path of the guest", f"for example {example}", code="bad-path")
    if not _GUEST_PATH.fullmatch(text):
        raise Fault(
            f"{shown(text)} has characters that are not allowed in a path of the guest: use letters, digits and "
            ". _ + @ -",
            code="bad-path",
        )
    normal = "/" + posixpath.normpath(text).lstrip("/")
    if normal != text:
        raise Fault(f"{shown(text)} is not in its simplest form", f"write {normal}", code="bad-path")
    if len(text) > MAX_GUEST_PATH_CHARACTERS:
        raise Fault(f"{shown(text)} is longer than {MAX_GUEST_PATH_CHARACTERS} characters", code="bad-path")
    return text


def guest_path(text: str, *, kind: str = "repository") -> str:
    """A path of the guest where a checkout may be, or something else that `kind` names in messages."""
    _simple_path(text)
    for tree in FORBIDDEN_TREES:
        if text == tree or text.startswith(f"{tree}/"):
            message = f"{shown(text)} is on {tree}, where no {kind} can be"
            raise Fault(message, "for example /opt/NAME", code="bad-path")
    if text in SYSTEM_FOLDERS:
        example = "/opt/NAME" if kind == "repository" else "/staging"  # not below `text`, which may be /tmp
        raise Fault(f"{shown(text)} is a folder of the system", f"use a folder of its own: {example}", code="bad-path")
    return text


def kept_path(text: str) -> str:
    """A path of the root that a new root gets from the former one."""
    _simple_path(text)
    for tree in FORBIDDEN_TREES:
        if text == tree or text.startswith(f"{tree}/"):
            message = f"{shown(text)} is not on the root: it stays without that, or the system makes it at each boot"
            raise Fault(message, "for example /home", code="bad-path")
    if text in OF_THE_IMAGE:
        hint = "name what is yours in it: /home, /opt/NAME"
        raise Fault(f"{shown(text)} comes with the image", hint, code="bad-path")
    return text


def mount_point(text: str, kind: str = "scratch space") -> str:
    """A mount point in the guest: a path as for a checkout, and not below a later mount."""
    if text.startswith("/tmp/"):  # noqa: S108
        message = f"{shown(text)} is on /tmp, which is mounted later and would hide it"
        raise Fault(message, "for example /staging", code="bad-path")
    return guest_path(text, kind=kind)


def time_zone(text: str) -> str:
    """The name of a time zone, as in the IANA time zone database: Europe/Berlin. The guest checks that it exists."""
    if len(text) > MAX_ZONE_CHARACTERS or not _ZONE.fullmatch(text):
        message = f"{shown(text)} is not the name of a time zone"
        raise Fault(message, "for example Europe/Berlin or UTC", code="bad-name")
    return text


def vagrant_box(text: str) -> str:
    """The name of an added box, as Vagrant has it: NAME, or OWNER/NAME."""
    if not _BOX.fullmatch(text):
        raise Fault(
            f"{shown(text)} cannot be the name of an added box: use letters, digits and . _ - , with a letter or digit "
            "at the start, at most 63; one slash may separate the owner from the name",
            code="bad-name",
        )
    return text


def digest(text: str) -> str:
    """A digest: `sha256:` and 64 hex digits."""
    if _DIGEST.fullmatch(text):
        return text
    hint = None
    if _BARE_DIGEST.fullmatch(text):
        hint = f"write sha256:{text.lower()}"
    elif _LOOSE_DIGEST.fullmatch(text):
        hint = f"write {text.lower()}"
    raise Fault(f"{shown(text)} is not a digest: write sha256: and 64 lower-case hex digits", hint, code="bad-digest")

"""What a name, a path, a package or a ref of a spec must look like. Each rule returns the value or raises a Fault."""

from __future__ import annotations

import posixpath
import re

from kimbox.spec.nodes import Fault, shown

#: Longest ref: in a mirror it is a file name, with room for `.lock` after it.
MAX_REF = 250

#: Longest name that device-mapper takes (DM_NAME_LEN less its end), the prefix and a suffix such as -real included.
MAX_DM_NAME = 127 - len("-real")

#: Beginnings and parts of LV names that LVM keeps for itself (lvm(8), VALID NAMES).
RESERVED_LV_PREFIXES = ("snapshot", "pvmove")
RESERVED_LV_PARTS = (
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog", "_pmspare", "_rimage",
    "_rmeta", "_tdata", "_tmeta", "_tpool", "_vdata", "_vorigin", "_wcorig",
)  # fmt: skip

#: Entries of /dev that a volume group of the same name would collide with.
DEV_NAMES = frozenset({
    "block", "bus", "char", "console", "core", "cpu", "disk", "dri", "fd", "full", "fuse", "hpet", "input", "kmsg",
    "kvm", "log", "loop-control", "mapper", "mem", "mqueue", "net", "null", "port", "ppp", "pts", "ptmx", "ram",
    "random", "rfkill", "rtc", "shm", "snapshot", "snd", "stderr", "stdin", "stdout", "tty", "urandom", "vfio",
    "vhost-net", "virtio-ports", "zero", "vda", "vdb", "sda", "sdb",
})  # fmt: skip

#: Guest folders that are no place for a checkout or a mount: what is there is not on root, or is not ours.
FORBIDDEN_TREES = ("/proc", "/sys", "/dev", "/run", "/boot", "/persistent")

#: Guest folders that hold other things than one checkout or mount: it may be inside, but not be them.
SYSTEM_FOLDERS = frozenset({
    "/", "/bin", "/etc", "/home", "/home/vagrant", "/lib", "/lib64", "/media", "/mnt", "/opt", "/root", "/sbin",
    "/srv", "/tmp", "/usr", "/usr/bin", "/usr/include", "/usr/lib", "/usr/local", "/usr/local/bin",  # noqa: S108
    "/usr/local/lib", "/usr/local/sbin", "/usr/local/share", "/usr/local/src", "/usr/sbin", "/usr/share",
    "/usr/src", "/var", "/var/cache", "/var/lib", "/var/log", "/var/tmp",  # noqa: S108
})  # fmt: skip

_BOX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}(/[A-Za-z0-9][A-Za-z0-9._-]{0,62})?")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LVM_NAME = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*")
_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_STEP = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,127}")
_GUEST_PATH = re.compile(r"/[A-Za-z0-9._+@/-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NOT_IN_A_LABEL = re.compile(r"[^a-z0-9]+")
_NOT_IN_A_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]")
_BARE_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_LOOSE_DIGEST = re.compile(r"sha256:[0-9a-fA-F]{64}")


def box_name(text: str) -> str:
    """A label of RFC 1123, because it becomes the host name of the guest."""
    if _LABEL.fullmatch(text):
        return text
    slug = _NOT_IN_A_LABEL.sub("-", text.lower()).strip("-")[:63].strip("-")
    raise Fault(
        f"{shown(text)} cannot be the name of a box: lower-case letters, digits and hyphens, at most 63, with a letter "
        "or digit at both ends",
        f"for example {slug}" if slug else None,
    )


def volume_group(text: str) -> str:
    """The name of a volume group as lvm(8) allows it."""
    _lvm_name(text, "a volume group")
    if text in DEV_NAMES:
        raise Fault(f"{shown(text)} cannot be the name of a volume group: /dev/{text} is something else")
    return text


def volume_name(text: str) -> str:
    """The name of a logical volume as lvm(8) allows it."""
    _lvm_name(text, "a volume")
    for prefix in RESERVED_LV_PREFIXES:
        if text.startswith(prefix):
            raise Fault(f"{shown(text)} cannot be the name of a volume: LVM keeps names that start with {prefix}")
    for part in RESERVED_LV_PARTS:
        if part in text:
            raise Fault(f"{shown(text)} cannot be the name of a volume: LVM keeps names that hold {part}")
    return text


def _lvm_name(text: str, what: str) -> None:
    if text in (".", "..") or not _LVM_NAME.fullmatch(text):
        raise Fault(
            f"{shown(text)} cannot be the name of {what}: letters, digits and + _ . - , not starting with a hyphen"
        )
    if len(text) > MAX_DM_NAME:
        raise Fault(f"{shown(text)} is too long for the name of {what}: at most {MAX_DM_NAME} characters")


def repository_name(text: str) -> str:
    """Name of a repository: it becomes a folder, a mirror and a word in messages."""
    if not _REPOSITORY.fullmatch(text):
        raise Fault(
            f"{shown(text)} cannot be the name of a repository: lower-case letters, digits and hyphens, at most 63, "
            "not starting with a hyphen"
        )
    return text


def step_name(text: str) -> str:
    """Name of a provision step: it becomes a file name in the guest."""
    if not _STEP.fullmatch(text):
        raise Fault(
            f"{shown(text)} cannot be the name of a step: lower-case letters, digits and . _ - , at most 63, starting "
            "with a letter or digit"
        )
    return text


def package(text: str) -> str:
    """Name of a package, per Debian policy 5.6.1; nothing that apt reads in another way."""
    if "=" in text:
        raise Fault(
            f"{shown(text)} names a version",
            f"write {text.split('=')[0].strip()}: a version is what the mirror has when the image is built",
        )
    if ":" in text:
        raise Fault(f"{shown(text)} names an architecture", f"write {text.split(':')[0].strip()}")
    if "/" in text:
        raise Fault(f"{shown(text)} names a suite or a file", "write the name of the package alone")
    if not _PACKAGE.fullmatch(text):
        raise Fault(
            f"{shown(text)} is not the name of a package: lower-case letters, digits and + . - , at least two, "
            "starting with a letter or digit"
        )
    if text.endswith("-"):
        raise Fault(f"{shown(text)} ends in a hyphen, which apt reads as: remove it")
    return text


def ref(text: str) -> str:
    """A branch, a tag, or a whole commit: what git-check-ref-format(1) allows and no command takes for an option."""
    if _COMMIT.fullmatch(text):
        return text
    bad = (
        not text
        or len(text) > MAX_REF
        or text == "@"
        or text[0] in "-+/"
        or text[-1] in "/."
        or any(piece in text for piece in ("..", "//", "@{"))
        or _NOT_IN_A_REF.search(text)
        or any(part.startswith(".") or part.endswith(".lock") for part in text.split("/"))
    )
    if bad:
        raise Fault(f"{shown(text)} is not a branch, a tag or a commit", "git check-ref-format(1) has the rules")
    return text


def guest_path(text: str, *, what: str = "repository") -> str:
    """Where a checkout, or another thing that is `what`, may lie in the guest."""
    if not text.startswith("/"):
        raise Fault(
            f"{shown(text)} is not an absolute path of the guest", f"for example /opt/{text.strip('./~') or 'x'}"
        )
    if not _GUEST_PATH.fullmatch(text):
        raise Fault(
            f"{shown(text)} holds characters that a path of the guest may not: only letters, digits and . _ + @ -"
        )
    normal = "/" + posixpath.normpath(text).lstrip("/")
    if normal != text:
        raise Fault(f"{shown(text)} is not in its simplest form", f"write {normal}")
    if len(text) > 255:
        raise Fault(f"{shown(text)} is longer than 255 characters")
    for tree in FORBIDDEN_TREES:
        if text == tree or text.startswith(f"{tree}/"):
            raise Fault(f"{shown(text)} is on {tree}, where no {what} can be", "for example /opt/NAME")
    if text in SYSTEM_FOLDERS:
        raise Fault(
            f"{shown(text)} is a folder of the system", f"choose a folder of its own, such as {text.rstrip('/')}/NAME"
        )
    return text


def mount_point(text: str) -> str:
    """Where scratch space may be mounted in the guest: as a checkout, but nothing that is mounted later may hide it."""
    if text.startswith("/tmp/"):  # noqa: S108
        raise Fault(f"{shown(text)} is on /tmp, which is mounted after it", "for example /staging")
    return guest_path(text, what="scratch space")


def vagrant_box(text: str) -> str:
    """Name of a box in the shelf, as Vagrant's users write them: NAME, or OWNER/NAME."""
    if not _BOX.fullmatch(text):
        raise Fault(
            f"{shown(text)} cannot be the name of an added box: letters, digits and . _ - , starting with a letter or "
            "digit, at most 63, and at most one slash between two such parts"
        )
    return text


def digest(text: str) -> str:
    """`sha256:` and 64 hex digits."""
    if _DIGEST.fullmatch(text):
        return text
    hint = None
    if _BARE_DIGEST.fullmatch(text):
        hint = f"write sha256:{text.lower()}"
    elif _LOOSE_DIGEST.fullmatch(text):
        hint = f"write {text.lower()}"
    raise Fault(f"{shown(text)} is not a digest: sha256: and 64 lower-case hex digits", hint)

"""Files of users that look like secrets: each save lists them. A save for others is refused while they are there."""

from __future__ import annotations

from pathlib import Path

import makesaved
import pytest
import saveverbs
from clirun import Kimbox
from clirun import kimbox as kimbox
from clirun import world as world
from saveverbs import refused, saved

from kimbox.image.sanitize import user_secrets
from kimbox.image.saves import secrets
from kimbox.machine.folder import Machine

machine, store = saveverbs.machine, saveverbs.store  # fixtures

KEY = b"-----BEGIN RSA PRIVATE KEY-----\n" + b"A" * 64 + b"\n-----END RSA PRIVATE KEY-----\n"
TOKEN = b"token: ghp_" + b"a1B2" * 9 + b"\n"

#: Files with secrets, by their volume and path, and files that only look so.
SECRETS = {
    "root/home/.netrc": b"machine example.org login me password secret\n",
    "root/home/mine.pem": KEY,
    "persistent/token.txt": TOKEN,
    "root/home/.aws/credentials": b"[default]\n",
}
OTHERS = {"root/home/about.txt": b"how to make a PRIVATE KEY\n", "root/usr/lib/example.pem": KEY}
PATHS = ["/home/.aws/credentials", "/home/.netrc", "/home/mine.pem", "/persistent/token.txt"]


def test_secrets_are_listed(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """By name and by the first bytes, with their paths in the guest. Files of packages are not."""
    assert [] == saved(kimbox, store)["secrets"]
    makesaved.write(machine, world, SECRETS | OTHERS)
    found = saved(kimbox, store)["secrets"]
    assert PATHS == [one["path"] for one in found]
    assert "private key" == next(one["kind"] for one in found if one["path"] == "/home/mine.pem")


def test_a_save_for_others_needs_each_to_be_named(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """It is refused, and nothing is in the store, until each is removed or named. A folder names what is in it."""
    assert [] == saved(kimbox, store, "--share")["secrets"]
    makesaved.write(machine, world, SECRETS)
    before = sorted(store.rglob("*"))
    problem = refused(kimbox, "save", "tiny", str(store), "--share")
    assert "secret-found" == problem["code"]
    assert all(path in problem["fields"]["files"] for path in PATHS)
    assert "ghp_" not in str(problem)
    problem = refused(kimbox, "save", "tiny", str(store), "--share", "--share-secret", "/home")
    assert "/persistent/token.txt: token" == problem["fields"]["files"]
    assert "secret-found" == refused(kimbox, "save", "tiny", str(store), "--share", "--share-secret", "/hom")["code"]
    assert before == sorted(store.rglob("*"))
    named = ["--share-secret", "/home/", "--share-secret", "/persistent/token.txt"]
    assert PATHS == [one["path"] for one in saved(kimbox, store, "--share", *named)["secrets"]]


def test_named_files_hide_no_other(
    kimbox: Kimbox, machine: Machine, store: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in the box can write as many of them as are listed. Its names are no text of a shell in a hint."""
    monkeypatch.setattr(secrets, "MAX_FOUND", 2)
    makesaved.write(machine, world, SECRETS | {"persistent/$(id)/.netrc": b"machine example.org password secret\n"})
    problem = refused(kimbox, "save", "tiny", str(store), "--share", "--share-secret", "/home")
    assert "/persistent/$(id)/.netrc" in problem["fields"]["files"]
    assert "--share-secret '/persistent/$(id)/.netrc'" in problem["hint"]


def test_secrets_in_the_snapshot_are_found(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """A box that keeps its changes has them in the snapshot of root alone."""
    makesaved.into_snapshot(machine, world, {"root/home/.netrc": b"machine example.org password secret\n"})
    assert ["/home/.netrc"] == [one["path"] for one in saved(kimbox, store)["secrets"]]


def test_the_options(kimbox: Kimbox, machine: Machine, store: Path) -> None:
    """--share-secret without --share is a mistake."""
    assert "usage" == refused(kimbox, "save", "tiny", str(store), "--share-secret", "/home")["code"]


@pytest.mark.parametrize(
    ("path", "head", "kind"),
    [
        (b"/home/a/.netrc", b"", "passwords (.netrc)"),
        (b"/home/a/.docker/config.json", b'{"auths": {"x": {"auth": "YTpi"}}}', "password (Docker)"),
        (b"/home/a/.docker/config.json", b'{"credsStore": "pass"}', None),
        (b"/home/a/x", b"AKIA" + b"A" * 16, "token"),
        (b"/home/a/x", b"AKIA" + b"A" * 15, None),
        (b"/home/a/x", b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "private key"),
        (b"/home/a/x", b"-----BEGIN PUBLIC KEY-----\n", None),
        (b"/home/a/x", b'{"type": "service_account", "private_key_id": "1"}', "token"),
        (b"/etc/wireguard/wg0.conf", b"[Interface]\n", "shared secret"),
        (b"/home/a/.netrc.md", b"how to", None),
    ],
)
def test_kinds(path: bytes, head: bytes, kind: str | None) -> None:
    """The name decides, or the first bytes."""
    assert kind == user_secrets.kind_of(path, lambda: head)

"""Submodules on another host than their repository: without the user's credentials, and not in the user's network."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import makebox
import makeserver
import pytest
from refused import refused
from webfolder import Quiet, answering

from kimbox.lock.git import foreign, submodules
from kimbox.lock.git.command import Answer, GitError
from kimbox.lock.git.mirror import Mirror
from kimbox.spec.model import Repository

#: Addresses that the resolver gives. 127.0.0.1 counts as public here, because the servers of the tests have it.
NAMES = {"far.example": ("127.0.0.1",), "inner.example": ("10.1.2.3",), "127.0.0.1": ("127.0.0.1",)}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user whose git and curl have credentials for every host of the tests."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "kimbox"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "GIT_CONFIG_GLOBAL",
    ):
        monkeypatch.delenv(name, raising=False)
    user, password = makeserver.USER, makeserver.PASSWORD
    helper = f"!f() {{ echo username={user}; echo password={password}; }}; f"
    (tmp_path / ".gitconfig").write_text(f'[credential]\n\thelper = "{helper}"\n[safe]\n\tdirectory = *\n')
    (tmp_path / ".netrc").write_text(f"machine far.example login {user} password {password}\n")
    (tmp_path / "askpass").write_text(f"#!/bin/sh\necho {password}\n")
    (tmp_path / "askpass").chmod(0o755)
    monkeypatch.setenv("GIT_ASKPASS", str(tmp_path / "askpass"))
    monkeypatch.setattr(foreign, "_addresses", lambda host, _: NAMES.get(host, ()))
    monkeypatch.setattr(foreign, "_is_inner", lambda address: address.startswith("10."))
    makebox.make_repository(tmp_path / "far/inner", {"x": "inner\n"})
    return tmp_path


def code_with(home: Path, url: str) -> None:
    """Makes the repository `code` with a submodule at this URL."""
    inner = makebox.git(home / "far/inner", "rev-parse", "HEAD")
    source = home / "near/code"
    makebox.make_repository(source, {".gitmodules": f'[submodule "lib"]\n\tpath = lib\n\turl = {url}\n'})
    makebox.git(source, "update-index", "--add", "--cacheinfo", f"160000,{inner},lib")
    makebox.git(source, "commit", "-qm", "lib")


@pytest.fixture
def near(home: Path) -> Iterator[str]:
    (home / "near").mkdir()
    with makeserver.http_backend(home / "near") as url:
        yield url


def collected(near: str) -> list[str]:
    code = Mirror.of(Repository("code", f"{near}/code", False, "main", "/opt/code"))
    return list(submodules.collect(code, code.resolve("main").commit))


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


def test_a_public_one_is_fetched_from_the_address_that_was_checked(home: Path, near: str) -> None:
    """No resolver knows this name: git connects to the address that kimbox has checked."""
    with makeserver.http_backend(home / "far") as far:
        code_with(home, f"http://far.example:{port_of(far)}/inner")
        assert ["lib"] == collected(near)


def test_the_users_credentials_stay_here(home: Path, near: str) -> None:
    """Neither a helper, nor ~/.netrc, nor GIT_ASKPASS is used; for a repository of the spec they are."""
    with makeserver.http_backend(home / "far", password=True) as far:
        code_with(home, f"http://far.example:{port_of(far)}/inner")
        with refused(GitError, "repository-unreachable") as caught:
            collected(near)
        assert "git has none of your credentials for another host than 127.0.0.1" in str(caught.value.hint)
        assert makeserver.PASSWORD not in str(caught.value)
        own = Mirror.of(Repository("own", f"{far}/inner", False, "main", "/opt/own"))
        assert makebox.git(home / "far/inner", "rev-parse", "HEAD") == own.resolve("main").commit


def test_the_mirror_of_a_site_is_used(home: Path, near: str) -> None:
    """`insteadOf` is the user's choice, also of an inner address, but not with ssh keys or a password."""
    with makeserver.http_backend(home / "far") as far:
        code_with(home, "http://inner.example/inner")
        rules = f'[url "{far}/"]\n\tinsteadOf = http://inner.example/\n'
        rules += '[url "git@far.example:"]\n\tinsteadOf = http://ssh.example/\n'
        rules += '[url "https://token@far.example/"]\n\tinsteadOf = http://token.example/\n'
        with (home / ".gitconfig").open("a") as file:
            file.write(rules)
        assert ["lib"] == collected(near)
    for url in ("http://ssh.example/x", "http://token.example/x"):
        with foreign.access(url, "h.example") as access:
            assert "insteadOf" not in (Path(access.env["HOME"]) / ".gitconfig").read_text()


def test_a_name_of_the_private_network_is_refused(home: Path, near: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before git asks the server. Where the repository around it is in a private network too, it is allowed."""
    code_with(home, "http://inner.example:9/inner")
    with refused(GitError, "bad-submodule") as caught:
        collected(near)
    assert "http://inner.example:9/inner is on this machine or in a private network (10.1.2.3)" in str(caught.value)
    monkeypatch.setitem(NAMES, "127.0.0.1", ("10.9.9.9",))
    with refused(GitError, "repository-unreachable"):
        collected(near)


def redirecting(target: str) -> contextlib.AbstractContextManager[int]:
    """A server that sends every request to another server. Yields its port."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            self.send_response(301)
            self.send_header("Location", target + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return answering(Handler)


def test_a_redirect_into_the_private_network_is_refused(home: Path, near: str) -> None:
    """Nothing of that repository is used. Other redirects, such as that of a renamed repository, are followed."""
    with makeserver.http_backend(home / "far") as far, redirecting(f"http://localhost:{port_of(far)}") as port:
        code_with(home, f"http://far.example:{port}/inner")
        for _ in range(2):
            with refused(GitError, "bad-submodule") as caught:
                collected(near)
            assert "http://localhost:" in str(caught.value)
    with refused(GitError, "bad-submodule"):
        foreign.check_redirect(
            Answer(0, b"", "warning: redirecting to http://[::1\n"), "https://far.example/a", "h.org"
        )
    renamed = Answer(0, b"", "warning: redirecting to https://other.example/x/\nFrom https://other.example/x/\n")
    foreign.check_redirect(renamed, "https://far.example/a", "h.example")


def test_the_way_there_is_that_of_the_user(home: Path) -> None:
    """Proxy and certificates are kept, in a private file; all other settings and variables are not."""
    more = '[http]\n\tproxy = "http://u:p\\"w@proxy:3128"\n\tsslCAInfo = ~/ca.pem\n\textraHeader = "X-Token: secret"\n'
    more += '[http "https://far.example"]\n\tsslCert = ~/client.pem\n\tsslVerify = true\n'
    with (home / ".gitconfig").open("a") as file:
        file.write(more)
    with foreign.access("https://far.example/a", "h.example") as access:
        config = Path(access.env["HOME"]) / ".gitconfig"
        assert 0o600 == config.stat().st_mode & 0o777
        settings = dict(re.findall(r"^\t(\w+) = (.*)$", config.read_text(), re.MULTILINE))
    assert {
        "emptyauth": '"false"', "proxy": '"http://u:p\\"w@proxy:3128"', "sslcainfo": f'"{home}/ca.pem"',
        "sslverify": '"true"',
    } == settings  # fmt: skip
    assert not config.exists()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", False), ("2606:4700::1111", False), ("198.18.0.7", False), ("127.0.0.1", True),
        ("10.0.0.1", True), ("169.254.169.254", True), ("100.64.0.1", True), ("::1", True),
        ("fe80::1", True), ("fd00::1", True), ("::ffff:192.168.1.1", True),
    ],
)  # fmt: skip
def test_addresses_of_private_networks(address: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that proxies give in place of the real ones are none."""
    monkeypatch.undo()
    assert expected is foreign._is_inner(address)


def test_a_submodule_of_a_submodule_is_judged_by_the_spec() -> None:
    """A foreign host cannot lead to the user's ssh keys on that host."""
    top, parent = "https://h.example/a", "https://far.example/b"
    assert submodules.is_other_host(parent, top)
    with refused(Exception, "bad-url"):
        submodules.absolute_url("ssh://git@far.example/c", parent, top)
    assert "https://far.example/c" == submodules.absolute_url("../c", parent, top)

"""Every transport of a spec, with real servers: pinned, moved and missing refs, and the user's credentials."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import makebox
import makeserver
import pytest
from refused import refused

from kimbox.lock.git import submodules
from kimbox.lock.git.command import GitError, GoneError
from kimbox.lock.git.history import rewritten
from kimbox.lock.git.mirror import Mirror
from kimbox.spec import urls
from kimbox.spec.model import Repository


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A KIMBOX_HOME, and a git configuration of the user that the tests write."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "kimbox"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "GIT_SSL_CAINFO"):
        monkeypatch.delenv(name, raising=False)
    configure(tmp_path)
    return tmp_path


def configure(folder: Path, more: str = "") -> None:
    (folder / "config").write_text(f"[user]\n\tname = a\n\temail = a@example.org\n[safe]\n\tdirectory = *\n{more}")


@pytest.fixture(params=["file", "git", "ssh", "http", "https"])
def served(request: pytest.FixtureRequest, home: Path) -> Iterator[str]:
    """The URL of the folder `served`, for each transport."""
    folder = home / "served"
    folder.mkdir()
    scheme = request.param
    if scheme == "file":
        yield f"file://{folder}"
    elif scheme == "git":
        with makeserver.daemon(folder) as url:
            yield url
    elif scheme == "ssh":
        with makeserver.sshd(home / "sshd", folder) as (url, command):
            configure(home, f'[core]\n\tsshCommand = "{command}"\n')
            yield url
    else:
        certificate = makeserver.certificate(home) if scheme == "https" else None
        configure(home, f"[http]\n\tsslCAInfo = {home}/cert.pem\n" if certificate else "")
        with makeserver.http_backend(folder, certificate=certificate) as url:
            yield url


def mirror_of(url: str, ref: str = "main") -> Mirror:
    """Returns the mirror of a repository. Checks that a spec may contain the URL."""
    urls.repository(url)
    return Mirror.of(Repository("code", url, False, ref, "/opt/code"))


def test_a_repository_is_pinned_and_followed(home: Path, served: str) -> None:
    """Branch, tag and commit are resolved. Moved tags, force-pushed branches and missing commits are reported."""
    source = home / "served/code"
    first = makebox.make_repository(source)
    makebox.git(source, "tag", "-a", "v1", "-m", "one")
    code = mirror_of(f"{served}/code")
    tagged = code.resolve("v1")
    assert (first, first, "refs/tags/v1") == (code.resolve("main").commit, tagged.commit, tagged.ref)
    second = makebox.commit(source, {"a": "two\n"})
    assert second == code.resolve("main").commit
    makebox.git(source, "tag", "-f", "-a", "v1", "-m", "two")
    assert f"the tag v1 was moved from {first} to {second}" in str(rewritten(code, "v1", first, code.resolve("v1")))
    makebox.git(source, "reset", "-q", "--hard", first)
    assert "the branch main was force-pushed" in str(rewritten(code, "main", second, code.resolve("main")))
    makebox.git(source, "tag", "-d", "v1")
    makebox.git(source, "reflog", "expire", "--expire=now", "--all")
    makebox.git(source, "gc", "-q", "--prune=now")
    fresh = Mirror("code", code.url, False, code.path.with_name("fresh.git"))
    with refused(GoneError, "commit-not-found", commit=second):
        fresh.ensure(second)
    with refused(GoneError, "ref-not-found", ref="v1"):
        code.resolve("v1")


def test_a_relative_submodule_has_the_same_transport(home: Path, served: str) -> None:
    """Its URL is relative to that of the outer repository."""
    inner = makebox.make_repository(home / "served/inner", {"x": "inner\n"})
    source = home / "served/code"
    makebox.make_repository(source, {".gitmodules": '[submodule "lib"]\n\tpath = lib\n\turl = ../inner\n'})
    makebox.git(source, "update-index", "--add", "--cacheinfo", f"160000,{inner},lib")
    makebox.git(source, "commit", "-qm", "lib")
    code = mirror_of(f"{served}/code")
    collected = submodules.collect(code, code.resolve("main").commit)
    assert {"lib": (f"{served}/inner", inner)} == {path: (s.url, s.commit) for path, s in collected.items()}


def test_a_missing_repository_is_named(served: str) -> None:
    """The error has the name and the URL of the repository."""
    with pytest.raises(GitError, match=r"repository code \(.*/missing\) cannot be read"):
        mirror_of(f"{served}/missing").resolve("main")


def test_the_users_credential_helper_is_used(home: Path) -> None:
    """kimbox has no prompt for a password and does not store it. Without a helper, the hint names the solution."""
    commit = makebox.make_repository(home / "served/code")
    with makeserver.http_backend(home / "served", password=True) as url:
        with pytest.raises(GitError, match="cannot be read") as refused:
            mirror_of(f"{url}/code").resolve("main")
        assert "same credentials" in str(refused.value.hint)
        helper = f"!f() {{ echo username={makeserver.USER}; echo password={makeserver.PASSWORD}; }}; f"
        configure(home, f'[credential]\n\thelper = "{helper}"\n')
        code = mirror_of(f"{url}/code")
        assert commit == code.resolve("main").commit
    kept = b"".join(file.read_bytes() for file in code.path.rglob("*") if file.is_file())
    assert makeserver.PASSWORD.encode() not in kept


def test_an_untrusted_certificate_is_refused(home: Path) -> None:
    """git refuses it, and no setting of a spec permits it."""
    makebox.make_repository(home / "served/code")
    certificate = makeserver.certificate(home)
    with (
        makeserver.http_backend(home / "served", certificate=certificate) as url,
        pytest.raises(GitError, match=r"certificate"),
    ):
        mirror_of(f"{url}/code").resolve("main")


def test_a_host_key_that_changed_is_refused(home: Path) -> None:
    """The hint names the check of the host key."""
    (home / "served").mkdir()
    makebox.make_repository(home / "served/code")
    with makeserver.sshd(home / "sshd", home / "served") as (url, command):
        configure(home, f'[core]\n\tsshCommand = "{command}"\n')
        (home / "sshd/known_hosts").write_text("")
        with pytest.raises(GitError, match="Host key verification failed") as refused:
            mirror_of(f"{url}/code").resolve("main")
        assert "once with ssh, check its host key" in str(refused.value.hint)

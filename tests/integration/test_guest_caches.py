"""What a guest keeps of what it fetched, on /persistent, and what it throws away."""

from __future__ import annotations

import os
from pathlib import Path

import fakeguest
import pytest
from fakeguest import FakeGuest, box_with, needs_namespace, provision, step

from kimbox.spec.model import Mode

guest = fakeguest.guest  # a fixture

#: A pip that writes down what it is asked for: `wheel` makes a file, `install` wants one.
PIP = """#!/bin/sh
echo "$*" >>/tmp/pip.log
case $1 in
wheel) [ ! -e /tmp/offline ] && mkdir -p "$3" && touch "$3/thing.whl" ;;
install) [ "$2 $3" = "--no-index --find-links" ] && [ -e "$4/thing.whl" ] ;;
esac
"""


@pytest.fixture
def pip(guest: FakeGuest) -> FakeGuest:
    """A guest with such a pip."""
    guest.path("/persistent/cache/wheels").mkdir(parents=True)
    guest.path("/usr/local/bin").mkdir(exist_ok=True)
    guest.path("/usr/local/bin/pip3").write_text(PIP)
    guest.path("/usr/local/bin/pip3").chmod(0o755)
    return guest


def pip_cached(guest: FakeGuest, *words: str) -> list[str]:
    """Runs pip-cached; returns the commands that pip was run with."""
    guest.path("/tmp/pip.log").write_text("")
    done = guest.run("env", "PATH=/usr/local/bin:/usr/bin:/bin", "/usr/lib/kimbox/pip-cached", *words)
    assert done.code == 0, done.stderr
    return [line.split()[0] for line in guest.path("/tmp/pip.log").read_text().splitlines()]


@needs_namespace
def test_wheels_are_fetched_once(pip: FakeGuest) -> None:
    """The second time, and without a network, they come from /persistent; other requirements are fetched anew."""
    pip.path("/tmp/reqs").write_text("a==1\n")
    words = ("pip3", "-r", "/tmp/reqs")
    assert pip_cached(pip, *words) == ["wheel", "install"]
    pip.path("/tmp/offline").touch()
    assert pip_cached(pip, *words) == ["install"]
    pip.path("/tmp/offline").unlink()
    pip.path("/tmp/reqs").write_text("a==2\n")
    assert pip_cached(pip, *words) == ["wheel", "install"]


@needs_namespace
def test_what_was_fetched_and_will_not_do_is_fetched_anew(pip: FakeGuest) -> None:
    """And a download that was cut short is never taken for a whole one."""
    assert pip_cached(pip, "pip3", "a") == ["wheel", "install"]
    (wheels,) = pip.path("/persistent/cache/wheels").iterdir()
    (wheels / "thing.whl").unlink()
    wheels.with_name(f"{wheels.name}.new").mkdir()
    assert pip_cached(pip, "pip3", "a") == ["install", "wheel", "install"]
    assert [path.name for path in pip.path("/persistent/cache/wheels").iterdir()] == [wheels.name]


@needs_namespace
def test_pip_cached_says_how_it_is_used(pip: FakeGuest) -> None:
    """With --help on stdout, without words as an error."""
    assert "pip-cached PIP ARGUMENT" in pip.run("/usr/lib/kimbox/pip-cached", "--help").stdout
    assert pip.run("/usr/lib/kimbox/pip-cached").code == 2


@needs_namespace
def test_steps_know_the_caches(guest: FakeGuest, tmp_path: Path) -> None:
    """Root and vagrant have their own: root installs nothing that another account could have put there."""
    script = 'echo "$KIMBOX_CACHE $PIP_CACHE_DIR"; test -d "$KIMBOX_CACHE/wheels" && test -d "$PIP_CACHE_DIR"'
    steps = (step("root", script), step("user", script, mode=Mode.USER))
    assert provision(guest, tmp_path, box_with(tmp_path, *steps)) == 0, guest.log()
    for cache in ("/persistent/cache", "/persistent/cache/vagrant"):
        assert f"{cache} {cache}/pip\n" in guest.log()
    for folder in ("archives", "lists"):
        assert guest.path(f"/persistent/cache/apt/{folder}/partial").is_dir()


@needs_namespace
def test_what_was_not_installed_is_removed_after_success(guest: FakeGuest, tmp_path: Path) -> None:
    """Debian packages by what dpkg wrote down on this root, an epoch included; all else by its age."""
    for folder in ("apt/archives", "wheels/new", "wheels/old", "pip/http"):
        guest.path(f"/persistent/cache/{folder}").mkdir(parents=True)
    kept = ["apt/archives/a_1%3a2-1_amd64.deb", "apt/archives/b_2_all.deb", "wheels/new/x.whl", "pip/http/new"]
    gone = ["apt/archives/a_1%3a1-1_amd64.deb", "apt/archives/c_1_all.deb", "wheels/old/x.whl", "pip/http/old"]
    for name in (*kept, *gone):
        guest.path(f"/persistent/cache/{name}").write_text("x")
    for name in ("wheels/old", "pip/http/old"):
        os.utime(guest.path(f"/persistent/cache/{name}"), (1, 1))
    guest.path("/var/log").mkdir()
    guest.path("/var/log/dpkg.log").write_text(
        "2026-01-01 00:00:00 startup archives unpack\n"
        "2026-01-01 00:00:00 install a:amd64 <none> 1:2-1\n"
        "2026-01-01 00:00:00 upgrade b:all 1 2\n"
        "2026-01-01 00:00:00 status installed c:all 1\n"
    )
    assert provision(guest, tmp_path, box_with(tmp_path, step("s", "true"))) == 0
    assert [name for name in (*kept, *gone) if guest.path(f"/persistent/cache/{name}").exists()] == kept
    assert guest.path("/persistent/cache/ready").exists()


@needs_namespace
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("program", ["make-room", "prune-caches"])
@pytest.mark.parametrize("link", ["pip", "wheels", "wheels/x.new"])
def test_root_follows_no_link_of_another_account(guest: FakeGuest, program: str, link: str) -> None:
    """A link in the cache of `vagrant` leads to the credentials: nothing of them is removed. The cache is emptied."""
    secrets = {guest.path(f"/persistent/{name}") for name in ("secure/key", "secure/pip/key", "secure/x.new/key")}
    for secret in secrets:
        secret.parent.mkdir(parents=True, exist_ok=True)
        secret.write_text("secret")
        os.utime(secret, (1, 1))
        os.utime(secret.parent, (1, 1))
    cache = guest.path("/persistent/cache/vagrant")
    for name in ("pip/http/a", "wheels/new/b.whl"):
        (cache / name).parent.mkdir(parents=True)
        (cache / name).write_text("x")
    if "/" not in link:
        (cache / link).rename(cache / "before")
    (cache / link).symlink_to("/persistent/secure")
    for path in (cache, *cache.rglob("*")):
        os.utime(path, (1, 1), follow_symlinks=False)
        os.chown(path, 1000, 1000, follow_symlinks=False)
    guest.root.chmod(0o755)
    for parent in guest.root.parents[:4]:
        parent.chmod(parent.stat().st_mode | 0o011)
    assert 0 == guest.run(f"/usr/lib/kimbox/{program}").code
    assert secrets == {path for path in secrets if path.exists()}
    assert not [path for path in cache.rglob("*") if path.is_file() and path.parts[-3] in {"pip", "wheels"} - {link}]


@needs_namespace
def test_root_gives_no_file_away(guest: FakeGuest) -> None:
    """make-caches changes the owner of one folder. Its content can have hard links to files of root."""
    log = guest.path("/tmp/chown.log")
    guest.path("/usr/local/sbin/chown").write_text('#!/bin/sh\necho "$*" >>/tmp/chown.log\n')
    assert 0 == guest.run("env", "PATH=/usr/local/sbin:/usr/bin:/bin", "/usr/lib/kimbox/make-caches").code
    assert "vagrant: /persistent/cache/vagrant\n" == log.read_text()
    assert guest.path("/persistent/cache/vagrant/pip").is_dir()

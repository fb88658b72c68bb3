"""What a sealed box uses of /persistent after root in it has changed that: only what the host and the image know."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import attrs
import fakeguest
import makebox
import pytest
from fakeguest import FakeGuest, box_with, delivery, needs_namespace, provision, step

from kimbox.render import sealing
from kimbox.spec.model import Outbound, Role, Secure

guest = fakeguest.guest  # a fixture

pytestmark = needs_namespace

#: The rules that the host has.
ROLE = Role("worker", None, (8888,), (Outbound("10.0.2.9", 22),), (), ())
POLICY = Secure("a.org", (ROLE,), (), False, (), (), False)

#: The mirror of the setup repository that the host has sent.
MIRROR = "/persistent/git/setup.git"

#: A line that root in the box adds to what it wants to run at the next start.
EVIL = "touch /tmp/evil\n"


@attrs.frozen
class Sealed:
    """A sealed box, and the digest of its manifest."""

    guest: FakeGuest
    digest: str
    box: fakeguest.Box

    def give(self, name: str, data: str | bytes) -> None:
        """Writes a credential as the host passes it."""
        path = self.guest.path(f"/run/credentials/@system/kimbox.{name}")
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    def distrust(self) -> str:
        """Runs `distrust`. Returns the reason, or nothing if it succeeds."""
        done = self.guest.run("/usr/lib/kimbox/distrust")
        assert done.ok == (done.stdout == ""), done.stdout + done.stderr
        return done.stdout.strip()

    def start(self) -> int:
        """Starts the box on a new root, as far as the network and provisioning. Returns the status of provisiond."""
        self.guest.new_root()
        assert self.distrust() == ""
        self.guest.events()
        return self.guest.run("/usr/lib/kimbox/provisiond").code

    def is_entered(self) -> bool:
        """Whether something of the intruder ran."""
        return self.guest.path("/tmp/evil").exists()


@pytest.fixture
def sealed(guest: FakeGuest, tmp_path: Path) -> Sealed:
    """A box that was provisioned and sealed. The host knows its manifest, and passes role and rules."""
    makebox.make_repository(tmp_path / "setup", {"setup": "#!/bin/sh\necho set up\n", "secure": "#!/bin/sh\ntrue\n"})
    makebox.make_repository(tmp_path / "code", {"a": "one\n"})
    box = box_with(tmp_path, step("s", "echo step\n"))
    assert provision(guest, tmp_path, box) == 0
    guest.secure()
    made = Sealed(guest, guest.path("/persistent/kimbox/current").readlink().name, box)
    made.give("manifests", f"{made.digest}\n")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in sealing.role_files(POLICY, ROLE, "a.org").items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    made.give("role", packed.getvalue())
    return made


def test_a_box_that_nobody_entered(sealed: Sealed) -> None:
    """It is provisioned and sealed as before, and its user name stays. Guest and host compute the same digest."""
    assert sealed.start() == 0
    said = sealed.guest.events()[-1]
    assert (said["event"], said["manifest"], said["role"]) == ("sealed", sealed.digest, "worker")
    answers = sealed.guest.path("/persistent/secure/answers.env").read_text()
    assert answers == "KIMBOX_ROLE='worker'\nKIMBOX_SITE='a.org'\nKIMBOX_USERNAME='me'\n"
    assert "10.0.2.9 22 tcp" in sealed.guest.path("/persistent/secure/outbound").read_text()
    assert "KIMBOX_INBOUND='8888'" in sealed.guest.path("/persistent/secure/policy.env").read_text()


def test_nothing_of_persistent_runs(sealed: Sealed) -> None:
    """Programs, answers, rules and links that root in the box left are replaced before anything follows them."""
    persistent = sealed.guest.path("/persistent")
    for name in ("runsetup", "runsecure", "secure/answers.env", "secure/policy.env"):
        with (persistent / name).open("a") as file:
            file.write(EVIL)
    (persistent / "secure/operator_keys").write_text("ssh-ed25519 AAAA evil\n")
    (persistent / "secure/outbound").write_text("203.0.113.9 443 tcp\n")
    shutil.rmtree(persistent / "log")
    (persistent / "log").symlink_to("/etc")
    (persistent / "status.json").unlink(missing_ok=True)
    (persistent / "status.json").symlink_to("/tmp/evil")
    (persistent / "cache/apt").rename(persistent / "cache/other")
    (persistent / "cache/apt").symlink_to("/etc")
    os.mkfifo(persistent / "git/setup.git/objects/fifo")
    assert sealed.start() == 0
    assert not sealed.is_entered()
    assert sealed.guest.events()[-1]["event"] == "sealed"
    for name in ("runsetup", "runsecure"):
        text = (persistent / name).read_text()
        assert text == f'#!/bin/sh\nexec /usr/lib/kimbox/{name} "$@"\n'
    assert (persistent / "secure/operator_keys").read_text() == ""
    assert "203.0.113.9" not in (persistent / "secure/outbound").read_text()
    assert not (persistent / "log").is_symlink()
    assert not (persistent / "cache/apt").is_symlink()


@pytest.mark.parametrize("file", ["manifest.env", "steps/01-s/script", "steps/01-s/env", "new"])
def test_a_changed_manifest_is_not_used(sealed: Sealed, file: str) -> None:
    """The box does not seal itself, because it has no other manifest that the host knows."""
    manifest = sealed.guest.path(f"/persistent/kimbox/manifests/{sealed.digest}")
    with (manifest / file).open("a") as changed:
        changed.write(EVIL)
    sealed.guest.new_root()
    assert "no manifest whose digest the host knows" in sealed.distrust()
    assert not manifest.exists()


def test_another_manifest_is_not_used(sealed: Sealed, tmp_path: Path) -> None:
    """Neither a whole one that root in the box made, nor one that follows a branch, nor a folder under a known name."""
    other, tar = delivery(tmp_path, attrs.evolve(sealed.box, provision=(step("s", EVIL),)))
    assert sealed.guest.run("/usr/lib/kimbox/receive", other, stdin=str(tar)).ok
    manifests = sealed.guest.path("/persistent/kimbox/manifests")
    shutil.copytree(manifests / other, manifests / f"{sealed.digest}-{'1' * 40}")
    (manifests / ".hidden").mkdir()
    assert sealed.start() == 0
    assert [path.name for path in manifests.iterdir()] == [sealed.digest]
    assert (sealed.guest.events()[-1]["manifest"], sealed.is_entered()) == (sealed.digest, False)
    shutil.rmtree(manifests / sealed.digest)
    (manifests / sealed.digest).symlink_to("/persistent/evil")
    sealed.guest.new_root()
    assert "no manifest whose digest the host knows" in sealed.distrust()


def test_a_delivery_replaces_what_was_changed(sealed: Sealed, tmp_path: Path) -> None:
    """Without a manifest that the host knows, the box takes the one on the disk. git runs nothing of a mirror."""
    marks = sealed.guest.path("/persistent/kimbox")
    for path in (marks / "manifests").iterdir():
        shutil.rmtree(path)
    mirror = sealed.guest.path("/persistent/git/setup.git")
    # git fetches an object that is missing from a promisor, by a program of the configuration.
    missing = mirror / "refs/kimbox" / ("1" * 40)
    missing.write_text("1" * 40 + "\n")
    (mirror / "config").write_text(
        "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n\tpartialClone = evil\n"
        f'[remote "evil"]\n\turl = /tmp\n\tpromisor = true\n\tuploadpack = "{EVIL.strip()} #"\n'
    )
    sealed.give("delivery", "described")
    sealed.guest.new_root()
    assert sealed.distrust() == ""
    commit = makebox.commit(tmp_path / "setup", {"setup": "#!/bin/sh\necho again\n"})
    digest, tar = delivery(tmp_path, sealed.box)
    assert not sealed.guest.run("/usr/lib/kimbox/receive", digest, stdin=str(tar)).ok
    assert not sealed.is_entered()
    missing.unlink()
    assert sealed.guest.run("/usr/lib/kimbox/receive", digest, stdin=str(tar)).ok
    assert (mirror / "refs/kimbox" / commit).exists()


def test_a_mode_is_part_of_a_manifest(sealed: Sealed) -> None:
    """A file that became executable is a change."""
    sealed.guest.path(f"/persistent/kimbox/manifests/{sealed.digest}/steps/01-s/env").chmod(0o755)
    assert "no manifest" in sealed.distrust()


def test_a_changed_mirror_is_not_used(sealed: Sealed) -> None:
    """Hooks and configuration of a mirror have no effect. A changed object is found, and the box fails, closed."""
    mirror = sealed.guest.path(MIRROR)
    (mirror / "hooks").mkdir(exist_ok=True)
    for hook in ("post-checkout", "reference-transaction", "pre-auto-gc"):
        (mirror / "hooks" / hook).write_text(f"#!/bin/sh\n{EVIL}")
        (mirror / "hooks" / hook).chmod(0o755)
    with (mirror / "config").open("a") as file:
        file.write(f'[core]\n\tfsmonitor = "{EVIL.strip()}"\n[uploadpack]\n\tpackObjectsHook = "{EVIL.strip()}"\n')
    (mirror / "objects/info").mkdir(exist_ok=True)
    (mirror / "objects/info/alternates").write_text("/tmp/objects\n")
    assert sealed.start() == 0
    assert not sealed.is_entered()
    assert sorted(path.name for path in mirror.iterdir() if path.name != "packed-refs") == [
        "HEAD", "config", "objects", "refs",
    ]  # fmt: skip
    assert "fsmonitor" not in (mirror / "config").read_text()
    assert not (mirror / "objects/info").exists()
    assert sealed.guest.run("git", f"--git-dir={MIRROR}", "rev-parse", "--is-bare-repository").stdout == "true\n"
    borrowed = sealed.guest.path("/usr/local/src/setup/.git/objects/info/alternates").read_text()
    assert borrowed == "/var/lib/kimbox/git/setup.git/objects\n"
    # The objects under the pinned ids become those of another commit with another `setup`.
    path = sealed.guest.path("/tmp/forged")
    forge = f"""set -e
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a HOME=/tmp
        git clone -q /persistent/git/setup.git /tmp/forged 2>/dev/null || git init -q /tmp/forged
        cd /tmp/forged
        pinned=$(ls /persistent/git/setup.git/refs/kimbox)
        git -c protocol.file.allow=always fetch -q /persistent/git/setup.git refs/kimbox/$pinned
        blob=$(git rev-parse FETCH_HEAD:setup)
        cd /persistent/git/setup.git
        for pack in objects/pack/*.pack; do
            [ -e "$pack" ] || continue
            mv "$pack" /tmp/pack
            rm -f objects/pack/*
            git unpack-objects -q </tmp/pack
        done
        printf '#!/bin/sh\\n%s' '{EVIL}' >/tmp/setup
        evil=$(git hash-object -w /tmp/setup)
        chmod u+w objects/$(echo "$blob" | cut -c1-2)/*
        cp -f objects/$(echo "$evil" | cut -c1-2)/$(echo "$evil" | cut -c3-) \\
            objects/$(echo "$blob" | cut -c1-2)/$(echo "$blob" | cut -c3-)"""
    done = sealed.guest.run("sh", "-c", forge)
    assert done.ok, done.stderr
    assert path.exists()
    assert sealed.start() == 1
    said = sealed.guest.events()[-1]
    assert (said["event"], said["kind"], sealed.is_entered()) == ("failed", "repository", False)
    assert "an object is missing, or was changed" in said["reason"]


def test_a_cache_has_what_it_had(sealed: Sealed) -> None:
    """What was added, or has another content, is removed. Without a list that the host knows, nothing stays."""
    cache = sealed.guest.path("/persistent/cache")
    (cache / "apt/archives/a_1_all.deb").write_text("good")
    (cache / "wheels/k").mkdir()
    (cache / "wheels/k/a b.whl").write_text("good")
    (cache / "apt/archives/changed_1_all.deb").write_text("good")
    taken = sealed.guest.run("sh", "-c", LIST)
    assert taken.ok, taken.stderr
    sealed.give("caches", taken.stdout)
    (cache / "apt/archives/changed_1_all.deb").write_text("evil")
    (cache / "apt/archives/new_1_all.deb").write_text("evil")
    (cache / "wheels/k/new.whl").write_text("evil")
    (cache / "apt/archives/new: OK").write_text("evil")
    assert sealed.guest.run("/usr/lib/kimbox/check-caches").ok
    files = sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())
    assert files == ["apt/archives/a_1_all.deb", "ready", "wheels/k/a b.whl"]
    sealed.give("caches", "0" * 64)
    assert sealed.guest.run("/usr/lib/kimbox/check-caches").ok
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    assert (cache / "apt/lists/partial").is_dir()


#: Writes the list of the caches as `secure` does, and prints its digest.
LIST = """. /usr/lib/kimbox/sealed.sh
eval "$(sed -n '/^list_caches()/,/^}/p; /^print_caches()/,/^}/p' /usr/lib/kimbox/secure)"
list_caches "$cache_list" && print_caches "$cache_list" | sed "s/.*='//; s/'//"
"""


def test_unsealing_keeps_only_host_keys(sealed: Sealed) -> None:
    """Of /persistent nothing stays that the open box would run. The host sends its manifest again."""
    persistent = sealed.guest.path("/persistent")
    (persistent / "ssh").mkdir(exist_ok=True)
    (persistent / "ssh/ssh_host_ed25519_key").write_text("key")
    (persistent / "ssh/link").symlink_to("/etc/shadow")
    (persistent / "runsetup").write_text(EVIL)
    (persistent / "data").write_text("of the role")
    assert sealed.guest.run("/usr/lib/kimbox/unseal").ok
    assert sorted(path.name for path in persistent.iterdir()) == ["log", "runsecure", "runsetup", "ssh"]
    assert [path.name for path in (persistent / "ssh").iterdir()] == ["ssh_host_ed25519_key"]
    assert "exec /usr/lib/kimbox/runsetup" in (persistent / "runsetup").read_text()
    sealed.guest.path("/run/kimbox/closed").unlink()
    sealed.guest.new_root()
    sealed.guest.events()
    assert sealed.guest.run("/usr/lib/kimbox/provisiond").ok
    assert sealed.guest.events()[-1]["event"] == "waiting"

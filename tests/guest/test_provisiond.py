"""A box that provisions itself at each boot, without network or host, also after a manifest that breaks it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import windows
from conftest import Kimbox, until
from webfolder import serving

from kimbox import run
from kimbox.drivers.qemu import qmp
from kimbox.guest.events import Event
from kimbox.lock.lockfile import read_lock
from kimbox.machine.folder import Machine

pytestmark = pytest.mark.guest

NAME = "phoenix"

SPEC = """
boot: resnap
resnap: {keep: nothing}
image: {packages: [python3-pip, xauth]}
repositories:
  setup: {url: ./setup, timeout: 20s}
"""

#: Steps that install a Debian package and a wheel in the usual way.
INSTALLS = """
provision:
  - name: packages
    script: |
      rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*
      echo "deb [trusted=yes] http://10.0.2.2:PORT/apt ./" >/etc/apt/sources.list
      apt-get -q update
      apt-get -q -y install kimbox-probe
  - name: wheels
    script: |
      export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1
      export PIP_INDEX_URL=http://10.0.2.2:PORT/simple PIP_TRUSTED_HOST=10.0.2.2
      /usr/lib/kimbox/pip-cached pip3 kimbox-wheel==1.0
probes:
  - {description: both are installed, script: 'kimbox-probe && python3 -c "import kimbox_wheel"', timeout: 10s}
"""

#: A `setup` that stops the box: with a crash at first, then with a reboot and exit status 0.
STOPS_THE_BOX = """#!/bin/sh
[ ! -e /persistent/crashed ] || exec systemctl reboot
touch /persistent/crashed
sync
echo b >/proc/sysrq-trigger
sleep 60
"""

GOOD = "#!/bin/sh\necho all is well\n"

#: `setup` scripts that break a box, with the reported reason. Each needs two boots: one is in every run, all in soak.
BAD = {
    "hangs": ("sleep 1000", "setup did not end within 20 s"),
    "stops sshd": ("systemctl stop ssh.service; mv /usr/sbin/sshd /usr/sbin/gone", "sshd no longer listens on port 22"),
    "fills both file systems": (
        """for at in "" /persistent; do
            fallocate -l "$(($(df --output=avail -B1 "$at/" | tail -n 1) - 1))" "$at/junk"
            cat /dev/zero >"$at/more"
        done
        exit 28""",
        "setup ended with status 28",
    ),
}


def make_packages(folder: Path) -> None:
    """Makes a flat apt repository with one package, and a package index with one wheel."""
    tree, apt, index = folder / "tree", folder / "apt", folder / "simple/kimbox-wheel"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/bin").mkdir(parents=True)
    apt.mkdir()
    index.mkdir(parents=True)
    control = "Package: kimbox-probe\nVersion: 1:2.0-1\nArchitecture: all\nMaintainer: t <t@example.org>\n"
    (tree / "DEBIAN/control").write_text(f"{control}Description: a probe\n")
    (tree / "usr/bin/kimbox-probe").write_text("#!/bin/sh\nexit 0\n")
    (tree / "usr/bin/kimbox-probe").chmod(0o755)
    deb = apt / "kimbox-probe_2.0-1_all.deb"
    run.run(["dpkg-deb", "--root-owner-group", "--build", tree, deb])
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    packages = f"{control}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\nDescription: a probe\n"
    (apt / "Packages").write_text(packages)
    listed = f"{hashlib.sha256(packages.encode()).hexdigest()} {len(packages)} Packages"
    (apt / "Release").write_text(f"Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {listed}\n")
    info = "kimbox_wheel-1.0.dist-info"
    with zipfile.ZipFile(index / "kimbox_wheel-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("kimbox_wheel.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: kimbox-wheel\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def write_setup(kimbox: Kimbox, script: str) -> None:
    """Writes this `setup` into the folder of the setup repository."""
    (kimbox.folder / "setup").mkdir(exist_ok=True)
    (kimbox.folder / "setup/setup").write_text(script)
    (kimbox.folder / "setup/setup").chmod(0o755)


def reset(machine: Machine) -> list[Event]:
    """Resets the box, as after a power failure. Returns its events until it is ready or has failed."""
    before = machine.boot_events()[-1].boot

    def answered() -> bool:
        events = machine.boot_events()
        return events[-1].boot != before and any(event.name in ("ready", "failed") for event in events)

    qmp.execute(machine.qmp_socket, "system_reset")
    until("the box is ready or has failed", answered)
    return [event for event in machine.boot_events() if event.name not in ("step", "box")]


@pytest.fixture(scope="module")
def box(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kimbox]:
    """A ready box for all tests of this file. The server of its packages has stopped."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp(NAME))
    make_packages(kimbox.folder)
    write_setup(kimbox, GOOD)
    with serving(kimbox.folder) as port:
        kimbox.spec(NAME, SPEC + INSTALLS.replace("PORT", str(port)))
        kimbox("up")
    yield kimbox
    kimbox("destroy", "-y")


def test_a_new_root_is_provisioned_without_network_or_host(box: Kimbox) -> None:
    """Without a network, servers and a key to log in, the box becomes ready with its package and its wheel."""
    machine = box.machine(NAME)
    box.sh(NAME, "sudo touch /gone; sync")
    assert "kimbox-probe_1%3a2.0-1_all.deb" in box.sh(NAME, "ls /persistent/cache/apt/archives")
    key = machine.key.rename(machine.key.with_name("put-away"))
    qmp.execute(machine.qmp_socket, "set_link", {"name": "net0", "up": False})
    events = reset(machine)
    qmp.execute(machine.qmp_socket, "set_link", {"name": "net0", "up": True})
    key.rename(machine.key)
    assert [event.name for event in events][-2:] == ["provisioning", "ready"], machine.provision_log.read_text()
    assert events[-1].text("manifest") == events[-2].text("manifest") == box.json("status")["manifest"]
    provenance = json.loads(box.sh(NAME, "cat /etc/kimbox/box.json"))
    assert provenance == box.json("status")["provenance"]
    assert (provenance["provisioned"]["by"], provenance["provisioned"]["boot_mode"]) == ("resnap", "resnap")
    assert provenance["image"] == machine.record().image
    assert box.sh(NAME, ". /etc/kimbox/box.env && echo $KIMBOX_BOX $KIMBOX_LOCK_DIGEST").split() == [
        NAME,
        read_lock(box.folder / "kimbox.lock").digest,
    ]
    assert box.sh(NAME, "ls /gone 2>/dev/null || kimbox-probe && python3 -c 'import kimbox_wheel; print(1)'") == "1\n"
    installed = box.json("diff")["installed"]["old"]
    assert installed == {"added": {"kimbox-probe": "1:2.0-1"}, "removed": {}, "moved": {}}
    history = [line.split("\t") for line in box.sh(NAME, "cat /persistent/log/history").splitlines()]
    assert [(row[2], row[4], row[6]) for row in history if row[3] == "provision"] == 2 * [
        ("resnap", "packages", "0"),
        ("resnap", "wheels", "0"),
    ]


def test_windows_of_programs(box: Kimbox) -> None:
    """sshd of a box with xauth offers a display, and a program opens a window there. Without a screen, it runs, too."""
    words = [sys.executable, "-m", "kimbox", "ssh"]
    env = {"KIMBOX_HOME": str(box.home), "PYTHONPATH": os.pathsep.join(sys.path), "DISPLAY": ":9"}
    with windows.x_server(box.folder) as server:
        program = ["-X", NAME, "--", "python3", "-"]
        drawn = run.run([*words, *program], env=env | server, cwd=box.folder, input=windows.DRAW, timeout_s=300)
    assert windows.DRAWN == drawn.stdout
    trusted = run.run([*words, NAME, "--", "-Y", "echo $DISPLAY; xauth list"], env=env, cwd=box.folder, timeout_s=300)
    display, cookie = trusted.stdout.splitlines()
    assert "localhost:10.0" == display
    assert ":10  MIT-MAGIC-COOKIE-1  " in cookie
    assert "in\n" == run.run([*words, "-X", NAME, "--", "echo in"], env=env, cwd=box.folder, timeout_s=300).stdout


def test_by_hand(box: Kimbox) -> None:
    """`runsetup URL` in the box runs the branch `stable` of a working copy. Without URL, it runs the pinned commit."""
    for script in ("runsetup", "runsecure"):
        assert box.sh(NAME, f"/persistent/{script} --help").startswith(script)
    git = "git -c user.name=t -c user.email=t@example.org -c init.defaultBranch=stable"
    commit = f"{git} init -q && echo echo by hand >>setup && {git} add setup && {git} commit -qm x"
    box.sh(NAME, f"cp -r /usr/local/src/setup ~/mine && cd ~/mine && rm -rf .git && {commit}")
    assert "by hand" in box.sh(NAME, "sudo /persistent/runsetup file:///home/vagrant/mine")
    assert "UNPINNED    setup" in box("status").stdout
    assert "by hand" not in box.sh(NAME, "sudo /persistent/runsetup")
    assert "UNPINNED" not in box("status").stdout
    assert "was not secured" in box.sh(NAME, "sudo /persistent/runsecure")


def test_working_on_the_setup(box: Kimbox) -> None:
    """A dirty work tree runs, in part or completely, and is reported.

    A work tree that fails is not used at the next boot. `up` returns to the pinned commit.
    """
    machine, work = box.machine(NAME), box.folder / "work"
    git = ["git", "-C", work, "-c", "user.name=t", "-c", "user.email=t@example.org"]
    box.spec(NAME, SPEC)
    box("up")
    work.mkdir()
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "nothing"]):
        run.run([*git, *words])
    (work / "setup").write_text("#!/bin/sh\n. /etc/kimbox/box.env\necho unpinned is $KIMBOX_UNPINNED >/var/tmp/env\n")
    (work / "setup").chmod(0o755)
    lock = (box.folder / "kimbox.lock").read_bytes()
    pinned = box.json("status")["manifest"]
    printed = box("provision", "--repo", "setup=work", "--only", "setup").stdout
    assert "UNPINNED    setup" in printed
    assert "PARTIAL     only setup" in printed
    assert box.sh(NAME, "cat /var/tmp/env") == "unpinned is setup\n"
    box("provision", "--repo", "setup=work")
    provenance = box.json("status")["provenance"]
    assert (provenance["unpinned"], provenance["provisioned"]["part"]) == (["setup"], None)
    assert provenance == json.loads(box.sh(NAME, "cat /etc/kimbox/box.json"))
    (work / "setup").write_text("#!/bin/sh\nexit 3\n")
    assert box.json("provision", "--repo", "setup=work", check=False)["exit_code"] == 4
    assert reset(machine)[-1].text("manifest") == provenance["manifest"] != pinned
    assert (box.folder / "kimbox.lock").read_bytes() == lock
    box("up")
    status = box.json("status")
    assert (status["manifest"], status["provenance"]["unpinned"], status["wanted"]) == (pinned, [], None)


def check_fallback(box: Kimbox, wanted: str, good: str, reason: str) -> None:
    """Checks that `up` and `status` report the running manifest, the wanted one and the reason. The box answers."""
    failed = box.json("up", check=False)
    assert failed["exit_code"] == 4
    for words in (wanted[:12], good[:12], reason, "last good one"):
        assert words in failed["message"]
    status = box.json("status")
    assert (status["state"], status["manifest"], status["wanted"]) == ("ready", good, wanted)
    assert reason in status["reason"]
    assert f"wanted      {wanted}, which failed" in box("status").stdout
    assert box.sh(NAME, "ls /junk 2>/dev/null || echo well") == "well\n"


@pytest.mark.parametrize(
    "kinds",
    [["fills both file systems"], pytest.param([*BAD], marks=pytest.mark.soak)],
    ids=["one", "all"],
)
def test_bad_pins_do_not_brick_the_box(box: Kimbox, kinds: list[str]) -> None:
    """If a setup breaks the box, its state is `failed` and it keeps running. The next boot uses the good manifest."""
    machine = box.machine(NAME)
    box.spec(NAME, SPEC)
    box("up")
    good = box.json("status")["manifest"]
    for what in kinds:
        script, reason = BAD[what]
        write_setup(box, f"#!/bin/sh\n{script}\n")
        failed = box.json("up", check=False)
        assert (failed["exit_code"], reason in failed["message"]) == (4, True), (what, failed["message"])
        status = box.json("status")
        assert (status["state"], status["wanted"]) == ("failed", None), what
        bad = status["manifest"]
        events = reset(machine)
        assert [event.name for event in events][-3:] == ["fallback", "provisioning", "ready"], (what, events)
        assert (events[-1].text("manifest"), events[-1].text("wanted")) == (good, bad), what
        check_fallback(box, bad, good, reason)
    assert box.sh(NAME, "df --output=avail / /persistent | tail -n 2").split()[1] == "0"
    box.sh(NAME, "sudo rm /persistent/junk /persistent/more")

    write_setup(box, STOPS_THE_BOX)
    down = box.json("up", check=False)
    assert (down["exit_code"], "went down twice" in down["message"]) == (4, True), down["message"]
    check_fallback(box, box.json("status")["wanted"], good, "went down twice")

    write_setup(box, f"{GOOD}echo repaired\n")
    box("up")
    status = box.json("status")
    assert (status["state"], status["wanted"]) == ("ready", None)
    assert status["manifest"] != good


@pytest.mark.soak
def test_following_a_branch(box: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The box uses a pushed commit. After a bad commit it returns to the last good one. It boots offline too."""
    machine, work = box.machine(NAME), box.folder / "branch"
    git = ["git", "-C", work, "-c", "user.name=t", "-c", "user.email=t@example.org"]
    work.mkdir()
    run.run([*git, "init", "-q", "-b", "dev"])

    def push(script: str) -> str:
        (work / "setup").write_text(f"#!/bin/sh\n{script}\n")
        (work / "setup").chmod(0o755)
        for words in (["add", "-A"], ["commit", "-qm", "x"], ["update-server-info"]):
            run.run([*git, *words])
        return run.run([*git, "rev-parse", "HEAD"]).stdout.strip()

    pinned = push("echo pinned")
    with serving(box.folder) as port:  # the guest uses another address than the host
        (work.parent / "user").mkdir()
        (work.parent / "user/.gitconfig").write_text(
            f'[url "http://127.0.0.1:{port}/"]\n\tinsteadOf = http://10.0.2.2:{port}/\n'
        )
        monkeypatch.setenv("HOME", str(work.parent / "user"))
        url = f"http://10.0.2.2:{port}/branch/.git"
        box.spec(NAME, SPEC.replace("url: ./setup", f"url: '{url}', ref: dev"))
        box("lock")
        box("up", "--follow")
        status = box.json("status")
        assert (status["follow"]["commit"], status["provenance"]["unpinned"]) == (pinned, [])
        good = push("echo pushed >/var/tmp/pushed")
        assert reset(machine)[-1].name == "ready"
        assert box.sh(NAME, "cat /var/tmp/pushed") == "pushed\n"
        status = box.json("status")
        assert (status["follow"]["status"], status["follow"]["commit"]) == ("newest", good)
        assert status["provenance"]["unpinned"] == ["setup"]
        bad = push("exit 3")
        assert reset(machine)[-1].name == "failed"
        assert reset(machine)[-1].name == "ready"
        follow = box.json("status")["follow"]
        assert (follow["status"], follow["newest"], follow["commit"]) == ("failed", bad, good)
        assert f"newest      {bad[:12]} failed: setup setup: setup ended with status 3" in box("status").stdout
    assert reset(machine)[-1].name == "ready"
    follow = box.json("status")["follow"]
    assert follow["commit"] == good
    assert follow["status"] in ("failed", "unreachable")

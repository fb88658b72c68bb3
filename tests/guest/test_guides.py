"""The steps of the first guides of Vagrant, Lima and Multipass, as docs/coming-from.md translates them.

`script/test soak` runs it. Each row of the tables is tried here, or names the test that shows it.
"""

from __future__ import annotations

import contextlib
import re
import urllib.request
from collections.abc import Iterator

import pytest
from conftest import Kimbox, state_of, until
from guides import Guide, session, shell
from servers import free_port

from kimbox import run

pytestmark = [pytest.mark.guest, pytest.mark.soak]

#: The port of the host in the spec of the document.
GUIDE_PORT = 4567

#: The boxes that the tests make.
BOXES = ("web", "study", "keen", "plain", "twin")

#: Timeout until the web server of a box answers, in seconds.
ANSWER_S = 60.0

#: A box for the steps of Lima and Multipass: it has what the guides' instances have, at the sizes of the tests.
SMALL = "disk: {size: 6GiB}\nmemory: 768MiB\n"

#: Where a folder of the host is in a box.
WORK = "/home/vagrant/work"

#: Rows that another test shows: the tool's side -> a file of the tests.
VAGRANT_ELSEWHERE = {
    "`vagrant box add NAME FILE`": "integration/test_boxes.py",
    "`vagrant box list`, `remove`, `prune`": "integration/test_boxes.py",
    "`vagrant up --provider libvirt`": "guest/test_providers.py",
    "`vagrant up NAME` of several machines": "guest/test_several_boxes.py",
    "`vagrant destroy` and `vagrant up` after a change of the base box": "guest/test_rebuild.py",
    "`vagrant package`": "guest/test_providers.py",
}
LIMA_ELSEWHERE = {
    "`lima nerdctl run ...`": "guest/test_images.py",
    "`limactl start template:NAME`": "guest/test_box.py",
    "`images: [{location: ..., digest: ...}]`": "guest/test_cloud_image.py",
    "`limactl start-at-login NAME`": "guest/test_user_systemd.py",
    "`portForwards:`": "guest/test_several_boxes.py",
    "`video: {display: vnc}`": "guest/test_several_boxes.py",
    "`ssh: {forwardX11: true}`": "guest/test_provisiond.py",
    "`networks: [{lima: user-v2}]`": "guest/test_several_boxes.py",
    "`provision:`, `probes:`": "guest/test_provisiond.py",
    "`limactl disk create`": "guest/test_scratch.py",
}
MULTIPASS_ELSEWHERE = {
    "`multipass launch 24.04`, `multipass launch file://IMAGE`": "guest/test_cloud_image.py",
    "`multipass stop --all`, `multipass start --all`": "guest/test_several_boxes.py",
    "`multipass networks`, `launch --network`": "guest/test_several_boxes.py",
}


@pytest.fixture
def folder(kimbox: Kimbox) -> Iterator[Kimbox]:
    """An empty folder. The boxes that were made in it are removed."""
    yield kimbox
    for name in BOXES:
        if kimbox.machine(name).exists:
            kimbox("destroy", "-y", name)


def page(port: int) -> str:
    """The start page of the web server of a box. It starts with the rest of the system, after `ready`."""
    pages: list[str] = []

    def has_answered() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
            pages.append(answer.read().decode())
        return bool(pages)

    until("the web server", has_answered, limit_s=ANSWER_S)
    return pages[0]


def test_vagrants_guide(folder: Kimbox) -> None:
    """Its web server: a folder of the host at a port of the host; then the life of the box to its end."""
    guide, port = Guide(folder, "Vagrant"), free_port()
    serves_a_folder(guide, port)
    takes_commands_and_files(guide)
    has_snapshots(guide)
    stops_and_starts(guide, port)
    guide.check(VAGRANT_ELSEWHERE)


def serves_a_folder(guide: Guide, port: int) -> None:
    """The box of the guide, whose web server shows a folder of the host."""
    folder = guide.kimbox
    folder("init", "--name", "web")
    guide.row("`vagrant init hashicorp/bionic64`", "kimbox init")
    assert f"host: {GUIDE_PORT}" in guide.spec
    (folder.folder / "kimbox.yaml").write_text(guide.spec.replace(str(GUIDE_PORT), str(port)))
    (folder.folder / "html").mkdir()
    index = folder.folder / "html" / "index.html"
    index.write_text("first")
    folder("validate")
    guide.row("`vagrant validate`", "kimbox validate")
    folder("up")
    guide.row("`vagrant up`", "kimbox up")
    assert "first" == page(port)
    index.write_text("second")
    assert "second" == page(port)
    guide.row("`vagrant rsync`, `vagrant rsync-auto`", "mounts:")
    assert f"127.0.0.1:{port} -> 80" in folder("status").stdout
    guide.row("`vagrant port`", "kimbox status")


def takes_commands_and_files(guide: Guide) -> None:
    """Logins, commands, and files."""
    folder = guide.kimbox
    assert "42" == session(folder, "echo $((6 * 7))")
    guide.row("`vagrant ssh`", "kimbox ssh")
    assert "Linux web " in folder("exec", "--", "uname", "-a").stdout
    guide.row('`vagrant ssh -c "uname -a"`', "kimbox exec -- uname -a")
    (folder.folder / "given").write_text("of the host")
    folder("cp", "given", ":")
    assert "of the host" == folder.sh("web", "cat given")
    guide.row("`vagrant upload FILE`", "kimbox cp FILE :")
    entry = folder.folder / "ssh.conf"
    entry.write_text(folder("ssh-config").stdout)
    assert "of the host" == run.run(["ssh", "-F", entry, "kimbox-web", "cat", "given"]).stdout
    guide.row("`vagrant ssh-config`", "kimbox ssh-config")


def has_snapshots(guide: Guide) -> None:
    """A snapshot, and the way back to it."""
    folder = guide.kimbox
    folder("snapshot", "save", "before")
    folder.sh("web", "rm given")
    assert "before" in folder("snapshot", "list").stdout
    folder("snapshot", "restore", "before")
    assert "of the host" == folder.sh("web", "cat given")
    folder("snapshot", "delete", "before")
    guide.row("`vagrant snapshot save NAME`, `restore`, `delete`, `list`", *snapshot_verbs("save", "restore", "delete"))


def stops_and_starts(guide: Guide, port: int) -> None:
    """Provisioning, each way to stop and start, and the end."""
    folder = guide.kimbox
    folder.sh("web", "sudo rm /var/www/html && sudo mkdir /var/www/html")
    folder("provision", "--only", "www")
    assert "second" == page(port)
    folder("provision")
    guide.row("`vagrant provision`", "kimbox provision`", "kimbox provision --only STEP")
    folder("suspend")
    assert "suspended" == state_of("web")
    folder("resume")
    assert "second" == page(port)
    folder("halt")
    assert "halted" == state_of("web")
    guide.row("`vagrant suspend`, `resume`, `halt`", "kimbox suspend", "kimbox resume", "kimbox halt")
    folder("up")
    folder("reload")
    assert ("second", "of the host") == (page(port), folder.sh("web", "cat given"))
    guide.row("`vagrant reload`", "kimbox reload")
    folder("reload", "--boot", "resnap", "--from-scratch")
    assert ("second", "gone\n") == (page(port), folder.sh("web", "test -e given || echo gone"))
    guide.row(
        "`vagrant up --provision`, `vagrant reload --provision`",
        "kimbox up",
        "kimbox reload`",
        "kimbox reload --boot resnap --from-scratch",
    )
    assert "web" in folder("list").stdout
    guide.row("`vagrant status`, `global-status`", "kimbox status", "kimbox list")
    folder("lock", "--update", "packages", "--dry-run")
    folder("up", "--rebuild")
    guide.row("`vagrant box outdated`, `vagrant box update`", "kimbox lock --update packages --dry-run", "up --rebuild")
    folder("halt", "--force")
    guide.row("`vagrant halt --force`", "kimbox halt --force")
    folder("destroy", "-y")
    assert not folder.machine("web").exists
    guide.row("`vagrant destroy -f`", "kimbox destroy -y")


def snapshot_verbs(*verbs: str) -> list[str]:
    return [f"kimbox snapshot {verb} NAME" for verb in verbs]


def test_limas_guide(folder: Kimbox) -> None:
    """An instance of a template with a name, its files, and what is shared with the host."""
    guide = Guide(folder, "Lima")
    is_an_instance_of_a_template(guide)
    shares_a_folder(guide)
    has_a_way_back(guide)
    guide.check(LIMA_ELSEWHERE)


def is_an_instance_of_a_template(guide: Guide) -> None:
    """An instance with a name and sizes, its commands and files."""
    folder = guide.kimbox
    assert "openkim-dev" in folder("init", "--help").stdout
    guide.row("`limactl start --list-templates`", "kimbox init --help")
    folder("init", "--name", "study")
    folder("up", "--set", "cpus=2", "--set", "memory=768MiB")
    assert "2\n" == folder("exec", "study", "--", "nproc").stdout
    start = "`limactl start --name NAME --cpus 4 --memory 8 template:TEMPLATE`"
    guide.row(start, "kimbox init --name NAME", "kimbox up --set cpus=4 --set memory=8GiB")
    guide.row("`limactl create`, `limactl start`", "kimbox up")
    assert "Linux study " in folder("exec", "--", "uname", "-a").stdout
    guide.row("`lima uname -a`, `limactl shell NAME uname -a`", "kimbox exec -- uname -a")
    assert "/home/vagrant" == session(folder, "pwd", "study")
    guide.row("`limactl shell NAME`", "kimbox ssh NAME")
    assert "/tmp\n" == folder.sh("study", "cd /tmp && pwd")
    guide.row("`limactl shell --workdir DIR NAME COMMAND`", "kimbox exec NAME -- sh -c 'cd DIR && COMMAND'")
    (folder.folder / "data").mkdir()
    (folder.folder / "data" / "a").write_text("of a folder")
    folder("cp", "data", "study:/tmp")
    assert "of a folder" == folder.sh("study", "cat /tmp/data/a")
    guide.row("`limactl copy FILE NAME:/tmp`", "kimbox cp FILE NAME:/tmp")
    assert ["study"] == [box["name"] for box in folder.json("list")["boxes"]]
    guide.row("`limactl list`, `limactl list --json`", "kimbox list", "kimbox list --json")
    assert "kimbox-study" in folder("ssh-config").stdout
    guide.row("`limactl show-ssh`", "kimbox ssh-config")


def shares_a_folder(guide: Guide) -> None:
    """The spec gets a folder of the host and a step."""
    folder = guide.kimbox
    spec = folder.folder / "kimbox.yaml"
    work = folder.folder / "work"
    work.mkdir()
    spec.write_text(
        f"{spec.read_text()}\nmounts: [{{location: {work}, mount_point: {WORK}, writable: true}}]\n"
        "provision: [{name: greet, script: 'echo hello >/etc/greeting'}]\n"
    )
    folder("validate", spec)
    guide.row("`limactl validate FILE`", "kimbox validate FILE")
    folder("reload")
    assert "hello\n" == folder.sh("study", f"cat /etc/greeting; echo of the guest >{WORK}/b")
    assert "of the guest\n" == (work / "b").read_text()
    guide.row("`limactl edit`", "kimbox reload")
    guide.row("`limactl start --mount-writable`", "writable: true")
    guide.row('`mounts: [{location: "~/work", writable: true}]`', "writable: true")
    folder("halt")
    folder("up")
    assert "hello\n" == folder.sh("study", "cat /etc/greeting")
    guide.row("`limactl stop`, `limactl restart`", "kimbox halt", "kimbox reload")


def has_a_way_back(guide: Guide) -> None:
    """Snapshots, a new root, the end, and a clone."""
    folder = guide.kimbox
    folder("snapshot", "save", "before", "study")
    guide.row("`limactl snapshot create`", "kimbox snapshot save NAME")
    folder("reload", "--boot", "resnap", "--from-scratch")
    assert "gone hello\n" == folder.sh("study", "test -e /tmp/data || echo gone $(cat /etc/greeting)")
    guide.row("`limactl factory-reset`", "kimbox reload --boot resnap --from-scratch")
    folder("halt", "--force")
    folder("destroy", "-y")
    guide.row("`limactl stop --force`, `limactl delete --force`", "kimbox halt --force", "kimbox destroy -y")
    guide.row("`limactl delete`", "kimbox destroy")
    folder("prune", "--dry-run")
    guide.row("`limactl prune`", "kimbox prune")

    folder.spec("plain", SMALL)
    folder("clone", "plain", "twin")
    assert "twin\n" == folder("exec", "twin", "--", "hostname").stdout
    guide.row("`limactl clone`", "kimbox clone BOX NAME")


def test_multipass_guide(folder: Kimbox) -> None:
    """An instance with a name and sizes, its files in both directions, and its end with a way back."""
    guide = Guide(folder, "Multipass")
    has_a_size(guide)
    exchanges_files(guide)
    mounts_a_folder(guide)
    changes_and_returns(guide)
    comes_back_after_its_end(guide)
    guide.check(MULTIPASS_ELSEWHERE)


def has_a_size(guide: Guide) -> None:
    """An instance with a name, processors, memory and disk."""
    folder = guide.kimbox
    assert "openkim-dev" in folder("init", "--help").stdout
    guide.row("`multipass find`", "kimbox init --help")
    folder("init", "--name", "keen")
    spec = folder.folder / "kimbox.yaml"
    assert "size: 6GiB" in spec.read_text()
    spec.write_text(spec.read_text().replace("size: 6GiB", "size: 7GiB"))
    folder("up", "--set", "cpus=2", "--set", "memory=768MiB")
    assert str(7 << 30) in folder.sh("keen", "cat /proc/partitions; lsblk -bdno SIZE")
    launch = "`multipass launch --name NAME --cpus 4 --memory 8G --disk 20G`"
    guide.row(launch, "kimbox init --name NAME", "disk: {size: 20GiB}", "kimbox up --set cpus=4 --set memory=8GiB")
    guide.row("the instance `primary`")
    assert "keen" in folder("list").stdout
    assert "keen" in folder("status", "keen").stdout
    guide.row("`multipass list`, `multipass info NAME`", "kimbox list", "kimbox status NAME")
    assert "vagrant" == session(folder, "id -un", "keen")
    guide.row("`multipass shell NAME`", "kimbox ssh NAME")
    assert "Linux keen " in folder("exec", "keen", "--", "uname", "-a").stdout
    guide.row("`multipass exec NAME -- uname -a`", "kimbox exec NAME -- uname -a")


def exchanges_files(guide: Guide) -> None:
    """Files and folders in both directions, and an alias of the shell."""
    folder = guide.kimbox
    (folder.folder / "given").write_text("of the host")
    folder("cp", "given", "keen:")
    guide.row("`multipass transfer FILE NAME:`", "kimbox cp FILE NAME:")
    (folder.folder / "data").mkdir()
    (folder.folder / "data" / "a").write_text("of a folder")
    folder("cp", "data", "keen:/tmp")
    folder.sh("keen", "cat given /tmp/data/a >both")
    folder("cp", "keen:both", ".")
    assert "of the hostof a folder" == (folder.folder / "both").read_text()
    transfers = "`multipass transfer --recursive DIR NAME:PATH`, `multipass transfer NAME:FILE .`"
    guide.row(transfers, "kimbox cp DIR NAME:PATH", "kimbox cp NAME:FILE .")
    alias = "shopt -s expand_aliases\nalias show='kimbox exec keen -- cat'\nshow both\n"
    assert "of the hostof a folder" == shell(folder, alias)
    guide.row("`multipass alias NAME:COMMAND`", "kimbox exec NAME -- lmp")


def mounts_a_folder(guide: Guide) -> None:
    """A folder of the host comes and goes."""
    folder = guide.kimbox
    spec = folder.folder / "kimbox.yaml"
    plain = spec.read_text()
    spec.write_text(f"{plain}mounts: [{{location: data, mount_point: /srv/data, writable: true}}]\n")
    folder("reload", "keen")
    assert "of a folder" == folder.sh("keen", "cat /srv/data/a; sudo sh -c 'echo of the guest >/srv/data/b'")
    assert "of the guest\n" == (folder.folder / "data" / "b").read_text()
    guide.row("`multipass mount DIR NAME:PATH`", "mounts: [{location: DIR, mount_point: PATH, writable: true}]")
    guide.row("`multipass launch --mount DIR:PATH`", "mounts:")
    spec.write_text(plain)
    folder("reload", "keen")
    assert "0\n" == folder.sh("keen", "ls /srv/data 2>/dev/null | wc -l")
    guide.row("`multipass umount NAME`", "kimbox reload NAME")


def changes_and_returns(guide: Guide) -> None:
    """Another size, each way to stop and start, and a snapshot."""
    folder = guide.kimbox
    folder("up", "--set", "cpus=1", "--set", "memory=768MiB")
    folder("reload")
    assert "1\n" == folder("exec", "keen", "--", "nproc").stdout
    guide.row("`multipass set local.NAME.cpus=4`", "kimbox up --set cpus=4", "kimbox reload")
    folder("suspend")
    folder("up")
    folder("halt")
    folder("up")
    folder("snapshot", "save", "before", "keen")
    folder.sh("keen", "rm both; sync")
    folder("snapshot", "restore", "before", "keen")
    assert "of the hostof a folder" == folder.sh("keen", "cat both")
    verbs = ("kimbox halt", "kimbox up", "kimbox reload", "kimbox suspend")
    guide.row("`multipass stop`, `start`, `restart`, `suspend`", *verbs)
    guide.row("`multipass snapshot`, `restore`", *snapshot_verbs("save", "restore"))
    assert re.fullmatch(r"kimbox [0-9.]+\S*\n", folder("--version").stdout)
    guide.row("`multipass get`, `multipass version`", "kimbox status", "kimbox --version")


def comes_back_after_its_end(guide: Guide) -> None:
    """It is saved, removed and made again of the save. Then a clone."""
    folder = guide.kimbox
    folder("stop", "keen")
    folder("destroy", "-y", "keen")
    folder("start", folder.home / "saves" / "keen")
    assert "of the hostof a folder" == folder.sh("keen", "cat both")
    folder("halt", "--force", "keen")
    guide.row("`multipass stop --force NAME`", "kimbox halt --force NAME")
    folder("destroy", "-y", "keen")
    guide.row("`multipass delete NAME`, `multipass recover NAME`", "kimbox stop NAME", "kimbox start FOLDER")
    guide.row("`multipass delete NAME && multipass purge`", "kimbox destroy NAME")
    folder.spec("plain", SMALL)
    folder("clone", "plain", "twin")
    guide.row("`multipass clone NAME`", "kimbox clone BOX NAME")
    guide.row("`--cloud-init FILE`", "provision:")

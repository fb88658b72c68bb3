"""kimbox render: Ruby and Vagrant read the files, and real git writes the bundles."""

from __future__ import annotations

import json
import re
import tarfile
import urllib.parse
from pathlib import Path
from typing import Any

import attrs
import clirun
import makebox
import pytest
from clirun import Kimbox
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kimbox import paths, run
from kimbox.guest.delivery import write_tar
from kimbox.image.formats import boxwriter
from kimbox.render.vagrantfile import Delivery, VagrantMachine, render_vagrantfile, ruby_literal
from kimbox.spec.model import Forward, Mount, Scratch

kimbox, world = clirun.kimbox, clirun.world  # fixtures

SUPPORT = Path(__file__).resolve().parents[1] / "support"

#: Any text that a Vagrantfile may hold.
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t'\"\\#{}`"), min_size=1)

#: Paths that Ruby's File.expand_path replaces by a home folder.
HOMES = ("~", "~root", "~nobody we know", "~/x")

pytestmark = pytest.mark.skipif(not run.which("ruby"), reason="install ruby with script/bootstrap test")


def dump(*files: Path) -> list[list[Any]]:
    """The calls that Ruby makes for each of these Vagrantfiles: method and arguments."""
    command = ["ruby", "-E", "UTF-8:UTF-8", SUPPORT / "vagrantfile.rb", *files]
    return list(json.loads(run.run(command, timeout_s=60).stdout))


def value(calls: list[Any], path: str) -> Any:
    """The first argument of the first call whose method ends with `path`."""
    return next(arguments[0] for called, arguments in calls if called.endswith(path))


@settings(max_examples=20, deadline=None, phases=[Phase.generate])
@given(st.lists(TEXTS, min_size=60, max_size=200))
def test_ruby_reads_any_text_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Ruby reads every quoted text without a change."""
    file = tmp_path_factory.mktemp("literals") / "literals.rb"
    file.write_text("require 'json'\nputs JSON.generate([" + ",\n".join(map(ruby_literal, texts)) + "])\n", "utf-8")
    assert texts == json.loads(run.run(["ruby", "-E", "UTF-8:UTF-8", file]).stdout)


@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(st.lists(TEXTS, min_size=40, max_size=80).map(lambda texts: [*HOMES, *texts]))
def test_ruby_finds_the_values_and_nothing_else(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """A Vagrantfile with hostile texts makes the same calls as one with plain texts, with those values."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "key").write_text("private")
    (folder / "key.pub").write_text("ssh-ed25519 AAAA comment\n")
    template = makebox.make_box(folder)
    files = []
    for number, text in enumerate(["plain", *texts]):
        box = attrs.evolve(template, name=text, scratch=Scratch(1 << 30, text), forwards=(Forward(80, None),))
        shared = Path("/shared")
        box = attrs.evolve(box, mounts=(Mount(shared, text, writable=True), Mount(shared, text)))
        delivery = Delivery(text, text, "keep")
        machine = VagrantMachine(box, text, "x.box", text, delivery, locations={shared: text})
        files.append(folder / f"{number}.Vagrantfile")
        files[-1].write_text(render_vagrantfile([machine], key="key", prefix=text), "utf-8")
    expected, *hostile = dump(*files)
    for text, calls in zip(texts, hostile, strict=True):
        assert [path for path, _ in expected] == [path for path, _ in calls]
        assert text == value(calls, ".define") == value(calls, ".vm.box=") == value(calls, ".default_prefix=")
        if text in HOMES:
            provision = next(arguments[1] for called, arguments in calls if called.endswith(".provision"))
            assert f"{folder}/{text}" == provision["source"]
        folders = [arguments[1] for called, arguments in calls if called.endswith(".provider.vm.synced_folder")]
        assert [text, text] == folders
        strings = value(calls, ".sysinfo=")["oem strings"]
        prefix = "io.systemd.credential:kimbox."
        assert [
            f"{prefix}hostname={text}",
            f"{prefix}authorized_key=ssh-ed25519 AAAA",
            f"{prefix}scratch={text}",
        ] == strings


def test_a_folder_with_a_percent_sign(tmp_path: Path) -> None:
    """Vagrant reads the location of the image as a URL, so the path is quoted."""
    folder = tmp_path / "100%41 it's"
    folder.mkdir()
    (folder / "key.pub").write_text("ssh-ed25519 AAAA comment\n")
    box = makebox.make_box(tmp_path)
    (folder / "Vagrantfile").write_text(render_vagrantfile([VagrantMachine(box, "x", "x.box")], key="key"))
    url = value(dump(folder / "Vagrantfile")[0], ".box_url=")
    assert f"file://{folder}/x.box" == urllib.parse.unquote(url)


def test_a_box_uses_the_key_of_the_rendered_vagrantfile(tmp_path: Path) -> None:
    """Vagrant puts the strings of a box before those of a project, and the guest uses the first key that it gets."""
    for name in ("id_ed25519", "key"):
        (tmp_path / name).write_text("private")
        (tmp_path / f"{name}.pub").write_text(f"ssh-ed25519 {name}\n")
    in_box, rendered = tmp_path / "Vagrantfile", tmp_path / "rendered.Vagrantfile"
    in_box.write_bytes(boxwriter.vagrantfile("debian", "vagrant"))
    rendered.write_text(render_vagrantfile([VagrantMachine(makebox.make_box(tmp_path), "x")], key="key"))
    alone = dump(in_box)[0]
    assert ["io.systemd.credential:kimbox.authorized_key=ssh-ed25519 id_ed25519"] == value(alone, ".sysinfo=")[
        "oem strings"
    ]
    with_project = dump(rendered, in_box)[1]
    assert [] == [path for path, _ in with_project if path.endswith(".sysinfo=")]
    assert str(tmp_path / "key") == value(with_project, ".private_key_path=")


SPEC = """\
kimbox: 1
name: {name}
base: [_defaults/debian.yaml]
forwards: [{{guest: 8888, host: auto}}]
scratch: {{size: 1GiB, mount: /staging}}
boot: resnap
repositories: {{setup: {{url: ./setup}}}}
provision: [{{name: hello, script: "echo 'hello'"}}]
"""


@pytest.fixture
def work(world: Path) -> Path:
    """A folder with two specs and a setup folder."""
    folder = world / "work"
    (folder / "setup").mkdir()
    (folder / "setup/setup").write_text("#!/bin/sh\n")
    (folder / "setup/setup").chmod(0o755)
    for name in ("director", "worker"):
        (folder / f"{name}.yaml").write_text(SPEC.format(name=name))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_rendering_again_changes_nothing(kimbox: Kimbox, work: Path) -> None:
    """The bytes of the files are the same each time, and in another folder. The second time nothing is written."""
    code, out, err = kimbox("render", "director.yaml")
    assert (0, "wrote vagrant/Vagrantfile\nwrote vagrant/deliver\nwrote vagrant/director.tar\n") == (code, out), err
    first = files_of(work / "vagrant")
    assert (0, "vagrant is up to date\n") == kimbox("render", "director.yaml")[:2]
    assert 0 == kimbox("render", "director.yaml", "-o", "deeper/still")[0]
    assert first == files_of(work / "deeper/still")
    assert str(work).encode() not in b"".join(first.values())


def test_check_names_the_outdated_files(kimbox: Kimbox, work: Path) -> None:
    """--check writes nothing. The exit status is 3 if `kimbox render` would change a file, otherwise 0."""
    assert 3 == kimbox("render", "--check", "director.yaml")[0]
    assert not (work / "vagrant").exists()
    kimbox("render", "director.yaml")
    assert (0, "vagrant is up to date\n") == kimbox("render", "--check", "director.yaml")[:2]
    before = files_of(work / "vagrant")
    (work / "vagrant/Vagrantfile").write_text("# by hand\n")
    (work / "vagrant/deliver").unlink()
    code, _, err = kimbox("render", "--check", "director.yaml")
    assert 3 == code
    assert "vagrant/Vagrantfile:1:1: this file differs from what the spec and its lock give" in err
    assert "vagrant/deliver:1:1: this file is missing" in err
    code, out, _ = kimbox("--json", "render", "--check", "director.yaml")
    assert (3, "render-outdated") == (code, clirun.error(out, "render")["code"])
    assert "director.tar" not in err
    kimbox("render", "director.yaml")
    assert before == files_of(work / "vagrant")


def test_a_bundle_that_another_git_packed_is_the_same(kimbox: Kimbox, work: Path, tmp_path: Path) -> None:
    """The bytes of a pack may differ, the commits of a bundle may not."""
    kimbox("render", "director.yaml")
    archive = work / "vagrant/director.tar"
    with tarfile.open(archive) as members:
        members.extractall(tmp_path / "x", filter="data")
        manifest = {
            m.name.removeprefix("manifest/"): ((tmp_path / "x" / m.name).read_bytes(), m.mode)
            for m in members
            if m.isfile() and m.name.startswith("manifest/")
        }
    bundle = tmp_path / "x/bundles/setup.bundle"
    original = bundle.read_bytes()
    head, _, pack = original.partition(b"\n\n")
    bundle.write_bytes(head + b"\n\n" + pack[::-1])
    write_tar(manifest, [bundle], archive)
    assert 0 == kimbox("render", "--check", "director.yaml")[0]
    bundle.write_bytes(original.replace(b"refs/kimbox/pin", b"refs/kimbox/pun"))
    write_tar(manifest, [bundle], archive)
    assert 3 == kimbox("render", "--check", "director.yaml")[0]


def test_two_boxes_of_one_name_are_refused(kimbox: Kimbox, work: Path) -> None:
    """A Vagrantfile cannot have two machines of one name."""
    (work / "worker.yaml").write_text(SPEC.format(name="director"))
    code, out, _ = kimbox("--json", "render", "director.yaml", "worker.yaml")
    error = clirun.error(out, "render")
    assert (2, "usage", {"name": "director"}) == (code, error["code"], error["fields"])
    assert "two of the boxes are named director" in error["message"]


def test_vagrant_accepts_the_rendered_files(kimbox: Kimbox, work: Path, tmp_path: Path) -> None:
    """`vagrant validate` finds no fault in a Vagrantfile of two boxes, for libvirt or without a provider."""
    if not run.which("vagrant"):
        pytest.skip("vagrant is not installed; script/bootstrap test installs it")
    assert 0 == kimbox("render", "director.yaml", "worker.yaml")[0]
    env = {
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
    }
    for word in (["validate"], ["validate", "--ignore-provider"]):
        done = run.run(["vagrant", *word], cwd=work / "vagrant", env=env, check=False, timeout_s=120)
        assert (0, True) == (done.code, done.stdout.endswith("Vagrantfile validated successfully.\n")), done.stderr
    assert (work / "vagrant/.vagrant/kimbox/id_ed25519").stat().st_mode & 0o777 == 0o600


def test_the_provider_for_virtualbox_knows_each_setting(kimbox: Kimbox, work: Path) -> None:
    """Vagrant evaluates the block only on a host with VirtualBox, so the settings are read from its class."""
    (source,) = Path("/usr/share").glob(
        "rubygems-integration/all/gems/vagrant-*/plugins/providers/virtualbox/config.rb"
    )
    known = set(re.findall(r"^\s*(?:attr_accessor :|def )(\w+)", source.read_text(), re.MULTILINE))
    assert 0 == kimbox("render", "director.yaml")[0]
    used = set(re.findall(r"^\s*virtualbox\.(\w+)", (work / "vagrant/Vagrantfile").read_text(), re.MULTILINE))
    assert {"cpus", "memory", "customize"} <= used <= known


def test_the_script_in_the_folder_is_the_shipped_one(kimbox: Kimbox, work: Path) -> None:
    """The script is the one of the provisioner, and it is executable."""
    kimbox("render", "director.yaml")
    shipped = paths.provisioners_dir() / "provision/deliver"
    assert shipped.read_bytes() == (work / "vagrant/deliver").read_bytes()
    assert (work / "vagrant/deliver").stat().st_mode & 0o100


def test_a_repository_of_this_machine_is_not_packed_unasked(kimbox: Kimbox, work: Path, tmp_path: Path) -> None:
    """Whoever wrote the spec could name a private repository. The files of `render` are for others.

    It is packed after `kimbox lock` has warned of it for this spec, or with `--allow-local`.
    """
    makebox.make_repository(tmp_path / "private", {"secret": "x\n"})
    makebox.make_repository(work / "beside", {"a": "x\n"})
    spec = work / "director.yaml"
    start, _, _ = spec.read_text().partition("repositories:")
    for folder, is_refused in ((work / "beside", False), (tmp_path / "private", True)):
        spec.write_text(f"{start}repositories: {{code: {{url: 'file://{folder}', ref: main}}}}\n")
        code, out, _ = kimbox("--json", "render", "director.yaml", "-o", folder.name)
        if is_refused:
            told = clirun.error(out, "render")
            assert (3, "outside-spec-folder") == (code, told["code"])
            assert not (work / folder.name).exists()
            warning = f"kimbox: warning: the box gets the repository code of this machine: file://{folder}\n"
            assert warning in kimbox("lock", "-f", "director.yaml")[2]
            assert warning not in kimbox("lock", "-f", "director.yaml")[2]
            code = kimbox("render", "director.yaml", "-o", folder.name)[0]
            other = work / "other.yaml"
            other.write_text(spec.read_text())
            assert 3 == kimbox("render", "other.yaml", "-o", "other")[0]
            assert 0 == kimbox("render", "other.yaml", "-o", "other", "--allow-local")[0]
        assert 0 == code
        assert (work / folder.name / "Vagrantfile").is_file()

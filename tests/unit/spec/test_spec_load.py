"""The box of a valid spec, defaults, and the selection of the spec by a verb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kimbox import paths
from kimbox.errors import StateError, UsageError
from kimbox.spec import layout, units
from kimbox.spec.load import find_box, load_box, shipped_boxes
from kimbox.spec.model import (
    BootMode,
    Box,
    Disk,
    Forward,
    Instance,
    Mode,
    PackageImage,
    Probe,
    RemoteImage,
    Repository,
    ResnapKeep,
    Run,
    Scratch,
    Step,
    Volume,
)
from kimbox.spec.nodes import Fault, Problems
from kimbox.spec.parse import parse
from kimbox.spec.schema import box_schema, resolve, with_defaults
from kimbox.spec.start import MODELINE, start_spec

FULL = """
kimbox: 1
name: all-keys
description: every key there is
image:
  distribution: ubuntu
  packages: [gcc, g++]
  mirror: https://mirror.example.org/ubuntu
  docs: true
  recommends: true
disk:
  size: 4GiB
  volume_group: vg
  boot: 100.5MiB
  volumes: {root: 1.5GiB, persistent: 1MiB, swap: null, root_snap: 512MiB}
  names: {root: system}
boot: resnap
resnap: {keep: nothing}
cpus: 4
memory: 1000.1MiB
scratch: {size: 4.001GiB, mount: /mnt/scratch}
openstack: {cloud: arbutus, flavor: c2-7.5gb-30, network: private, address: public, timeout: 30m}
timezone: Europe/Berlin
watchdog: 2m
warm: true
template: {stop: [a.service, b.timer]}
forwards: [{guest: 80, host: 8080}, {guest: 81}]
repositories:
  setup: {url: ./mine}
  api: {url: "git@git.example.org:me/api.git", ref: v1, path: /opt/api}
provision:
  - {name: one, mode: user, run: always, script: "true", timeout: 1h, uses: [api]}
probes:
  - {description: it is there, script: "test -d /opt/api", hint: look, timeout: 90s}
"""


def box_of(folder: Path, text: str) -> Box:
    """Returns the box of a spec with this content."""
    (folder / "kimbox.yaml").write_text(text)
    return load_box(folder / "kimbox.yaml")


def test_every_key_reaches_the_model(tmp_path: Path) -> None:
    """The box of a spec with all keys has all values. Sizes are rounded up to whole extents."""
    (tmp_path / "mine").mkdir()
    box = box_of(tmp_path, FULL)
    assert box.digest
    assert box == Box(
        name="all-keys",
        description="every key there is",
        source=tmp_path / "kimbox.yaml",
        layers=(tmp_path / "kimbox.yaml",),
        digest=box.digest,
        image=PackageImage("ubuntu", "noble", ("gcc", "g++"), "https://mirror.example.org/ubuntu", True, True),
        disk=Disk(
            size_bytes=4 << 30,
            boot_bytes=104 << 20,
            volume_group="vg",
            root=Volume("system", 1536 << 20),
            persistent=Volume("persistent", 4 << 20),
            swap=None,
            snapshot=Volume("root_snap", 512 << 20),
        ),
        boot=BootMode.RESNAP,
        cpus=4,
        memory_bytes=1001 << 20,
        forwards=(Forward(80, 8080), Forward(81, None)),
        repositories=(
            Repository("setup", str(tmp_path / "mine"), True, "HEAD", "/usr/local/src/setup"),
            Repository("api", "git@git.example.org:me/api.git", False, "v1", "/opt/api"),
        ),
        provision=(Step("one", "true", Mode.USER, Run.ALWAYS, 3600, ("api",)),),
        probes=(Probe("it is there", "test -d /opt/api", "look", 90),),
        scratch=Scratch(4100 << 20, "/mnt/scratch"),
        openstack=Instance("c2-7.5gb-30", "private", "public", "arbutus", 1800),
        timezone="Europe/Berlin",
        watchdog_s=120,
        warm=True,
        cold_units=("a.service", "b.timer"),
        resnap_keep=ResnapKeep.NOTHING,
    )


def test_a_spec_of_two_lines_has_sensible_defaults(tmp_path: Path) -> None:
    """Only format and name are required."""
    box = box_of(tmp_path, "kimbox: 1\nname: a\n")
    assert (PackageImage("debian", "trixie", ()), BootMode.KEEP, 2, 2 << 30) == (
        box.image, box.boot, box.cpus, box.memory_bytes,
    )  # fmt: skip
    assert Disk(
        16 << 30, 256 << 20, "vagrant-pipeline", Volume("root", 5 << 30), Volume("persistent", 2 << 30),
        Volume("swap", 512 << 20), Volume("root_snap", None),
    ) == box.disk  # fmt: skip
    assert box.scratch is None
    assert (False, ()) == (box.warm, box.cold_units)
    assert ResnapKeep.PROVISIONED is box.resnap_keep


def test_scratch_space_of_layers(tmp_path: Path) -> None:
    """It is merged key by key, and null removes it. The default mount point is /staging."""
    (tmp_path / "low.yaml").write_text("kimbox: 1\nscratch: {size: 4GiB, mount: /mnt/low}\n")
    box = "kimbox: 1\nname: a\nbase: [low.yaml]\n"
    assert Scratch(4 << 30, "/mnt/low") == box_of(tmp_path, box).scratch
    assert Scratch(8 << 30, "/mnt/low") == box_of(tmp_path, f"{box}scratch: {{size: 8GiB}}\n").scratch
    assert box_of(tmp_path, f"{box}scratch: null\n").scratch is None
    assert Scratch(1 << 30, "/staging") == box_of(tmp_path, "{kimbox: 1, name: a, scratch: {size: 1GiB}}").scratch


def test_the_readable_defaults_are_the_defaults() -> None:
    """boxes/_defaults/debian.yaml has the defaults of the schema, so that a box is equal with and without it."""
    layer = parse((paths.boxes_dir() / "_defaults/debian.yaml").read_text(), "layer", Problems())
    bare = with_defaults(parse("kimbox: 1", "bare", Problems())).plain()
    assert bare | {"image": bare["image"] | {"suite": "trixie"}} == with_defaults(layer).plain()


def test_every_key_is_documented() -> None:
    """Each key of the schema has a title, a description that ends in a full stop, and a valid example."""

    def visit(part: dict[str, Any], path: str) -> None:
        for name, raw in part.get("properties", {}).items():
            inner, where = resolve(raw), f"{path}.{name}"
            assert inner.get("title"), where
            assert inner["description"].endswith("."), where
            if "properties" not in inner and "if" not in inner:
                for example in [*inner["examples"], *([inner["default"]] if "default" in inner else [])]:
                    jsonschema.Draft202012Validator({**raw, "$defs": box_schema()["$defs"]}).validate(example)
            visit(inner, where)
            visit(inner.get("items", {}), where)

    visit(box_schema(), "")
    for form in ("package_image", "remote_image"):
        visit(box_schema()["$defs"][form], form)


def test_the_disk_of_an_image_by_location_may_be_small(tmp_path: Path) -> None:
    """It has no volumes of kimbox, so that their default sizes do not matter."""
    text = f'kimbox: 1\nname: a\nimage: {{location: x.qcow2, digest: "sha256:{"a" * 64}"}}\ndisk: {{size: 3GiB}}\n'
    (tmp_path / "kimbox.yaml").write_text(text)
    assert (3 << 30) == load_box(tmp_path / "kimbox.yaml").disk.size_bytes


def test_an_image_by_location(tmp_path: Path) -> None:
    """A location is a URL, or a path relative to the folder of the spec."""
    digest = "sha256:" + "a" * 64
    text = f'kimbox: 1\nname: a\nimage: {{location: ../x.box, digest: "{digest}"}}\n'
    assert RemoteImage(str(tmp_path.parent / "x.box"), digest) == box_of(tmp_path, text).image
    text = text.replace("../x.box", "https://example.org/x.box")
    assert RemoteImage("https://example.org/x.box", digest) == box_of(tmp_path, text).image


def test_the_digest_depends_on_values_only(tmp_path: Path) -> None:
    """Comments, order, formatting, layers and folder do not change the digest. A value changes it."""
    digest = box_of(tmp_path, "kimbox: 1\nname: a\ncpus: 2\nboot: resnap\n").digest
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/low.yaml").write_text("kimbox: 1\nboot: resnap\n")
    assert digest == box_of(tmp_path / "sub", "# x\nboot: 'resnap'\n\nname: a\nkimbox: 1\n").digest
    assert digest == box_of(tmp_path / "sub", "{kimbox: 1, base: [low.yaml], name: a, memory: 2GiB}\n").digest
    assert digest != box_of(tmp_path, "kimbox: 1\nname: a\ncpus: 3\nboot: resnap\n").digest


@pytest.mark.parametrize("box", shipped_boxes(), ids=lambda box: box.name)
def test_shipped_boxes_are_valid(box: Any) -> None:
    """Every shipped box is valid, has the name of its file, and has a description."""
    loaded = load_box(box.path)
    assert (box.name, box.description) == (loaded.name, loaded.description)
    assert box.description
    layout.plan(loaded.disk)


def test_the_documented_boxes_are_shipped() -> None:
    """The two boxes in the documents exist."""
    assert {"condor-worker", "minimal", "openkim-dev", "openkim-director", "openkim-worker"} == {
        box.name for box in shipped_boxes()
    }


def test_the_spec_of_a_verb(tmp_path: Path) -> None:
    """-f has priority. No name means kimbox.yaml in this folder. A name means a shipped box, a path means the file."""
    spec = tmp_path / "kimbox.yaml"
    spec.write_text("")
    assert spec == find_box(None, tmp_path, None)
    assert spec == find_box("minimal", Path("/nowhere"), spec)
    assert paths.boxes_dir() / "minimal.yaml" == find_box("minimal", tmp_path, None)
    assert spec == find_box("./kimbox.yaml", tmp_path, None)


@pytest.mark.parametrize(
    ("name", "file", "code", "message", "hint"),
    [
        (
            None,
            None,
            "spec-not-found",
            "kimbox.yaml not found in",
            "`kimbox init` writes one; or name a shipped box: condor-worker, minimal, openkim-dev",
        ),
        ("minimla", None, "box-not-found", "shipped box `minimla` not found", "did you mean minimal?"),
        (
            "zzz",
            None,
            "box-not-found",
            "shipped box `zzz` not found",
            "there are: condor-worker, minimal, openkim-dev, openkim-director, openkim-worker. Use -f for a file",
        ),
        (None, Path("/nowhere/x.yaml"), "spec-not-found", "file /nowhere/x.yaml not found", "`kimbox init`"),
        ("_defaults", None, "box-not-found", "shipped box `_defaults` not found", "there are"),
        ("../boxes/minimal", None, "spec-not-found", "file /", "`kimbox init`"),
    ],
)
def test_a_spec_that_does_not_exist(
    tmp_path: Path, name: str | None, file: Path | None, code: str, message: str, hint: str
) -> None:
    """The message and the fields name the missing box or file. The message lists the existing boxes."""
    with pytest.raises(StateError) as caught:
        find_box(name, tmp_path, file)
    assert code == caught.value.code
    expected = {"name": name} if code == "box-not-found" else {"path": str(file or tmp_path / (name or "kimbox.yaml"))}
    assert expected == caught.value.fields
    assert caught.value.message.startswith(message)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4MiB", 4 << 20),
        ("1KiB", 4 << 20),
        ("5GiB", 5 << 30),
        ("0.5GiB", 512 << 20),
        ("4.001MiB", 8 << 20),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(text: str, count: int) -> None:
    """Sizes are binary and are rounded up to whole extents."""
    assert count == units.size(text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("36h", 129600), ("7d", 604800)])
def test_durations(text: str, seconds: int) -> None:
    """A duration is a whole number with a unit."""
    assert seconds == units.duration(text)


@pytest.mark.parametrize("text", ["", "5", "5 GiB", "GiB", "-5GiB", "5gib", "٥GiB", "5GiB\n", "1e3GiB", "5GiB5MiB"])
def test_invalid_sizes(text: str) -> None:
    """A size is digits and one binary unit."""
    with pytest.raises(Fault):
        units.size(text)


def test_init_writes_a_valid_spec(tmp_path: Path) -> None:
    """The written spec keeps its comments, has the given name and is valid in every folder."""
    folder = tmp_path / "My Study"
    folder.mkdir()
    started = start_spec("minimal", folder)
    assert (folder / "kimbox.yaml", "my-study", ()) == (started.spec, started.name, started.folders)
    text = started.spec.read_text()
    assert text.startswith(MODELINE)
    assert "# Ports of the guest" in text
    shipped = load_box(paths.boxes_dir() / "minimal.yaml")
    assert ("my-study", shipped.disk, shipped.probes) == (lambda b: (b.name, b.disk, b.probes))(load_box(started.spec))


@pytest.mark.parametrize("name", ["2048", "1e3", "0x1f", "2026-01-01", "true", "null", "no", "y", "0", "a", "no-x"])
def test_init_in_a_folder_whose_name_yaml_does_not_read_as_text(tmp_path: Path, name: str) -> None:
    """The name is quoted if necessary."""
    folder = tmp_path / name
    folder.mkdir()
    assert name == load_box(start_spec("minimal", folder).spec).name


def test_init_copies_the_setup_folder(tmp_path: Path) -> None:
    """A box with a folder beside it is copied with this folder."""
    started = start_spec("openkim-dev", tmp_path, "al")
    setup = load_box(started.spec).repository("setup")
    assert setup is not None
    assert str(tmp_path / "openkim-dev/setup") == setup.url
    assert (tmp_path / "openkim-dev/setup/setup").is_file()


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    """An existing file or broken link is an error. It stays, and nothing is written."""
    (tmp_path / "kimbox.yaml").symlink_to("nowhere")
    with pytest.raises(StateError) as exists:
        start_spec("minimal", tmp_path)
    assert ("file-exists", {"path": str(tmp_path / "kimbox.yaml")}) == (exists.value.code, exists.value.fields)
    assert ["kimbox.yaml"] == [path.name for path in tmp_path.iterdir()]
    with pytest.raises(UsageError) as bad:
        start_spec("minimal", tmp_path / "sub", "No Name")
    assert ("bad-name", "for example no-name") == (bad.value.code, bad.value.hint)

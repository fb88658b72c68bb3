"""The rendered Vagrantfile: every value of a spec stays inside a Ruby literal."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimbox import paths
from kimbox.errors import KimboxError
from kimbox.render.vagrantfile import Delivery, VagrantMachine, render_vagrantfile, ruby_literal
from kimbox.spec.model import BootMode, Box, Disk, Forward, Mount, PackageImage, Scratch, Volume

_GIB = 1 << 30

BOX = Box(
    name="minimal",
    description="",
    source=Path("/nowhere/kimbox.yaml"),
    layers=(),
    digest="0" * 64,
    image=PackageImage("debian", "trixie", ()),
    disk=Disk(
        size_bytes=4 * _GIB,
        boot_bytes=_GIB // 4,
        volume_group="vg",
        root=Volume("root", _GIB),
        persistent=Volume("persistent", _GIB),
        swap=None,
        snapshot=Volume("root_snap", None),
    ),
    boot=BootMode.KEEP,
    cpus=2,
    memory_bytes=_GIB,
    forwards=(),
    repositories=(),
    provision=(),
    probes=(),
)

HOSTILE = [
    "it's",
    'say "hello"',
    "#{exit 1}",
    '"#{`id`}"',
    "two\nlines\n",
    "end\nsystem('id')\n",
    "\\",
    "\\'",
    "'\\",
    "' + `id` + '",
    "\n__END__\n",
    "=begin\n",
    "{{ name }} {% raw %}",
    "Zürich ☃",
    "",
]

_SINGLE_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)


def unquoted(literal: str) -> str:
    """Returns the value of a single-quoted Ruby literal. The only escapes are `\\\\` and `\\'`."""
    match = _SINGLE_QUOTED.fullmatch(literal)
    assert match, f"not one single-quoted Ruby literal: {literal}"
    return re.sub(r"\\([\\'])", r"\1", match[1])


@pytest.mark.parametrize("text", HOSTILE)
def test_a_quoted_text_is_read_back(text: str) -> None:
    """Ruby reads a quoted text as the original text."""
    assert text == unquoted(ruby_literal(text))


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_any_text_survives_quoting(text: str) -> None:
    """Quoting changes no text."""
    assert text == unquoted(ruby_literal(text))


@pytest.mark.parametrize("text", ["\0", "a\rb", "\x1b[0m", "\x7f", "\ud800"])
def test_characters_that_ruby_would_change_are_refused(text: str) -> None:
    """Characters that Ruby removes, or that end a file for Ruby, are an error."""
    with pytest.raises(KimboxError) as caught:
        ruby_literal(text)
    assert "forbidden-character" == caught.value.code


def test_every_value_of_the_template_is_quoted() -> None:
    """Every expression of the template uses the filter `ruby`, and its only statements are loops."""
    template = (paths.data_dir() / "Vagrantfile.j2").read_text()
    expressions = re.findall(r"\{\{(.*?)\}\}", template, re.DOTALL)
    statements = re.findall(r"\{%-?\s*(\w+)", template)
    assert expressions
    assert [] == [e for e in expressions if not re.fullmatch(r"\s*[\w.]+ \| ruby\s*", e)]
    assert {"for", "endfor"} == set(statements)


def full(box: Box = BOX, text: str = "minimal") -> str:
    """Returns a Vagrantfile with every part of the template. Each of its texts is `text`."""
    hostile = attrs.evolve(box, name=text, scratch=Scratch(_GIB, text))
    delivery = Delivery(text, text, "keep")
    machines = [
        VagrantMachine(hostile, text, location=text, digest=text, delivery=delivery),
        VagrantMachine(hostile, text, location=f"https://{text}"),
    ]
    return render_vagrantfile(machines, key=text, prefix=text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_changes_values_and_no_code(text: str) -> None:
    """Without the literals, the file of a hostile box is equal to that of an ordinary box."""
    hostile, tame = full(text=text), full()
    assert _SINGLE_QUOTED.sub("''", tame) == _SINGLE_QUOTED.sub("''", hostile)
    assert text in [unquoted(f"'{m}'") for m in _SINGLE_QUOTED.findall(hostile)]


def test_a_machine_for_each_box() -> None:
    """Each box becomes a machine. The same boxes give the same bytes."""
    machines = [VagrantMachine(attrs.evolve(BOX, name=name), f"kimbox-{name}") for name in ("director", "worker")]
    text = render_vagrantfile(machines)
    assert ["director", "worker"] == re.findall(r"vm\.define '(\w+)'", text)
    assert text == render_vagrantfile(machines)


def test_sizes_and_ports_are_those_of_the_spec() -> None:
    """CPUs, memory in MiB and forwarded ports are those of the box. Vagrant may change a port with `host: auto`."""
    box = attrs.evolve(
        BOX,
        cpus=3,
        memory_bytes=3 * _GIB + 1,
        forwards=(Forward(8888, None), Forward(80, None), Forward(22, 2222), Forward(9000, None)),
    )
    text = render_vagrantfile([VagrantMachine(box, "minimal", host_ports={9000: 9001})])
    ports = re.findall(r"guest: (\d+),\s+host: (\d+),\s+host_ip: '127.0.0.1',\s+auto_correct: (\w+)", text)
    expected = [
        ("22", "2200", "true"),  # Vagrant's own ssh, which is at 2222 otherwise
        ("8888", "8888", "true"),
        ("80", "10080", "true"),
        ("22", "2222", "false"),
        ("9000", "9001", "false"),
    ]
    assert expected == ports
    assert 2 == text.count(".cpus = 3\n")
    assert 2 == text.count(".memory = 3073\n")


def test_no_port_of_the_host_is_declared_twice() -> None:
    """Vagrant declares 2222 for its own ssh. Ports that Vagrant may choose do not collide with those of the spec."""
    forwards = (Forward(80, None), Forward(10080, None), Forward(443, 8888), Forward(8888, None), Forward(65535, None))
    box = attrs.evolve(BOX, forwards=(*forwards, Forward(2222, None), Forward(5, 65535), Forward(2200, None)))
    text = render_vagrantfile([VagrantMachine(box, "minimal")])
    hosts = re.findall(r"guest: (\d+),\s+host: (\d+)", text)
    assert [
        ("22", "2201"), ("80", "10080"), ("10080", "10081"), ("443", "8888"), ("8888", "8889"), ("65535", "1024"),
        ("2222", "2222"), ("5", "65535"), ("2200", "2200"),
    ] == hosts  # fmt: skip
    assert 1 == text.count("id: 'ssh'")
    assert "id: 'ssh'" not in render_vagrantfile([VagrantMachine(attrs.evolve(BOX, forwards=forwards), "minimal")])


def test_folders_of_the_host() -> None:
    """They are synced folders under libvirt, relative to the file if that is known. Without `mounts` there is none."""
    mounts = (Mount(Path("/home/ada/it's"), "/work", writable=True), Mount(Path("/srv/data"), "/data"))
    box = attrs.evolve(BOX, mounts=mounts)
    text = render_vagrantfile([VagrantMachine(box, "minimal", locations={mounts[0].location: "../it's"})])
    assert [
        "override.vm.synced_folder File.expand_path('../it\\'s', __dir__), '/work', type: 'virtiofs'",
        "override.vm.synced_folder File.expand_path('/srv/data', __dir__), '/data', type: 'virtiofs', readonly: true",
    ] == re.findall(r"override\.vm.*", text)
    assert 1 == text.count("memorybacking :access, mode: 'shared'")
    assert "override.vm" not in render_vagrantfile([VagrantMachine(BOX, "minimal")])

"""Every fault of a spec is told at its place, in words that help."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.errors import SpecError
from kimbox.spec.load import load_box

#: (name of the case, what the spec holds besides format and name, the one line expected). The text starts in line 3.
BAD = [
    ("unknown-key", "nmae: x", "3:1: unknown key `nmae` (did you mean name?)"),
    ("unknown-key-below", "disk: {sise: 9GiB}", "3:8: unknown key `sise` in disk (did you mean size?)"),
    (
        "unknown-key-unlike-any",
        "disk:\n  qqq: 1",
        "4:3: unknown key `qqq` in disk (there are: size, volume_group, boot, volumes, names)",
    ),
    ("later-work", "mounts: []", "3:1: unknown key `mounts`"),
    ("type", "cpus: many", "3:7: cpus must be a whole number, not the text `many` (for example 2)"),
    ("bool-is-no-number", "cpus: true", "3:7: cpus must be a whole number, not the truth value `true`"),
    ("float-is-no-number", "cpus: 2.0", "3:7: cpus must be a whole number, not the number `2.0`"),
    ("empty-value", "disk:", "3:1: disk must be a mapping, not empty (give it a value, or leave the key out)"),
    ("cpus-range", "cpus: 257", "3:7: cpus must be from 1 to 256, not `257`"),
    ("enum", "boot: resnp", "3:7: boot must be resnap, keep or maintain, not `resnp` (did you mean resnap?)"),
    (
        "decimal-size",
        "memory: 5GB",
        "3:9: `5GB` is not a size: write a number and KiB, MiB, GiB or TiB (did you mean 5GiB?)",
    ),
    ("bare-size", "memory: 5", "3:9: memory must be text, not the number `5` (a number and a binary unit"),
    ("bare-size-text", "memory: '512'", "3:9: `512` is not a size"),
    ("memory-small", "memory: 255MiB", "3:9: `255MiB` is too small: at least 256MiB"),
    ("memory-large", "memory: 99999TiB", "3:9: `99999TiB` is too large: at most 2TiB"),
    ("zero-size", "disk: {volumes: {persistent: 0GiB}}", "3:30: `0GiB` is too small: at least 4MiB"),
    (
        "too-full",
        "disk: {size: 13GiB, volumes: {root: 6GiB}}",
        "3:14: the disk of 13GiB is too small: boot 256MiB + root 6GiB + persistent 2GiB + swap 512MiB"
        " + root_snap 6148MiB + partition table and LVM 2MiB = 15110MiB (at least 15112MiB)",
    ),
    ("group-hyphen", "disk: {volume_group: -vg}", "3:22: `-vg` cannot be the name of a volume group: letters, digits"),
    ("group-dots", "disk: {volume_group: ..}", "3:22: `..` cannot be the name of a volume group"),
    (
        "group-dev",
        "disk: {volume_group: mapper}",
        "3:22: `mapper` cannot be the name of a volume group: /dev/mapper is",
    ),
    ("lv-reserved", "disk: {names: {root: snapshot1}}", "3:22: `snapshot1` cannot be the name of a volume: LVM keeps"),
    ("lv-pvmove", "disk: {names: {root: pvmove0}}", "3:22: `pvmove0` cannot be the name of a volume"),
    (
        "lv-cdata",
        "disk: {names: {root: a_cdata}}",
        "3:22: `a_cdata` cannot be the name of a volume: LVM keeps names that",
    ),
    (
        "lv-twice",
        "disk: {names: {root: swap}}",
        "3:22: the volume name `swap` is here for the second time (first in line 3)",
    ),
    ("snapshot-percent", "disk: {volumes: {root_snap: 50%ORIGIN}}", "3:29: `50%ORIGIN` is not a size of the snapshot"),
    ("scratch-no-size", "scratch: {mount: /staging}", "3:10: scratch has no `size` (size of the scratch space)"),
    ("scratch-bare", "scratch: 4GiB", "3:10: scratch must be a mapping or null, not the text `4GiB`"),
    ("scratch-unknown", "scratch: {size: 4GiB, path: /x}", "3:23: unknown key `path` in scratch"),
    ("scratch-size", "scratch: {size: 4GB}", "3:17: `4GB` is not a size: write a number and KiB, MiB, GiB or TiB"),
    ("scratch-small", "scratch: {size: 8MiB}", "3:17: `8MiB` is too small: at least 16MiB"),
    (
        "scratch-relative",
        "scratch: {size: 4GiB, mount: staging}",
        "3:30: `staging` is not an absolute path of the guest",
    ),
    ("scratch-run", "scratch: {size: 4GiB, mount: /run/x}", "3:30: `/run/x` is on /run, where no scratch space can be"),
    ("scratch-tmp", "scratch: {size: 4GiB, mount: /tmp}", "3:30: `/tmp` is a folder of the system (choose a folder of"),
    ("scratch-on-tmp", "scratch: {size: 4GiB, mount: /tmp/x}", "3:30: `/tmp/x` is on /tmp, which is mounted after it"),
    (
        "scratch-over-repository",
        "repositories: {a: {url: 'h:x', path: /opt/a/b}}\nscratch: {size: 4GiB, mount: /opt/a}",
        "4:30: `/opt/a` overlaps with `/opt/a/b`, the path of the repository `a` (give each its own)",
    ),
    (
        "repository-in-scratch",
        "repositories: {a: {url: 'h:x', path: /opt/a}}\nscratch: {size: 4GiB, mount: /opt/a/b}",
        "4:30: `/opt/a/b` overlaps with `/opt/a`, the path of the repository `a` (give each its own)",
    ),
    ("port-twice", "forwards: [{guest: 80}, {guest: 80}]", "3:33: the guest port `80` is here for the second time"),
    (
        "host-port-twice",
        "forwards: [{guest: 80, host: 8080}, {guest: 81, host: 8080}]",
        "3:55: the host port `8080` is here for the second time",
    ),
    (
        "privileged-port",
        "forwards: [{guest: 80, host: 80}]",
        "3:30: forwards[0].host must be from 1024 to 65535, not `80` (ports below 1024 need root)",
    ),
    ("port-range", "forwards: [{guest: 65536}]", "3:20: forwards[0].guest must be from 1 to 65535, not `65536`"),
    ("port-text", "forwards: [{guest: 80, host: any}]", "3:30: `any` is not a port: write auto, or a number"),
    ("repository-name", "repositories: {A: {url: ./x}}", "3:16: `A` cannot be the name of a repository"),
    (
        "timeout-of-what",
        "repositories: {a: {url: 'https://h.org/x', timeout: 1h}}",
        "3:53: nothing of the repository a is run",
    ),
    ("no-url", "repositories:\n  a: {}", "4:6: repositories.a has no `url` (where the repository is)"),
    ("ext", "repositories: {a: {url: 'ext::sh -c x'}}", "3:25: `ext::sh -c x` names a transport that runs commands"),
    ("option-url", "repositories: {a: {url: --upload-pack=x}}", "3:25: `--upload-pack=x` starts with a hyphen"),
    (
        "option-host",
        "repositories: {a: {url: 'ssh://-oProxyCommand=x/y'}}",
        "3:25: `ssh://-oProxyCommand=x/y` does not",
    ),
    ("option-scp", "repositories: {a: {url: 'h:-x'}}", "3:25: `h:-x` is not user@host:path"),
    (
        "scheme",
        "repositories: {a: {url: 'ftp://h/x'}}",
        "3:25: ftp:// is not a way kimbox fetches (use https, http, ssh, git",
    ),
    (
        "secret",
        "repositories: {a: {url: 'https://me:hunter2@h.org/x'}}",
        "3:25: this url holds a user name or password (write https://h.org/x: credentials belong in",
    ),
    (
        "token",
        "repositories: {a: {url: 'https://h.org/x?token=hunter2'}}",
        "3:25: a repository's url has no ? and no # part",
    ),
    ("ssh-secret", "repositories: {a: {url: 'ssh://me:hunter2@h.org/x'}}", "3:25: this url holds a password"),
    ("escape", "repositories: {a: {url: ../../etc}}", "3:25: `../../etc` leaves the folder of the spec"),
    ("absolute", "repositories: {a: {url: /etc}}", "3:25: `/etc` is an absolute path"),
    ("no-folder", "repositories: {a: {url: ./nothing}}", "3:25: there is no folder `./nothing`"),
    ("file-as-folder", "repositories: {a: {url: ./kimbox.yaml}}", "3:25: `./kimbox.yaml` is not a folder"),
    ("folder-ref", "repositories: {a: {url: ., ref: main}}", "3:33: a folder has no ref"),
    ("ref-option", "repositories: {a: {url: 'h:x', ref: -x}}", "3:37: `-x` is not a branch, a tag or a commit"),
    ("ref-lock", "repositories: {a: {url: 'h:x', ref: a.lock}}", "3:37: `a.lock` is not a branch"),
    ("path-relative", "repositories: {a: {url: 'h:x', path: opt}}", "3:38: `opt` is not an absolute path of the guest"),
    (
        "path-dots",
        "repositories: {a: {url: 'h:x', path: /opt/../a}}",
        "3:38: `/opt/../a` is not in its simplest form (write /a)",
    ),
    (
        "path-dev",
        "repositories: {a: {url: 'h:x', path: /dev/a}}",
        "3:38: `/dev/a` is on /dev, where no repository can be",
    ),
    ("path-persistent", "repositories: {a: {url: 'h:x', path: /persistent}}", "3:38: `/persistent` is on /persistent"),
    ("path-system", "repositories: {a: {url: 'h:x', path: /usr}}", "3:38: `/usr` is a folder of the system"),
    ("path-shell", "repositories: {a: {url: 'h:x', path: '/opt/$(x)'}}", "3:38: `/opt/$(x)` holds characters that"),
    (
        "path-same",
        "repositories: {a: {url: 'h:x', path: /opt/a}, b: {url: 'h:x', path: /opt/a}}",
        "3:69: `/opt/a` is also the path of the repository `a`",
    ),
    (
        "path-nested",
        "repositories: {a: {url: 'h:x', path: /opt/a/b}, b: {url: 'h:x', path: /opt/a}}",
        "3:71: `/opt/a` is nested with `/opt/a/b`, the path of the repository `a`",
    ),
    (
        "package-version",
        "image: {packages: [gcc=12]}",
        "3:20: `gcc=12` names a version (write gcc: a version is what the mirror has when the image is built)",
    ),
    ("package-option", "image: {packages: [-qq]}", "3:20: `-qq` is not the name of a package"),
    ("package-removal", "image: {packages: [gcc-]}", "3:20: `gcc-` ends in a hyphen, which apt reads as: remove it"),
    ("package-upper", "image: {packages: [GCC]}", "3:20: `GCC` is not the name of a package"),
    ("package-twice", "image: {packages: [gcc, gcc]}", "3:25: the package `gcc` is here for the second time"),
    ("suite", "image: {suite: sid}", "3:16: image.suite must be trixie, bookworm, noble or jammy, not `sid`"),
    ("suite-of-other", "image: {suite: noble}", "3:16: debian has no suite `noble` (there are: trixie, bookworm)"),
    (
        "two-forms",
        "image: {location: a.img, suite: trixie, digest: 'sha256:%s'}" % ("0" * 64),
        "3:26: unknown key `suite` in image",
    ),
    ("no-digest", "image: {location: a.img}", "3:8: image has no `digest` (what the image must be)"),
    ("digest", "image: {location: a.img, digest: '%s'}" % ("A" * 64), "3:34: `AAAA"),
    ("mirror-secret", "image: {mirror: 'http://u:hunter2@h/d'}", "3:17: this url holds a user name or password"),
    (
        "location-scheme",
        "image: {location: 'ftp://h/x', digest: 'sha256:%s'}" % ("0" * 64),
        "3:19: ftp:// is not a way",
    ),
    (
        "step-twice",
        "provision: [{name: a, script: x}, {name: a, script: x}]",
        "3:42: the step `a` is here for the second time",
    ),
    ("step-name", "provision: [{name: a b, script: x}]", "3:20: `a b` cannot be the name of a step"),
    (
        "uses-unknown",
        "repositories: {tool: {url: ./x}}\nprovision: [{name: a, script: x, uses: [tol]}]",
        "4:41: the spec has no repository `tol` (did you mean tool?)",
    ),
    (
        "uses-none-there",
        "provision: [{name: a, script: x, uses: [tool]}]",
        "3:41: the spec has no repository `tool` (name it under `repositories`, or leave it out)",
    ),
    (
        "uses-twice",
        "repositories: {tool: {url: ./x}}\nprovision: [{name: a, script: x, uses: [tool, tool]}]",
        "4:47: the repository `tool` is here for the second time (first in line 4)",
    ),
    ("uses-null", "provision: [{name: a, script: x, uses: null}]", "3:40: provision[0].uses must be a list, not empty"),
    ("uses-text", "provision: [{name: a, script: x, uses: b}]", "3:40: provision[0].uses must be a list"),
    ("uses-number", "provision: [{name: a, script: x, uses: [1]}]", "3:41: provision[0].uses[0] must be text"),
    ("no-script", "provision: [{name: a}]", "3:13: provision[0] has no `script` (what it runs)"),
    ("empty-script", "provision: [{name: a, script: ''}]", "3:31: provision[0].script cannot be empty"),
    ("blank-script", "provision: [{name: a, script: ' '}]", "3:31: a script cannot be empty"),
    ("timeout", "provision: [{name: a, script: x, timeout: 5min}]", "3:43: `5min` is not a duration"),
    ("timeout-long", "provision: [{name: a, script: x, timeout: 8d}]", "3:43: `8d` is out of range: from 1s to 7d"),
    (
        "timeout-bare",
        "provision: [{name: a, script: x, timeout: 5}]",
        "3:43: provision[0].timeout must be text, not the number `5`",
    ),
    (
        "probe-twice",
        "probes: [{description: a, script: x}, {description: a, script: x}]",
        "3:53: the probe `a` is here",
    ),
    ("duplicate-key", "cpus: 1\ncpus: 2", "4:1: the key `cpus` is here for the second time (first in line 3)"),
    (
        "merge-key",
        "x: &x {a: 1}\n<<: *x",
        "4:1: merge keys (<<) are not part of a spec (put what is shared in a layer: base:)",
    ),
    ("tag", "cpus: !!int 2", "3:7: tags such as `tag:yaml.org,2002:int` are not allowed"),
    ("python-tag", "cpus: !!python/object/apply:os.system [x]", "3:7: tags such as"),
    ("number-as-key", "repositories: {1: {url: 'h:x'}}", "3:16: a key is text, and this is not (put it in quotes)"),
    ("escape-sequence", 'description: "\\e[31m"', "3:14: the character U+001B has no place in a spec"),
    ("surrogate", 'description: "\\ud800"', "3:14: the character U+D800 has no place in a spec"),
    ("no-anchor", "cpus: *nothing", "3:7: there is no anchor `&nothing` above"),
    ("indentation", "disk:\n\tsize: 5GiB", "4:1: not valid YAML"),
    ("unclosed", "description: 'x", "4:1: not valid YAML: found unexpected end of stream"),
    ("no-base", "base: [nothing.yaml]", "3:8: there is no layer `nothing.yaml`"),
    ("absolute-base", "base: [/etc/passwd]", "3:8: `/etc/passwd` is an absolute path; a layer is named relative to"),
    ("base-escape", "base: [../../../etc/passwd]", "3:8: `../../../etc/passwd` leaves the folder of the spec"),
    ("base-itself", "base: [kimbox.yaml]", "3:8: the layer `kimbox.yaml` stands on itself"),
]


def faults(path: Path) -> list[str]:
    """What load_box has to say against a spec, without the name of its folder."""
    with pytest.raises(SpecError) as caught:
        load_box(path)
    return [str(problem).removeprefix(f"{path.parent}/") for problem in caught.value.problems]


@pytest.mark.parametrize(("content", "expected"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_fault_is_told_at_its_place(tmp_path: Path, content: str, expected: str) -> None:
    """One of the faults found is the expected one, in its line and column."""
    (tmp_path / "kimbox.yaml").write_text(f"kimbox: 1\nname: a\n{content}\n")
    found = faults(tmp_path / "kimbox.yaml")
    assert any(line.startswith(f"kimbox.yaml:{expected}") for line in found), found
    assert not any("hunter2" in line for line in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1:1: this file is empty"),
        ("# nothing\n", "1:1: this file is empty"),
        ("---\n", "a spec is a mapping of keys to values, and this file is empty"),
        ("- a\n", "1:1: a spec is a mapping of keys to values, and this file is a list"),
        ("text\n", "1:1: a spec is a mapping of keys to values, and this file is a single value"),
        ("name: a\n", "1:1: the key `kimbox` is missing (version of the format)"),
        ("kimbox: 1\n", "1:1: the key `name` is missing (name of the box)"),
        (
            "kimbox: 2\nname: a\n",
            "1:9: kimbox must be 1, the version of the format, not `2` (a newer kimbox may read it)",
        ),
        ("kimbox: true\nname: a\n", "1:9: kimbox must be 1"),
        ("kimbox: 1\nname: My Box\n", "2:7: `My Box` cannot be the name of a box"),
        ("kimbox: 1\nname: -a\n", "2:7: `-a` cannot be the name of a box"),
        ("kimbox: 1\nname: a\n---\nname: b\n", "3:1: a second document starts here"),
        ("%YAML 1.1\n---\nkimbox: 1\nname: a\n", "1:1: a spec is YAML 1.2 without directives"),
    ],
)
def test_a_whole_file_at_fault(tmp_path: Path, text: str, expected: str) -> None:
    """What is wrong with a file as such is told where it shows."""
    (tmp_path / "kimbox.yaml").write_text(text)
    found = faults(tmp_path / "kimbox.yaml")
    assert any(expected in line for line in found), found


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    """Faults of shape, of meaning and of a layer come together, in order of file and line."""
    (tmp_path / "low.yaml").write_text("kimbox: 1\ncpus: none\n")
    (tmp_path / "kimbox.yaml").write_text("kimbox: 1\nname: A\nbase: [low.yaml]\nboot: x\nmemory: 5\n")
    assert ["kimbox.yaml:2:7", "kimbox.yaml:4:7", "kimbox.yaml:5:9", "low.yaml:2:7"] == [
        line.split(": ")[0] for line in faults(tmp_path / "kimbox.yaml")
    ]


def test_a_layer_that_is_overridden_must_hold_too(tmp_path: Path) -> None:
    """A fault in a layer is told even if the spec replaces the value."""
    (tmp_path / "low.yaml").write_text("kimbox: 1\ncpus: none\n")
    (tmp_path / "kimbox.yaml").write_text("kimbox: 1\nname: a\nbase: [low.yaml]\ncpus: 2\n")
    assert ["low.yaml:2:7: cpus must be a whole number, not the text `none` (for example 2)"] == faults(
        tmp_path / "kimbox.yaml"
    )

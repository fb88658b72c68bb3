"""Every fault of a spec is reported with its line and column, its code and a hint."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.errors import Problem, SpecError
from kimbox.spec import rules
from kimbox.spec.load import load_box
from kimbox.spec.nodes import Fault

#: (name of the case, text of the spec after format and name, place, code). The text starts in line 3.
BAD = [
    ("unknown-key", "nmae: x", "3:1", "unknown-key"),
    ("unknown-key-below", "disk: {sise: 9GiB}", "3:8", "unknown-key"),
    ("unknown-key-unlike-any", "disk:\n  qqq: 1", "4:3", "unknown-key"),
    ("type", "cpus: many", "3:7", "wrong-type"),
    ("bool-is-no-number", "cpus: true", "3:7", "wrong-type"),
    ("float-is-no-number", "cpus: 2.0", "3:7", "wrong-type"),
    ("empty-value", "disk:", "3:1", "wrong-type"),
    ("cpus-range", "cpus: 257", "3:7", "out-of-range"),
    ("enum", "boot: resnp", "3:7", "bad-value"),
    ("decimal-size", "memory: 5GB", "3:9", "bad-size"),
    ("bare-size", "memory: 5", "3:9", "wrong-type"),
    ("bare-size-text", "memory: '512'", "3:9", "bad-size"),
    ("memory-small", "memory: 255MiB", "3:9", "out-of-range"),
    ("memory-large", "memory: 99999TiB", "3:9", "out-of-range"),
    ("zero-size", "disk: {volumes: {persistent: 0GiB}}", "3:30", "out-of-range"),
    ("too-full", "disk: {size: 13GiB, volumes: {root: 6GiB}}", "3:14", "disk-too-small"),
    ("group-hyphen", "disk: {volume_group: -vg}", "3:22", "bad-name"),
    ("group-dots", "disk: {volume_group: ..}", "3:22", "bad-name"),
    ("group-dev", "disk: {volume_group: mapper}", "3:22", "bad-name"),
    ("lv-reserved", "disk: {names: {root: snapshot1}}", "3:22", "bad-name"),
    ("lv-pvmove", "disk: {names: {root: pvmove0}}", "3:22", "bad-name"),
    ("lv-cdata", "disk: {names: {root: a_cdata}}", "3:22", "bad-name"),
    ("lv-twice", "disk: {names: {root: swap}}", "3:22", "duplicate"),
    ("lv-of-kept-root", "disk: {names: {root: s_kept, root_snap: s}}", "3:22", "duplicate"),
    ("keep-unknown", "resnap: {keep: everything}", "3:16", "bad-value"),
    ("snapshot-percent", "disk: {volumes: {root_snap: 50%ORIGIN}}", "3:29", "bad-size"),
    ("warm", "warm: maybe", "3:7", "wrong-type"),
    ("template-unknown", "template: {start: [a.service]}", "3:12", "unknown-key"),
    ("template-no-unit", "template: {stop: [postgresql]}", "3:19", "bad-name"),
    ("template-twice", "template: {stop: [a.service, a.service]}", "3:30", "duplicate"),
    ("scratch-no-size", "scratch: {mount: /staging}", "3:10", "missing-key"),
    ("scratch-bare", "scratch: 4GiB", "3:10", "wrong-type"),
    ("scratch-unknown", "scratch: {size: 4GiB, path: /x}", "3:23", "unknown-key"),
    ("scratch-size", "scratch: {size: 4GB}", "3:17", "bad-size"),
    ("scratch-small", "scratch: {size: 8MiB}", "3:17", "out-of-range"),
    ("scratch-relative", "scratch: {size: 4GiB, mount: staging}", "3:30", "bad-path"),
    ("scratch-run", "scratch: {size: 4GiB, mount: /run/x}", "3:30", "bad-path"),
    ("scratch-tmp", "scratch: {size: 4GiB, mount: /tmp}", "3:30", "bad-path"),
    ("scratch-on-tmp", "scratch: {size: 4GiB, mount: /tmp/x}", "3:30", "bad-path"),
    (
        "scratch-over-repository",
        "repositories: {a: {url: 'h:x', path: /opt/a/b}}\nscratch: {size: 4GiB, mount: /opt/a}",
        "4:30",
        "paths-overlap",
    ),
    (
        "repository-in-scratch",
        "repositories: {a: {url: 'h:x', path: /opt/a}}\nscratch: {size: 4GiB, mount: /opt/a/b}",
        "4:30",
        "paths-overlap",
    ),
    ("port-twice", "forwards: [{guest: 80}, {guest: 80}]", "3:33", "duplicate"),
    ("host-port-twice", "forwards: [{guest: 80, host: 8080}, {guest: 81, host: 8080}]", "3:55", "duplicate"),
    ("privileged-port", "forwards: [{guest: 80, host: 80}]", "3:30", "out-of-range"),
    ("port-range", "forwards: [{guest: 65536}]", "3:20", "out-of-range"),
    ("guest-port-text", "forwards: [{guest: any}]", "3:20", "bad-value"),
    ("auto-at-a-port", "forwards: [{guest: auto, host: 8080}]", "3:32", "conflicting-settings"),
    ("display-protocol", "display: spic", "3:10", "bad-value"),
    ("port-text", "forwards: [{guest: 80, host: any}]", "3:30", "bad-value"),
    ("repository-name", "repositories: {A: {url: ./x}}", "3:16", "bad-name"),
    ("timeout-of-what", "repositories: {a: {url: 'https://h.org/x', timeout: 1h}}", "3:53", "conflicting-settings"),
    ("no-url", "repositories:\n  a: {}", "4:6", "missing-key"),
    ("ext", "repositories: {a: {url: 'ext::sh -c x'}}", "3:25", "bad-url"),
    ("option-url", "repositories: {a: {url: --upload-pack=x}}", "3:25", "bad-url"),
    ("option-host", "repositories: {a: {url: 'ssh://-oProxyCommand=x/y'}}", "3:25", "bad-url"),
    ("option-scp", "repositories: {a: {url: 'h:-x'}}", "3:25", "bad-url"),
    ("scheme", "repositories: {a: {url: 'ftp://h/x'}}", "3:25", "bad-url"),
    ("secret", "repositories: {a: {url: 'https://me:hunter2@h.org/x'}}", "3:25", "secret-in-url"),
    ("token", "repositories: {a: {url: 'https://h.org/x?token=hunter2'}}", "3:25", "bad-url"),
    ("ssh-secret", "repositories: {a: {url: 'ssh://me:hunter2@h.org/x'}}", "3:25", "secret-in-url"),
    ("escape", "repositories: {a: {url: ../../etc}}", "3:25", "outside-spec-folder"),
    ("absolute", "repositories: {a: {url: /etc}}", "3:25", "bad-path"),
    ("no-folder", "repositories: {a: {url: ./nothing}}", "3:25", "file-not-found"),
    ("file-as-folder", "repositories: {a: {url: ./kimbox.yaml}}", "3:25", "bad-path"),
    ("folder-ref", "repositories: {a: {url: ., ref: main}}", "3:33", "conflicting-settings"),
    ("ref-option", "repositories: {a: {url: 'h:x', ref: -x}}", "3:37", "bad-ref"),
    ("ref-lock", "repositories: {a: {url: 'h:x', ref: a.lock}}", "3:37", "bad-ref"),
    ("path-relative", "repositories: {a: {url: 'h:x', path: opt}}", "3:38", "bad-path"),
    ("path-dots", "repositories: {a: {url: 'h:x', path: /opt/../a}}", "3:38", "bad-path"),
    ("path-dev", "repositories: {a: {url: 'h:x', path: /dev/a}}", "3:38", "bad-path"),
    ("path-persistent", "repositories: {a: {url: 'h:x', path: /persistent}}", "3:38", "bad-path"),
    ("path-system", "repositories: {a: {url: 'h:x', path: /usr}}", "3:38", "bad-path"),
    ("path-shell", "repositories: {a: {url: 'h:x', path: '/opt/$(x)'}}", "3:38", "bad-path"),
    (
        "path-same",
        "repositories: {a: {url: 'h:x', path: /opt/a}, b: {url: 'h:x', path: /opt/a}}",
        "3:69",
        "paths-overlap",
    ),
    (
        "path-nested",
        "repositories: {a: {url: 'h:x', path: /opt/a/b}, b: {url: 'h:x', path: /opt/a}}",
        "3:71",
        "paths-overlap",
    ),
    ("package-version", "image: {packages: [gcc=12]}", "3:20", "bad-name"),
    ("package-option", "image: {packages: [-qq]}", "3:20", "bad-name"),
    ("package-removal", "image: {packages: [gcc-]}", "3:20", "bad-name"),
    ("package-upper", "image: {packages: [GCC]}", "3:20", "bad-name"),
    ("package-twice", "image: {packages: [gcc, gcc]}", "3:25", "duplicate"),
    ("suite", "image: {suite: sid}", "3:16", "bad-value"),
    ("suite-of-other", "image: {suite: noble}", "3:16", "bad-value"),
    ("two-forms", "image: {location: a.img, suite: trixie, digest: 'sha256:%s'}" % ("0" * 64), "3:26", "unknown-key"),
    ("no-digest", "image: {location: a.img}", "3:8", "missing-key"),
    ("digest", "image: {location: a.img, digest: '%s'}" % ("A" * 64), "3:34", "bad-digest"),
    ("mirror-secret", "image: {mirror: 'http://u:hunter2@h/d'}", "3:17", "secret-in-url"),
    ("location-scheme", "image: {location: 'ftp://h/x', digest: 'sha256:%s'}" % ("0" * 64), "3:19", "bad-url"),
    ("docs-of-a-box", "image: {box: a/b, docs: true}", "3:19", "unknown-key"),
    ("docs-text", "image: {docs: yes}", "3:15", "wrong-type"),
    ("recommends-number", "image: {recommends: 1}", "3:21", "wrong-type"),
    ("step-twice", "provision: [{name: a, script: x}, {name: a, script: x}]", "3:42", "duplicate"),
    ("step-name", "provision: [{name: a b, script: x}]", "3:20", "bad-name"),
    (
        "uses-unknown",
        "repositories: {tool: {url: ./x}}\nprovision: [{name: a, script: x, uses: [tol]}]",
        "4:41",
        "unknown-repository",
    ),
    ("uses-none-there", "provision: [{name: a, script: x, uses: [tool]}]", "3:41", "unknown-repository"),
    (
        "uses-twice",
        "repositories: {tool: {url: ./x}}\nprovision: [{name: a, script: x, uses: [tool, tool]}]",
        "4:47",
        "duplicate",
    ),
    ("uses-null", "provision: [{name: a, script: x, uses: null}]", "3:40", "wrong-type"),
    ("uses-text", "provision: [{name: a, script: x, uses: b}]", "3:40", "wrong-type"),
    ("uses-number", "provision: [{name: a, script: x, uses: [1]}]", "3:41", "wrong-type"),
    ("no-script", "provision: [{name: a}]", "3:13", "missing-key"),
    ("empty-script", "provision: [{name: a, script: ''}]", "3:31", "empty-value"),
    ("blank-script", "provision: [{name: a, script: ' '}]", "3:31", "empty-value"),
    ("timeout", "provision: [{name: a, script: x, timeout: 5min}]", "3:43", "bad-duration"),
    ("timeout-long", "provision: [{name: a, script: x, timeout: 8d}]", "3:43", "out-of-range"),
    ("timeout-bare", "provision: [{name: a, script: x, timeout: 5}]", "3:43", "wrong-type"),
    ("probe-twice", "probes: [{description: a, script: x}, {description: a, script: x}]", "3:53", "duplicate"),
    ("duplicate-key", "cpus: 1\ncpus: 2", "4:1", "duplicate"),
    ("merge-key", "x: &x {a: 1}\n<<: *x", "4:1", "unsupported-yaml"),
    ("tag", "cpus: !!int 2", "3:7", "unsupported-yaml"),
    ("python-tag", "cpus: !!python/object/apply:os.system [x]", "3:7", "unsupported-yaml"),
    ("number-as-key", "repositories: {1: {url: 'h:x'}}", "3:16", "unsupported-yaml"),
    ("escape-sequence", 'description: "\\e[31m"', "3:14", "forbidden-character"),
    ("surrogate", 'description: "\\ud800"', "3:14", "forbidden-character"),
    ("no-anchor", "cpus: *nothing", "3:7", "bad-yaml"),
    ("indentation", "disk:\n\tsize: 5GiB", "4:1", "bad-yaml"),
    ("unclosed", "description: 'x", "4:1", "bad-yaml"),
    ("no-base", "base: [nothing.yaml]", "3:8", "file-not-found"),
    ("absolute-base", "base: [/etc/passwd]", "3:8", "bad-path"),
    ("base-escape", "base: [../../../etc/passwd]", "3:8", "outside-spec-folder"),
    ("base-itself", "base: [kimbox.yaml]", "3:8", "layer-cycle"),
]

#: The message and hint of some cases in BAD, by the name of the case: one of each kind.
MESSAGES = {
    "unknown-key": "unknown key `nmae` (did you mean name?)",
    "unknown-key-below": "unknown key `sise` in disk (did you mean size?)",
    "type": "cpus must be a whole number, not the text `many` (for example 2)",
    "bool-is-no-number": "cpus must be a whole number, not the truth value `true` (for example 2)",
    "empty-value": "disk must be a mapping, not empty (give it a value, or remove the key)",
    "cpus-range": "cpus must be from 1 to 256, not `257`",
    "enum": "boot must be resnap, keep or maintain, not `resnp` (did you mean resnap?)",
    "decimal-size": "`5GB` is not a size: write a number and KiB, MiB, GiB or TiB (did you mean 5GiB?)",
    "bare-size": "memory must be text, not the number `5` (a number and a binary unit, such as 512MiB or 5GiB)",
    "memory-small": "`255MiB` is too small: at least 256MiB",
    "memory-large": "`99999TiB` is too large: at most 2TiB",
    "too-full": (
        "the disk of 13GiB is too small: boot 256MiB + root 6GiB + persistent 2GiB + swap 512MiB "
        "+ root_snap 6148MiB + partition table and LVM 2MiB = 15110MiB (at least 15112MiB)"
    ),
    "group-hyphen": (
        "`-vg` cannot be the name of a volume group: use letters, digits and + _ . - , and no hyphen at the start"
    ),
    "group-dev": "`mapper` cannot be the name of a volume group: /dev/mapper exists",
    "lv-reserved": "`snapshot1` cannot be the name of a volume: LVM reserves names that start with snapshot",
    "lv-cdata": "`a_cdata` cannot be the name of a volume: LVM reserves names that contain _cdata",
    "lv-twice": "duplicate volume name `swap` (first in line 3)",
    "snapshot-percent": "`50%ORIGIN` is not a size of the snapshot: write 100%ORIGIN or a size such as 2GiB",
    "scratch-no-size": "scratch has no `size` (size of the scratch space)",
    "scratch-bare": (
        'scratch must be a mapping or null, not the text `4GiB` (for example {"size": "4GiB", "mount": "/staging"})'
    ),
    "scratch-relative": "`staging` is not an absolute path of the guest (for example /opt/staging)",
    "scratch-run": "`/run/x` is on /run, where no scratch space can be (for example /opt/NAME)",
    "scratch-tmp": "`/tmp` is a folder of the system (use a folder of its own: /staging)",
    "scratch-on-tmp": "`/tmp/x` is on /tmp, which is mounted later and would hide it (for example /staging)",
    "scratch-over-repository": (
        "`/opt/a` overlaps with `/opt/a/b`, the path of the repository `a` (give each a folder of its own)"
    ),
    "privileged-port": "forwards[0].host must be from 1024 to 65535, not `80` (ports below 1024 need root)",
    "port-range": "forwards[0].guest must be from 1 to 65535, not `65536`",
    "guest-port-text": "`any` is not a port: write auto, or a number from 1 to 65535",
    "auto-at-a-port": (
        "each port of `guest: auto` has the same number on the host, or another that is free (remove `host`)"
    ),
    "display-protocol": "display must be vnc, spice or null, not `spic` (did you mean spice?)",
    "port-text": "`any` is not a port: write auto, or a number from 1024 to 65535",
    "repository-name": (
        "`A` cannot be the name of a repository: use lower-case letters, digits and hyphens, at "
        "most 63, and no hyphen at the start"
    ),
    "timeout-of-what": (
        "`timeout` has no effect here: kimbox runs no script of the repository a (only setup has a timeout)"
    ),
    "ext": "`ext::sh -c x` names a transport that runs commands (use https, ssh or git)",
    "option-url": "`--upload-pack=x` starts with a hyphen, so that programs would read it as an option",
    "option-host": "`ssh://-oProxyCommand=x/y` does not name a host",
    "option-scp": "`h:-x` is not user@host:path",
    "scheme": "ftp:// is not supported here (use https, http, ssh, git or file)",
    "secret": (
        "this URL contains a user name or password (write https://h.org/x; keep credentials in "
        "~/.netrc or a git credential helper, and never in a spec)"
    ),
    "token": (
        "a repository URL cannot have a query (?) or a fragment (#) (keep credentials in "
        "~/.netrc or a git credential helper, and never in a spec)"
    ),
    "ssh-secret": (
        "this URL contains a password (keep credentials in ~/.netrc or a git credential helper, and never in a spec)"
    ),
    "escape": ("`../../etc` is outside of the folder of the spec (move the folder into the folder of the spec)"),
    "absolute": (
        "`/etc` is an absolute path; the path of a folder is relative to the file that names it "
        "(for a git repository of this machine, write `file:///etc`)"
    ),
    "no-folder": ("folder `./nothing` not found (it is looked up beside this file, then among the shipped boxes)"),
    "file-as-folder": "`./kimbox.yaml` is not a folder (name a folder, or a git URL such as https://...)",
    "folder-ref": "a folder has no ref (remove it: the lock pins the content of the folder)",
    "ref-option": "`-x` is not a branch, a tag or a commit (see git check-ref-format(1))",
    "path-dots": "`/opt/../a` is not in its simplest form (write /a)",
    "path-dev": "`/dev/a` is on /dev, where no repository can be (for example /opt/NAME)",
    "path-shell": (
        "`/opt/$(x)` has characters that are not allowed in a path of the guest: use letters, digits and . _ + @ -"
    ),
    "path-same": "`/opt/a` is also the path of the repository `a` (give each a folder of its own)",
    "path-nested": (
        "`/opt/a` is nested with `/opt/a/b`, the path of the repository `a` (give each a folder of its own)"
    ),
    "package-version": "`gcc=12` names a version (write gcc: the lock has the version that the mirror offers)",
    "package-option": (
        "`-qq` is not the name of a package: use lower-case letters, digits and + . - , at least "
        "two, with a letter or digit at the start"
    ),
    "package-removal": "`gcc-` ends with a hyphen: apt would remove the package",
    "suite": "image.suite must be trixie, bookworm, noble or jammy, not `sid`",
    "suite-of-other": "debian has no suite `noble` (there are: trixie, bookworm)",
    "no-digest": "image has no `digest` (digest of the image)",
    "digest": (
        "`AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA...` is not a digest: "
        "write sha256: and 64 lower-case hex digits (write "
        "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa)"
    ),
    "step-name": (
        "`a b` cannot be the name of a step: use lower-case letters, digits and . _ - , at most "
        "63, with a letter or digit at the start"
    ),
    "uses-unknown": "the spec has no repository `tol` (did you mean tool?)",
    "uses-null": "provision[0].uses must be a list, not empty (give it a value, or remove the key)",
    "uses-number": 'provision[0].uses[0] must be text, not the number `1` (put it in quotes: "1")',
    "empty-script": "provision[0].script cannot be empty",
    "blank-script": "a script cannot be empty",
    "timeout": "`5min` is not a duration: write a whole number and s, m, h or d",
    "timeout-long": "`8d` is out of range: from 1s to 7d",
    "timeout-bare": (
        "provision[0].timeout must be text, not the number `5` (a number and a unit (s, m, h or d), such as 90s or 36h)"
    ),
    "duplicate-key": "duplicate key `cpus` (first in line 3)",
    "merge-key": "merge keys (<<) are not supported (put the shared part into a layer: base:)",
    "tag": "tags such as `tag:yaml.org,2002:int` are not allowed (write the plain value)",
    "number-as-key": "a key must be text (put it in quotes)",
    "escape-sequence": "the character U+001B is not allowed in this file",
    "no-anchor": "the anchor `&nothing` is not defined above",
    "indentation": (
        "not valid YAML: found character '\\\\t' that cannot start any token, while sca... (indent "
        "with spaces, not tabs)"
    ),
    "unclosed": "not valid YAML: found unexpected end of stream, while scanning a quoted scal...",
    "no-base": ("layer `nothing.yaml` not found (it is looked up beside this file, then among the shipped boxes)"),
    "absolute-base": "`/etc/passwd` is an absolute path; the path of a layer is relative to the file that names it",
    "base-itself": "the layer `kimbox.yaml` includes itself",
}


def problems_of(path: Path) -> list[Problem]:
    """Returns the problems that load_box reports for a spec."""
    with pytest.raises(SpecError) as caught:
        load_box(path)
    return caught.value.problems


def places(problems: list[Problem]) -> list[str]:
    """Returns each problem as file name, line, column and code."""
    return [f"{Path(p.file).name}:{p.line}:{p.column} {p.code}" for p in problems]


@pytest.mark.parametrize(("name", "content", "place", "code"), BAD, ids=[case[0] for case in BAD])
def test_a_fault_is_reported_at_its_place(tmp_path: Path, name: str, content: str, place: str, code: str) -> None:
    """One of the problems has the expected line, column and code. No message contains a secret."""
    (tmp_path / "kimbox.yaml").write_text(f"kimbox: 1\nname: a\n{content}\n")
    problems = problems_of(tmp_path / "kimbox.yaml")
    assert f"kimbox.yaml:{place} {code}" in places(problems)
    assert not any("hunter2" in str(problem) for problem in problems)
    if name in MESSAGES:
        assert f"{tmp_path}/kimbox.yaml:{place}: {MESSAGES[name]}" in map(str, problems)


def test_every_message_is_of_a_case() -> None:
    """Every name in the messages is the name of a case."""
    assert set() == set(MESSAGES) - {case[0] for case in BAD}


@pytest.mark.parametrize(
    ("text", "place", "code", "message"),
    [
        ("", "1:1", "not-a-mapping", "this file is empty (`kimbox init` writes a spec to start from)"),
        ("# nothing\n", "1:1", "not-a-mapping", "this file is empty"),
        ("---\n", "2:1", "not-a-mapping", "a spec is a mapping of keys to values, and this file is empty"),
        ("- a\n", "1:1", "not-a-mapping", "a spec is a mapping of keys to values, and this file is a list"),
        ("text\n", "1:1", "not-a-mapping", "a spec is a mapping of keys to values, and this file is a single value"),
        ("name: a\n", "1:1", "missing-key", "the key `kimbox` is missing (version of the format)"),
        ("kimbox: 1\n", "1:1", "missing-key", "the key `name` is missing (name of the box)"),
        (
            "kimbox: 2\nname: a\n",
            "1:9",
            "unsupported-format",
            "kimbox must be 1, the version of the format, not `2` (a newer kimbox may read it)",
        ),
        ("kimbox: true\nname: a\n", "1:9", "unsupported-format", "kimbox must be 1"),
        ("kimbox: 1\nname: My Box\n", "2:7", "bad-name", "`My Box` cannot be the name of a box: use lower-case"),
        ("kimbox: 1\nname: -a\n", "2:7", "bad-name", "`-a` cannot be the name of a box"),
        ("kimbox: 1\nname: a\n---\nname: b\n", "3:1", "unsupported-yaml", "a second document starts here"),
        ("%YAML 1.1\n---\nkimbox: 1\nname: a\n", "1:1", "unsupported-yaml", "only YAML 1.2 without directives"),
    ],
)
def test_a_fault_of_the_whole_file(tmp_path: Path, text: str, place: str, code: str, message: str) -> None:
    """A fault without a single value has a place too."""
    (tmp_path / "kimbox.yaml").write_text(text)
    problems = problems_of(tmp_path / "kimbox.yaml")
    assert f"kimbox.yaml:{place} {code}" in places(problems)
    assert any(f"{place}: {message}" in str(problem) for problem in problems), problems


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    """Faults of types, of values and of a layer are reported together, in the order of file and line."""
    (tmp_path / "low.yaml").write_text("kimbox: 1\ncpus: none\n")
    (tmp_path / "kimbox.yaml").write_text("kimbox: 1\nname: A\nbase: [low.yaml]\nboot: x\nmemory: 5\n")
    assert [
        "kimbox.yaml:2:7 bad-name",
        "kimbox.yaml:4:7 bad-value",
        "kimbox.yaml:5:9 wrong-type",
        "low.yaml:2:7 wrong-type",
    ] == places(problems_of(tmp_path / "kimbox.yaml"))


def test_a_layer_must_be_valid_even_if_it_is_overridden(tmp_path: Path) -> None:
    """A fault in a layer is reported even if the spec replaces the value."""
    (tmp_path / "low.yaml").write_text("kimbox: 1\ncpus: none\n")
    (tmp_path / "kimbox.yaml").write_text("kimbox: 1\nname: a\nbase: [low.yaml]\ncpus: 2\n")
    assert ["low.yaml:2:7 wrong-type"] == places(problems_of(tmp_path / "kimbox.yaml"))


@pytest.mark.parametrize("number", ["1.10", "0x1F", "1e3", "007"])
def test_a_number_is_shown_as_it_is_written(tmp_path: Path, number: str) -> None:
    """1.10 is the number 1.1, but another tag. The hint can be pasted."""
    spec = tmp_path / "kimbox.yaml"
    spec.write_text(f"kimbox: 1\nname: a\nrepositories: {{a: {{url: 'https://example.org/a', ref: {number}}}}}\n")
    with pytest.raises(SpecError) as caught:
        load_box(spec)
    (problem,) = caught.value.problems
    assert f"not the number `{number}`" in problem.message
    assert f'put it in quotes: "{number}"' == problem.hint


@pytest.mark.parametrize("folder", sorted(rules.SYSTEM_FOLDERS))
def test_the_example_for_a_folder_of_the_system_is_accepted(folder: str) -> None:
    """For scratch space and for a repository."""
    for rule, example in ((rules.mount_point, "/staging"), (rules.guest_path, "/opt/NAME")):
        with pytest.raises(Fault) as caught:
            rule(folder)
        assert example in str(caught.value.hint)
        assert example == rule(example)

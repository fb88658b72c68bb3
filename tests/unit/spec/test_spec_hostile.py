"""Files made to hurt are refused quickly, in bounded memory, in words."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from kimbox import run
from kimbox.errors import SpecError
from kimbox.spec.load import load_box
from kimbox.spec.parse import MAX_BYTES, MAX_NODES

#: Longest time of the processor that a refusal may take, in seconds. The slowest takes 0.5 s.
PATIENCE_S = 5

#: Address space of a process that reads them, Python and its libraries included.
MEMORY_BYTES = 160 << 20

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + below] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)

ALIASES = "\n".join(f"a{i}: &a{i} {'[' * 20}{f'*a{i - 1}' if i else ''}{']' * 20}" for i in range(9))

HOSTILE = [
    ("bomb", LAUGHS, "has more than 50000 nodes"),
    ("recursion", "a: &a [*a]\n", "stands inside its own anchor"),
    ("recursion-in-key", "a: &a {b: {c: *a}}\n", "stands inside its own anchor"),
    ("many-nodes", "a:\n" + "- 1\n" * (MAX_NODES + 1), "has more than 50000 nodes"),
    ("deep-list", "[" * 5000, "nested more than 50 levels deep"),
    ("deep-mapping", "{" * 5000, "nested more than 50 levels deep"),
    ("deep-dashes", "- " * 5000, "nested more than 50 levels deep"),
    ("deep-keys", "? " * 5000, "nested more than 50 levels deep"),
    ("deep-block", "".join(" " * level + "a:\n" for level in range(1000)), "nested more than 50 levels deep"),
    ("deep-by-alias", ALIASES, "nested more than 50 levels deep"),
    ("long-tag", "!" * 500_000, "line is longer than 65536 characters"),
    ("long-line", "a: " + "x" * 500_000, "line is longer than 65536 characters"),
    ("long-number", "cpus: " + "9" * 60_000, "a number has at most 18 digits"),
    ("comments", "#\n" * (MAX_BYTES // 2), "this file is empty"),
    ("blank", "\n" * MAX_BYTES, "this file is empty"),
    ("open-quote", 'a: "' + "x\n" * (MAX_BYTES // 4), "not valid YAML"),
    ("documents", "---\n" * (MAX_BYTES // 4), "a second document starts here"),
    ("many-unknown", "".join(f"nam{i}: 1\n" for i in range(20_000)), "unknown key `nam0`"),
    ("long-key", "k" * 60_000 + ": 1", "not valid YAML"),
    ("huge-key", '? "' + "k" * 60_000 + '"\n: 1', "unknown key `kkkk"),
    ("bad-escape", 'a: "\\UFFFFFFFF"', "not valid YAML"),
]  # fmt: skip

BYTES = [
    ("nul", b"kimbox: 1\nname: a\0b\n", "kimbox.yaml:2:8: a NUL byte has no place in a spec"),
    ("escape", b"kimbox: 1\nname: \x1b[31m\n", "kimbox.yaml:2:7: the character U+001B has no place in a spec"),
    ("latin-1", "kimbox: 1\nname: é\n".encode("latin-1"), "kimbox.yaml:2:7: byte 0xe9 is not UTF-8 (save it as UTF-8)"),
    (
        "utf-16",
        "kimbox: 1".encode("utf-16"),
        "kimbox.yaml:1:1: this file is written in UTF-16 (save it as plain UTF-8)",
    ),
    (
        "utf-32",
        "kimbox: 1".encode("utf-32"),
        "kimbox.yaml:1:1: this file is written in UTF-32 (save it as plain UTF-8)",
    ),
    ("bom", b"\xef\xbb\xbfkimbox: 1", "kimbox.yaml:1:1: this file is written in UTF-8 with a byte order mark"),
    ("line-separator", "kimbox: 1\nname: a\u2028b\n".encode(), "kimbox.yaml:2:8: the character U+2028 has no place"),
    ("surrogate", b"kimbox: 1\nname: \xed\xa0\x80\n", "kimbox.yaml:2:7: byte 0xed is not UTF-8"),
    ("too-large", b"#" * (MAX_BYTES + 1), "kimbox.yaml:1:1: this file is larger than 1 MiB, so it is no spec"),
]


def refused(path: Path) -> str:
    """What is said against a spec, without the name of its folder. Fails if that takes too long."""
    started = time.process_time()  # a busy machine delays it, and makes it no slower
    with pytest.raises(SpecError) as caught:
        load_box(path)
    assert time.process_time() - started < PATIENCE_S
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.mark.cpu_time
@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_hostile_yaml(tmp_path: Path, text: str, expected: str) -> None:
    """It is refused in time, with few words."""
    (tmp_path / "kimbox.yaml").write_text(text)
    told = refused(tmp_path / "kimbox.yaml")
    assert expected in told
    assert max(map(len, told.splitlines())) < 400
    assert len(told.splitlines()) <= 200


@pytest.mark.parametrize(("data", "expected"), [case[1:] for case in BYTES], ids=[case[0] for case in BYTES])
def test_hostile_bytes(tmp_path: Path, data: bytes, expected: str) -> None:
    """What is not a small text in UTF-8 is called by its name."""
    (tmp_path / "kimbox.yaml").write_bytes(data)
    assert refused(tmp_path / "kimbox.yaml").startswith(expected)


def told_in_little_memory(*specs: Path) -> list[str]:
    """What a process says that loads specs, and may not have more than MEMORY_BYTES."""
    code = (
        "import resource, sys; from pathlib import Path; from kimbox.errors import SpecError\n"
        "from kimbox.spec.load import load_box\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))\n"
        "for name in sys.argv[1:]:\n"
        "    try: load_box(Path(name))\n"
        "    except SpecError as error: print(error.problems[0])\n"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    done = run.run([sys.executable, "-c", code, *specs], env={"PYTHONPATH": path}, timeout_s=60)
    return done.stdout.splitlines()


def test_memory_is_bounded(tmp_path: Path) -> None:
    """The worst of them take little memory."""
    chosen = [case for case in HOSTILE if case[0] in ("bomb", "many-nodes", "many-unknown", "open-quote")]
    for name, text, _ in chosen:
        (tmp_path / name).write_text(text)
    told = told_in_little_memory(*(tmp_path / name for name, _, _ in chosen))
    assert [True] * 4 == [expected in line for line, (_, _, expected) in zip(told, chosen, strict=True)]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """100 MB and 1 TB are refused without being read."""
    specs = [tmp_path / "small", tmp_path / "large"]
    for spec, size in zip(specs, (100 << 20, 1 << 40), strict=True):
        with spec.open("wb") as file:
            file.truncate(size)
    assert [f"{spec}:1:1: this file is larger than 1 MiB, so it is no spec" for spec in specs] == told_in_little_memory(
        *specs
    )


def test_what_is_no_file(tmp_path: Path) -> None:
    """Folders, FIFOs, loops of links, missing and impossible names are told apart, and none of them blocks."""
    spec = tmp_path / "kimbox.yaml"
    assert refused(spec) == "kimbox.yaml:1:1: there is no such file"
    spec.symlink_to("kimbox.yaml")
    assert refused(spec) == "kimbox.yaml:1:1: this is a loop of symbolic links"
    spec.unlink()
    os.mkfifo(spec)
    assert refused(spec) == "kimbox.yaml:1:1: this is not a regular file"
    spec.unlink()
    spec.mkdir()
    assert refused(spec) == "kimbox.yaml:1:1: this is a folder, not a file"
    assert "there is no such file" in refused(spec / "kimbox.yaml" / "below")
    assert "this file name is too long" in refused(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    """A file that may not be read says so."""
    (tmp_path / "kimbox.yaml").touch(mode=0o000)
    assert refused(tmp_path / "kimbox.yaml") == "kimbox.yaml:1:1: this file may not be read by you"


@pytest.mark.cpu_time
def test_hostile_layers_share_one_budget(tmp_path: Path) -> None:
    """Layers that each are small enough are refused together."""
    for index in range(4):
        items = "".join(f"  - p{index}x{i}\n" for i in range(15_000))
        (tmp_path / f"{index}.yaml").write_text(f"kimbox: 1\nimage:\n packages:\n{items}")
    (tmp_path / "kimbox.yaml").write_text("kimbox: 1\nname: a\nbase: [0.yaml, 1.yaml, 2.yaml, 3.yaml]\n")
    assert "3.yaml:" in refused(tmp_path / "kimbox.yaml")

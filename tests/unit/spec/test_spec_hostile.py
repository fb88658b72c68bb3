"""Hostile files are refused quickly and in bounded memory, with a code and a short message."""

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

#: Maximum CPU time of a refusal, in seconds. The slowest one takes 4 s on a slow host. What explodes takes hours.
PATIENCE_S = 15

#: Maximum address space of a process that reads them, including Python and its libraries.
MEMORY_BYTES = 160 << 20

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + below] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)

ALIASES = "\n".join(f"a{i}: &a{i} {'[' * 20}{f'*a{i - 1}' if i else ''}{']' * 20}" for i in range(9))

HOSTILE = [
    ("bomb", LAUGHS, "too-complex", "has more than 50000 nodes"),
    ("recursion", "a: &a [*a]\n", "bad-yaml", "is inside its own anchor"),
    ("recursion-in-key", "a: &a {b: {c: *a}}\n", "bad-yaml", "is inside its own anchor"),
    ("many-nodes", "a:\n" + "- 1\n" * (MAX_NODES + 1), "too-complex", "has more than 50000 nodes"),
    ("deep-list", "[" * 5000, "too-complex", "nested more than 50 levels deep"),
    ("deep-mapping", "{" * 5000, "too-complex", "nested more than 50 levels deep"),
    ("deep-dashes", "- " * 5000, "too-complex", "nested more than 50 levels deep"),
    ("deep-keys", "? " * 5000, "too-complex", "nested more than 50 levels deep"),
    ("deep-block", "".join(" " * level + "a:\n" for level in range(1000)), "too-complex", "more than 50 levels deep"),
    ("deep-by-alias", ALIASES, "too-complex", "nested more than 50 levels deep"),
    ("long-tag", "!" * 500_000, "too-complex", "line is longer than 65536 characters"),
    ("long-line", "a: " + "x" * 500_000, "too-complex", "line is longer than 65536 characters"),
    ("long-number", "cpus: " + "9" * 60_000, "too-complex", "a number has at most 18 digits"),
    ("comments", "#\n" * (MAX_BYTES // 2), "not-a-mapping", "this file is empty"),
    ("blank", "\n" * MAX_BYTES, "not-a-mapping", "this file is empty"),
    ("open-quote", 'a: "' + "x\n" * (MAX_BYTES // 4), "bad-yaml", "not valid YAML"),
    ("documents", "---\n" * (MAX_BYTES // 4), "unsupported-yaml", "a second document starts here"),
    ("many-unknown", "".join(f"nam{i}: 1\n" for i in range(20_000)), "unknown-key", "unknown key `nam0`"),
    ("long-key", "k" * 60_000 + ": 1", "bad-yaml", "not valid YAML"),
    ("huge-key", '? "' + "k" * 60_000 + '"\n: 1', "unknown-key", "unknown key `kkkk"),
    ("bad-escape", 'a: "\\UFFFFFFFF"', "bad-yaml", "not valid YAML"),
]  # fmt: skip

BYTES = [
    (
        "nul",
        b"kimbox: 1\nname: a\0b\n",
        "forbidden-character",
        "kimbox.yaml:2:8: a NUL byte is not allowed in this file",
    ),
    (
        "escape",
        b"kimbox: 1\nname: \x1b[31m\n",
        "forbidden-character",
        "kimbox.yaml:2:7: the character U+001B is not allowed in this file",
    ),
    (
        "latin-1",
        "kimbox: 1\nname: é\n".encode("latin-1"),
        "bad-encoding",
        "kimbox.yaml:2:7: byte 0xe9 is not UTF-8 (save it as UTF-8)",
    ),
    (
        "utf-16",
        "kimbox: 1".encode("utf-16"),
        "bad-encoding",
        "kimbox.yaml:1:1: this file is written in UTF-16 (save it as plain UTF-8)",
    ),
    (
        "utf-32",
        "kimbox: 1".encode("utf-32"),
        "bad-encoding",
        "kimbox.yaml:1:1: this file is written in UTF-32 (save it as plain UTF-8)",
    ),
    (
        "bom",
        b"\xef\xbb\xbfkimbox: 1",
        "bad-encoding",
        "kimbox.yaml:1:1: this file is written in UTF-8 with a byte order mark",
    ),
    (
        "line-separator",
        "kimbox: 1\nname: a\u2028b\n".encode(),
        "forbidden-character",
        "kimbox.yaml:2:8: the character U+2028 is not allowed",
    ),
    ("surrogate", b"kimbox: 1\nname: \xed\xa0\x80\n", "bad-encoding", "kimbox.yaml:2:7: byte 0xed is not UTF-8"),
    (
        "too-large",
        b"#" * (MAX_BYTES + 1),
        "file-too-large",
        "kimbox.yaml:1:1: this file is larger than 1 MiB, the maximum for a spec or lock",
    ),
]


def refused(path: Path) -> SpecError:
    """Returns the error of a spec. Fails if it exceeds the limit of CPU time."""
    started = time.process_time()  # a busy host does not change the CPU time
    with pytest.raises(SpecError) as caught:
        load_box(path)
    assert time.process_time() - started < PATIENCE_S
    return caught.value


def message(error: SpecError, folder: Path) -> str:
    """Returns the text of an error without the name of its folder."""
    return str(error).replace(f"{folder}/", "")


@pytest.mark.cpu_time
@pytest.mark.parametrize(("text", "code", "words"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_hostile_yaml(tmp_path: Path, text: str, code: str, words: str) -> None:
    """It is refused within the limit, with a short message."""
    (tmp_path / "kimbox.yaml").write_text(text)
    error = refused(tmp_path / "kimbox.yaml")
    assert code in [problem.code for problem in error.problems if words in problem.message]
    lines = message(error, tmp_path).splitlines()
    assert max(map(len, lines)) < 400
    assert len(lines) <= 200


@pytest.mark.parametrize(("data", "code", "text"), [case[1:] for case in BYTES], ids=[case[0] for case in BYTES])
def test_hostile_bytes(tmp_path: Path, data: bytes, code: str, text: str) -> None:
    """The error has the reason why the file is not a small UTF-8 text."""
    (tmp_path / "kimbox.yaml").write_bytes(data)
    error = refused(tmp_path / "kimbox.yaml")
    assert ["bad-spec", code] == [error.code, error.problems[0].code]
    assert message(error, tmp_path).startswith(text)


def refused_in_little_memory(*specs: Path) -> list[str]:
    """Loads specs in a process that has at most MEMORY_BYTES. Returns the first problem of each."""
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
    """The specs with the greatest need of memory stay within the limit."""
    chosen = [case for case in HOSTILE if case[0] in ("bomb", "many-nodes", "many-unknown", "open-quote")]
    for name, text, *_ in chosen:
        (tmp_path / name).write_text(text)
    lines = refused_in_little_memory(*(tmp_path / case[0] for case in chosen))
    assert [True] * 4 == [case[3] in line for line, case in zip(lines, chosen, strict=True)]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """Files of 100 MB and 1 TB are refused and not read."""
    specs = [tmp_path / "small", tmp_path / "large"]
    for spec, size in zip(specs, (100 << 20, 1 << 40), strict=True):
        with spec.open("wb") as file:
            file.truncate(size)
    assert [
        f"{spec}:1:1: this file is larger than 1 MiB, the maximum for a spec or lock" for spec in specs
    ] == refused_in_little_memory(*specs)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    """Folders, FIFOs, loops of links, missing and invalid names have different messages. None of them blocks."""

    def check(path: Path, code: str, text: str) -> None:
        error = refused(path)
        assert (code, f"{path}:1:1: {text}") == (error.problems[0].code, str(error))

    spec = tmp_path / "kimbox.yaml"
    check(spec, "file-not-found", "there is no such file")
    spec.symlink_to("kimbox.yaml")
    check(spec, "file-unreadable", "this is a loop of symbolic links")
    spec.unlink()
    os.mkfifo(spec)
    check(spec, "not-a-regular-file", "this is not a regular file")
    spec.unlink()
    spec.mkdir()
    check(spec, "file-unreadable", "this is a folder, not a file (name the file in it)")
    check(spec / "kimbox.yaml" / "below", "file-not-found", "there is no such file")
    check(tmp_path / ("x" * 300), "file-unreadable", "this file name is too long")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    """A file without permission to read has a message of its own."""
    (tmp_path / "kimbox.yaml").touch(mode=0o000)
    error = refused(tmp_path / "kimbox.yaml")
    assert ("file-unreadable", "you have no permission to read this file") == (
        error.problems[0].code,
        error.problems[0].message,
    )


@pytest.mark.cpu_time
def test_hostile_layers_share_one_budget(tmp_path: Path) -> None:
    """Layers are refused if their total size exceeds the limit, also if each layer is small enough."""
    for index in range(4):
        items = "".join(f"  - p{index}x{i}\n" for i in range(15_000))
        (tmp_path / f"{index}.yaml").write_text(f"kimbox: 1\nimage:\n packages:\n{items}")
    (tmp_path / "kimbox.yaml").write_text("kimbox: 1\nname: a\nbase: [0.yaml, 1.yaml, 2.yaml, 3.yaml]\n")
    assert [("3.yaml", "too-complex")] == [
        (Path(p.file).name, p.code) for p in refused(tmp_path / "kimbox.yaml").problems
    ]

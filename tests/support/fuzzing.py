"""Runs a parser on many changed inputs, in a child process with limits, and reports what is not a result or an error.

Every input follows from the random seed, the name of the parser and a number, so that one input can be made again.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

import kimbox
from kimbox.errors import KimboxError

#: Limits for one input: processor time in seconds; and for all: memory beyond what the process has at its start.
CPU_S = 5.0
MEMORY_BYTES = 512 << 20

#: Maximum number of different faults that are reported of a parser.
MAX_FAULTS = 5

#: Maximum number of inputs of a parser that fail, also if they have the same fault.
MAX_FAILURES = 50

#: Maximum size of an input, in bytes.
MAX_INPUT_BYTES = 1 << 20

#: Numbers at which code that counts or allocates goes wrong.
NUMBERS = [0, 1, 2, 7, 8, 12, 127, 128, 255, 256, 511, 512, 4095, 4096, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF,
           0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip

#: Texts that have a meaning for some reader: a terminal, a shell, YAML, paths, URLs, Unicode.
WORDS = [b"\0", b"\n", b"\r", b"\t", b" ", b"\x1b[2J", b"\x9b", b"\xff", b"\xc3\x28", "\u2028\u202e\ufeff".encode(),
         b"..", b"../", b"/", b"//", b"-", b"--", b"~", b"$(x)", b"`x`", b";", b"|", b"!", b"*", b"%00", b"%2e%2e/",
         b"::", b"://", b"@", b"#", b"?", b"[", b"]", b"{", b"}", b'"', b"'", b"\\", b":", b": ", b",", b"=", b"&a ",
         b"*a", b"<<: ", b"!!", b"- ", b"true", b"null", b"NaN", b"1e999", b"9" * 5000, b"-1", b"0x", b"\xe2\x88\x9e",
         "\u0661\u00b2".encode()]  # fmt: skip


_KIMBOX = f"{Path(kimbox.__file__).parent}/"


@attrs.frozen
class Parser:
    """A parser under test.

    `seeds` returns small valid inputs; its folder is empty. `call` parses one input in a folder that it may write to.
    `fix` corrects checksums of a changed input, so that the parser reads on. `words` are texts of the format. `hot` are
    the ranges of a seed that are changed most often; None for all of it.
    """

    name: str
    seeds: Callable[[Path], list[bytes]]
    call: Callable[[bytes, Path], object]
    fix: Callable[[bytes], bytes] | None = None
    words: tuple[bytes, ...] = ()
    hot: tuple[tuple[int, int], ...] | None = None
    #: Whether the input is JSON, whose values are changed, too.
    is_json: bool = False
    #: Exceptions of the parser's own, besides KimboxError, that its callers catch.
    errors: tuple[type[Exception], ...] = ()
    #: Part of the number of inputs, for a parser that is slower than the others.
    share: float = 1.0


@attrs.frozen
class Fault:
    """An input that a parser can neither read nor refuse. `number` is that of the input."""

    number: int
    what: str


def make_input(parser: Parser, seeds: list[bytes], seed: int, number: int) -> bytes:
    """Returns an input. The first ones are the seeds themselves."""
    if number < len(seeds):
        return seeds[number]
    rng = random.Random(f"{seed}/{parser.name}/{number}")  # noqa: S311 - not for secrets
    data = rng.choice(seeds)
    if parser.is_json and rng.random() < 0.7:
        data = json.dumps(_changed_value(rng, json.loads(data)), ensure_ascii=rng.random() < 0.5).encode(
            errors="surrogatepass"
        )
        if rng.random() < 0.8:
            return data
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        data = _changed(rng, data, parser, seeds)
    data = data[:MAX_INPUT_BYTES]
    return parser.fix(data) if parser.fix and rng.random() < 0.9 else data


def _changed(rng: random.Random, data: bytes, parser: Parser, seeds: list[bytes]) -> bytes:
    """Returns the data with one change."""
    low, high = rng.choice(parser.hot) if parser.hot and rng.random() < 0.9 else (0, len(data))
    high = min(high, len(data))
    low = min(low, max(high - 1, 0))
    at = rng.randrange(low, high) if high > low else 0
    end = min(len(data), at + rng.choice((1, 2, 4, 8, 64, 512)))
    match rng.randrange(10 if parser.words or not parser.hot else 8):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8) if data else 0]) + data[at + 1 :]
        case 1 | 2:
            width, sign = rng.choice(("B", "H", "I", "Q")), rng.choice("<>")
            size = struct.calcsize(sign + width)
            value = (rng.choice(NUMBERS) + rng.choice((0, 0, 1, -1))) % (1 << 8 * size)
            return data[:at] + struct.pack(sign + width, value) + data[at + size :]
        case 3:
            return data[:at] + rng.randbytes(end - at) + data[end:]
        case 4:
            return data[:at] + data[end:] if not parser.hot else data[:at] + bytes(end - at) + data[end:]
        case 5:
            return data[:at]
        case 6:
            other = rng.choice(seeds)
            start = rng.randrange(len(other)) if other else 0
            return data[:at] + other[start : start + end - at] + data[end:]
        case 7:
            return data[:at] + data[at:end] * rng.choice((2, 3, 50)) + data[end:]
        case _:
            word = rng.choice(parser.words) if parser.words and rng.random() < 0.6 else rng.choice(WORDS)
            return data[:at] + word * rng.choice((1, 1, 1, 2, 300)) + data[rng.choice((at, end)) :]


def _changed_value(rng: random.Random, value: Any) -> Any:
    """Returns a JSON value with one change somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        if rng.random() < 0.1:
            return value | {_odd_text(rng): value[key]}
        return value | {key: _changed_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        index = rng.randrange(len(value))
        if rng.random() < 0.15:
            return value * rng.choice((0, 2, 30))
        return [*value[:index], _changed_value(rng, value[index]), *value[index + 1 :]]
    odd = [
        None,
        True,
        0,
        -1,
        1.5,
        rng.choice(NUMBERS),
        -(1 << 70),
        float("inf"),
        float("nan"),
        "",
        [],
        {},
        [[]],
        {"": 0},
    ]
    if isinstance(value, str) and rng.random() < 0.6:
        at = rng.randrange(len(value) + 1)
        return value[:at] + _odd_text(rng) + value[rng.choice((at, len(value))) :]
    return rng.choice([*odd, _odd_text(rng), [value] * 3, {"a": value}])


def _odd_text(rng: random.Random) -> str:
    return (rng.choice(WORDS) * rng.choice((1, 1, 2, 100))).decode(errors="surrogateescape")


def fuzz(parser: Parser, seed: int, count: int, only: int | None = None) -> list[Fault]:
    """Runs a parser on `count` inputs, or on the input `only`. Returns the faults, each kind once."""
    faults: list[Fault] = []
    work = Path(tempfile.mkdtemp(prefix="kb-fuzz-"))
    try:
        (work / "seeds").mkdir()
        seeds = parser.seeds(work / "seeds")
        assert seeds
        position = mmap.mmap(-1, 8)
        start, end = (0, count) if only is None else (only, only + 1)
        failures = 0
        while start < end and len(faults) < MAX_FAULTS and failures < MAX_FAILURES:
            report = work / "report"
            report.unlink(missing_ok=True)
            pid = os.fork()
            if not pid:
                _child(parser, seeds, seed, range(start, end), work, position)
            _, status = os.waitpid(pid, 0)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                break
            number = int.from_bytes(position[:8], "little")
            what = report.read_text() if report.exists() else _end_of(status)
            if what.partition(": ")[0] not in {fault.what.partition(": ")[0] for fault in faults}:
                faults.append(Fault(number, what))
            start, failures = number + 1, failures + 1
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return faults


def _end_of(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        reason = f"more than {CPU_S:g} s of processor time" if number == signal.SIGPROF else "a crash"
        return f"ended by {signal.Signals(number).name}: {reason}"
    return f"exit status {os.WEXITSTATUS(status)}"


def _child(parser: Parser, seeds: list[bytes], seed: int, numbers: range, work: Path, position: mmap.mmap) -> None:
    """Runs the inputs, and ends the process: 0, or 1 after the first fault."""
    code = 1
    try:
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + MEMORY_BYTES, resource.RLIM_INFINITY))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, also within C
        folder = work / "input"
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        folder.mkdir()
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        for number in numbers:
            position[:8] = number.to_bytes(8, "little")
            data = make_input(parser, seeds, seed, number)
            signal.setitimer(signal.ITIMER_PROF, CPU_S)
            try:
                parser.call(data, folder)
            except (KimboxError, *parser.errors) as error:
                str(error).encode(errors="backslashreplace")
            signal.setitimer(signal.ITIMER_PROF, 0)
        code = 0
    except BaseException as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        with contextlib.suppress(BaseException):
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if frame.filename.startswith(_KIMBOX)]
            where = f"{own[-1].filename.removeprefix(_KIMBOX)}:{own[-1].lineno}" if own else "the test"
            (work / "report").write_text(f"{type(error).__name__} at {where}: {str(error)[:200]!r}")
    finally:
        os._exit(code)

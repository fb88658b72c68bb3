"""Each parser of untrusted input gives a result or a KimboxError, within limits of memory and processor time.

`script/test fuzz [-k NAME]` runs 20,000 inputs for each parser, the other tests only a few. KIMBOX_FUZZ_SEED sets the
random seed, KIMBOX_FUZZ_INPUT=NUMBER runs one input alone, KIMBOX_FUZZ_COUNT sets their number.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import fuzzarchives
import fuzzdisks
import fuzzing
import fuzztexts
import pytest
from fuzzing import Parser

from kimbox.errors import KimboxError

PARSERS = {parser.name: parser for parser in (*fuzzarchives.PARSERS, *fuzzdisks.PARSERS, *fuzztexts.PARSERS)}

SEED = int(os.environ.get("KIMBOX_FUZZ_SEED", "20261128"))
COUNT = int(os.environ.get("KIMBOX_FUZZ_COUNT", "100"))
ONLY = os.environ.get("KIMBOX_FUZZ_INPUT")


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_reads_or_refuses_every_input(name: str) -> None:
    """No other exception, no crash, no input that takes too much time or memory."""
    parser = PARSERS[name]
    count = max(20, int(COUNT * parser.share))
    faults = fuzzing.fuzz(parser, SEED, count, int(ONLY) if ONLY else None)
    again = f"KIMBOX_FUZZ_SEED={SEED} KIMBOX_FUZZ_INPUT=NUMBER script/test fuzz -k 'input[{name}]'"
    assert not faults, "\n".join(
        [*(f"input {fault.number}: {fault.what}" for fault in faults), f"one of them: {again}"]
    )


@pytest.mark.parametrize("name", PARSERS)
def test_the_seeds_are_valid(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The parser accepts its seeds. Otherwise changed seeds would all be refused at the same place."""
    parser, work = PARSERS[name], tmp_path_factory.mktemp("seeds")
    for data in parser.seeds(work):
        parser.call(data, tmp_path_factory.mktemp("input"))


def _loop() -> Iterator[int]:
    while True:
        yield 1


def _fail(data: bytes) -> object:
    match data:
        case b"exception":
            raise ValueError("no")
        case b"memory":
            return bytes(2 << 30)
        case b"time":
            return sum(_loop())
        case b"crash":
            os.abort()
        case b"refused":
            raise KimboxError("no")
    return None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"exception", "ValueError"), (b"memory", "MemoryError"), (b"time", "SIGPROF"), (b"crash", "SIGABRT"),
        (b"refused", ""), (b"fine", ""),
    ],
)  # fmt: skip
def test_the_fuzzer_finds_each_kind_of_fault(data: bytes, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception, too much memory, too much time, a crash. A refusal is no fault."""
    monkeypatch.setattr(fuzzing, "CPU_S", 0.3)
    parser = Parser("x", lambda _: [data], lambda data, _: _fail(data))
    faults = fuzzing.fuzz(parser, 1, 1)
    assert bool(expected) == bool(faults)
    assert not faults or expected in faults[0].what


def test_an_input_can_be_made_again() -> None:
    """The same seed and number give the same input, and other numbers other inputs."""
    parser = Parser("x", lambda _: [b"{}"], lambda *_: None)
    seeds = [b'{"a": [1, "text"]}' * 20]
    made = [fuzzing.make_input(parser, seeds, 1, number) for number in range(100)]
    assert made == [fuzzing.make_input(parser, seeds, 1, number) for number in range(100)]
    assert len(set(made)) > 80


@pytest.fixture(autouse=True, scope="module")
def printed() -> Iterator[None]:
    """Prints the random seed, with which a run can be repeated."""
    started_s = time.monotonic()
    yield
    print(f"\nfuzz: random seed {SEED}, {COUNT} inputs for each parser, {time.monotonic() - started_s:.0f} s")

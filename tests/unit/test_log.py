"""The log: lines, nested steps, the spinner, and several threads at a time."""

from __future__ import annotations

import functools
import io
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kimbox.log import Log
from kimbox.settings import Settings, settings

#: A control sequence of a terminal.
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Stream(io.StringIO):
    """A stream that lets other threads run within each line, because print() writes a line and its end separately."""

    def write(self, text: str) -> int:
        time.sleep(0.0001)
        return super().write(text)


class Terminal(Stream):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _default_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TERM", "xterm")  # rich shows no spinner on a dumb terminal
    settings.replace(Settings())
    yield
    settings.replace(Settings())


def lines(log: Log) -> list[str]:
    """Returns the written lines, with every duration as `N s`."""
    assert isinstance(log.stream, io.StringIO)
    return re.sub(r"\d+\.\d s", "N s", log.stream.getvalue()).splitlines()


def together(*functions: Callable[[], None]) -> None:
    """Runs each function in a thread of its own."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()


def write_all_kinds(log: Log) -> None:
    """Writes every kind of line, inside and outside of a step."""
    with log.step("outer"):
        log.info("info")
        log.now("activity")
        with log.step("inner"):
            log.guest("guest")
            log.detail("detail")
        log.warn("warning")
    log.info("end")


def test_lines_and_steps() -> None:
    """Steps are nested and timed; details need --verbose."""
    log = Log(io.StringIO())
    write_all_kinds(log)
    expected = [
        "outer ...", "  info", "  inner ...", "    | guest", "  inner: N s", "kimbox: warning: warning", "outer: N s",
        "end",
    ]  # fmt: skip
    assert expected == lines(log)


def test_quiet_and_verbose_are_settings() -> None:
    """The log reads the settings, so that they cannot differ from the command line."""
    settings.replace(Settings(quiet=True))
    log = Log(io.StringIO())
    write_all_kinds(log)
    assert ["kimbox: warning: warning"] == lines(log)
    settings.replace(Settings(verbose=True))
    log = Log(io.StringIO())
    write_all_kinds(log)
    assert ["  activity", "    detail"] == [line for line in lines(log) if line.strip() in ("activity", "detail")]


def test_a_failed_step_is_reported() -> None:
    """The line of a failed step has its duration. The outer steps fail too."""
    log = Log(io.StringIO())
    with pytest.raises(ValueError, match="no"), log.step("outer"), log.step("inner"):
        raise ValueError("no")
    assert ["outer ...", "  inner ...", "  inner: failed after N s", "outer: failed after N s"] == lines(log)


def test_threads_have_steps_of_their_own() -> None:
    """Lines of one thread are not indented by the steps of another."""
    log = Log(io.StringIO())
    inside = threading.Barrier(2, timeout=20)

    def work(name: str) -> None:
        with log.step(name):
            inside.wait()
            log.info(f"line of {name}")
            inside.wait()

    together(lambda: work("one"), lambda: work("two"))
    assert {"one ...", "two ...", "  line of one", "  line of two", "one: N s", "two: N s"} == set(lines(log))


def test_an_attached_thread_is_part_of_the_step() -> None:
    """Its lines are indented below the step in which the function was attached. Those of other threads are not."""
    log = Log(io.StringIO())

    def work() -> None:
        with log.step("part"):
            log.info("line")

    with log.step("whole"):
        together(log.attach(work))
        together(work)
    expected = ["whole ...", "  part ...", "    line", "  part: N s", "part ...", "  line", "part: N s", "whole: N s"]
    assert expected == lines(log)
    log.info("outside")
    assert "outside" == lines(log)[-1]


@pytest.mark.parametrize("stream", [Stream, Terminal])
def test_lines_of_many_threads_are_not_mixed(stream: type[Stream]) -> None:
    """No line is mixed with another one and none is lost, with a spinner and without."""
    log = Log(stream())

    def work(name: str) -> None:
        for number in range(20):
            with log.step(f"step {name}-{number}"):
                log.now(f"activity {number}")
                log.info(f"line {name}-{number}")

    together(*(functools.partial(work, name) for name in "abcd"))
    expected = {f"line {name}-{number}" for name, number in itertools.product("abcd", range(20))}
    text = ESCAPE.sub("", log.stream.getvalue())  # type: ignore[attr-defined]
    written = [line.strip() for line in re.split("[\r\n]", text) if line.strip().startswith("line ")]
    assert (80, expected) == (len(written), set(written))
    assert [] == log._open


def test_the_spinner_runs_until_the_last_step_ends() -> None:
    """A thread that ends its step does not stop the spinner of another one; the last step stops it."""
    log = Log(Terminal())
    other_is_in, other_may_end = threading.Event(), threading.Event()

    def other() -> None:
        with log.step("other"):
            other_is_in.set()
            assert other_may_end.wait(20)

    thread = threading.Thread(target=other)
    with log.step("first"):
        thread.start()
        assert other_is_in.wait(20)
        assert log._status is not None
        assert "other" == str(log._status.status)
    assert log._status is not None
    assert "other" == str(log._status.status)
    other_may_end.set()
    thread.join(20)
    assert log._status is None
    assert "\x1b[?25h" in log.stream.getvalue(), "the cursor is shown again"  # type: ignore[attr-defined]


def test_the_activity_is_beside_the_spinner() -> None:
    """The spinner shows the activity of its step, also from an attached thread. The activity is not a line."""
    log = Log(Terminal())
    with log.step("whole"):
        together(log.attach(lambda: log.now("receiving")))
        assert log._status is not None
        assert re.fullmatch(r"whole \[0 s\]: receiving", str(log._status.status))
        log.now("x" * 200)
        assert "whole [0 s]: " + "x" * 100 == str(log._status.status)
    assert [] == [line for line in log.stream.getvalue().split("\n") if line == "receiving"]  # type: ignore[attr-defined]


#: Foreign text: markup that rich rejects, a control sequence, the same in C1, a line break, a change of direction.
HOSTILE = "[/x] [red]:smile: \x1b[2J \x9b2J \r a\nkimbox: error: forged \u202e\u2028"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_foreign_text_is_neither_markup_nor_control(stream: type[io.StringIO]) -> None:
    """Every method prints foreign text as it is, without control characters. Its further lines are indented."""
    log = Log(stream())
    is_live = stream is Terminal
    with log.step(f"outer {HOSTILE}"):
        log.now(HOSTILE)
        if is_live:
            assert log._status is not None
            assert "[/x] [red]:smile: " in str(log._status.status)
        with log.step(f"inner {HOSTILE}"):
            log.info(HOSTILE)
            log.guest(HOSTILE)
            log.warn(HOSTILE)
    text = log.stream.getvalue()  # type: ignore[attr-defined]
    assert 3 <= text.count("[/x] [red]:smile: ")
    left = ESCAPE.sub("", text) if is_live else text  # the sequences of the spinner itself
    assert "\x1b[2J" not in text
    assert not {"\x1b", "\x9b", "\u202e", "\u2028"} & set(left)
    assert [] == [line for line in re.split("[\r\n]", left) if line.startswith("kimbox: error")]


def test_foreign_text_in_a_thread_does_not_end_it() -> None:
    """A reader of another program's output goes on after text that looks like markup."""
    log = Log(Terminal())
    passed: list[str] = []

    def read() -> None:
        for line in ("remote: [/x]", "remote: done"):
            log.now(line)
            passed.append(line)

    with log.step("fetching"):
        together(log.attach(read))
    assert ["remote: [/x]", "remote: done"] == passed

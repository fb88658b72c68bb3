"""The report of an audit from a guest that may be broken or hostile, and the verb that shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import clirun
import jsonschema
import makemachine
import pytest
from clirun import Kimbox, result
from hypothesis import given
from hypothesis import strategies as st
from makereport import AT, HEADER, check, ids, lines, report
from refused import refused

from kimbox import paths
from kimbox.actions import audit as auditing
from kimbox.errors import KimboxError
from kimbox.guest import audit
from kimbox.guest.audit import MAX_CHECKS, Check, Report, Severity, Status
from kimbox.guest.events import MAX_LINE_BYTES

kimbox, world = clirun.kimbox, clirun.world  # fixtures

# --- reading


def test_a_report_is_read() -> None:
    """A report has the facts of the box, and each check with its known fields."""
    found = report(check(more="x"), check("kernel.sysrq", "fail", severity="low", cis=""))
    assert (AT, makemachine.BOOT, "worker", "example.org") == (found.at, found.boot, found.role, found.site)
    usual = ("2.1.22", Severity.HIGH, Status.PASS, "none", "none", "close it")
    assert Check("net.tcp", "About net.tcp", *usual) == found.checks[0]
    assert Status.FAIL is found.checks[1].status
    assert found == Report.parse(json.loads(json.dumps(found.as_json())))


def test_the_newest_complete_report_is_used() -> None:
    """A log has several reports. The start of the first one and the end of the last one may be missing."""
    first, second = lines(check("a.a")), lines(check("b.b"))
    assert ["b.b"] == ids(report_of(first[30:] + first + second + lines(check("c.c"))[:-3]).checks)
    assert ["a.a", "b.b"] == [one.checks[0].id for one in audit.reports(first + second)]
    assert None is audit.newest(first[:-3])
    assert None is audit.newest(b"")


def test_a_report_counts_in_its_boot_and_by_its_number() -> None:
    """A report that is repeated, or of an earlier boot, is not the newest. Without numbers, the last one is."""
    first, second, third = (lines(check(name), header=HEADER | {"sequence": n}) for n, name in enumerate("abc", 1))
    found = audit.newest(first + third + second, makemachine.BOOT)
    assert found
    assert (3, ["c"]) == (found.sequence, ids(found.checks))
    assert None is audit.newest(first, makemachine.NEXT_BOOT)
    later = lines(check("d"), header=HEADER | {"boot": makemachine.NEXT_BOOT, "sequence": 1})
    assert ["d"] == ids(newest_of(third + later + second, makemachine.NEXT_BOOT).checks)
    assert ["e"] == ids(report_of(lines(check("a")) + lines(check("e"))).checks)


def newest_of(data: bytes, boot: str) -> Report:
    found = audit.newest(data, boot)
    assert found
    return found


def report_of(data: bytes) -> Report:
    found = audit.newest(data)
    assert found
    return found


@pytest.mark.parametrize(
    "data",
    [
        lines(check(), header=HEADER | {"audit": 2}), lines(check(), header=HEADER | {"audit": True}),
        lines(check(), header=HEADER | {"at": "today"}), lines(check(), header=HEADER | {"boot": "x"}),
        lines(check(), header=HEADER | {"sequence": -1}), lines(check(), header=HEADER | {"sequence": True}),
        lines(check(), header=HEADER | {"sequence": 1 << 53}), lines(check(), header=HEADER | {"sequence": "1"}),
        lines(check(), header=HEADER | {"role": 1}), lines(check(), header={"audit": 1}),
        lines(check(), end={"end": True, "checks": 2}), lines(check(), end={"end": True, "checks": True}),
        lines(check(), end={"end": True}), lines(check(), end={"end": 1, "checks": 1}), lines(),
        lines(check(), check()), lines(*(check(f"a.n{number}") for number in range(MAX_CHECKS + 1))),
        lines(check("A")), lines(check("a" * 81)), lines(check("a;b")), lines(check(cis="7.x")),
        lines(check(severity="dire")), lines(check("a", "passed")), lines(check(found=1)), lines(check(found=None)),
        lines({"id": "a"}), lines(check(), check("b", found="x" * MAX_LINE_BYTES)),
        lines(check()).replace(b'"none"', b"NaN"), lines(check()).replace(b"\n{", b"\n[]\n{", 1),
        lines(check()).replace(b"\n{", b"\nnull\n{", 1), lines(check()).replace(b"\n{", b"\n" + b"[" * 9000 + b"\n{"),
        b"{" * 60000, b"\0" * 100, b"\xff\xfe\n",
    ],
)  # fmt: skip
def test_an_invalid_report_is_ignored(data: bytes) -> None:
    """Invalid JSON, wrong types, wrong counts, duplicate checks and a missing end give None, and no exception."""
    assert [] == list(audit.reports(data))
    assert ["z.z"] == ids(report_of(data + b"\n" + lines(check("z.z"))).checks)


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(lines(check()).split(b"\n"))), max_size=12))
def test_no_bytes_of_a_guest_raise(pieces: list[bytes]) -> None:
    """All bytes give a report or None."""
    for found in audit.reports(b"\n".join(pieces)):
        assert ["net.tcp"] == ids(found.checks)


def test_text_is_bounded_and_cannot_control_a_terminal() -> None:
    """Escape sequences, line breaks and lone surrogates are replaced, and a long text is shortened."""
    found = report(check(found="a\x1b[2Jb\nc\ud800", title="x" * 5000)).checks[0]
    assert ("a\ufffd[2Jb c\ufffd", audit.MAX_TEXT) == (found.found, len(found.title))


def test_the_schema_accepts_the_same_lines() -> None:
    """The schema accepts lines that the parser reads, and rejects invalid ones."""
    schema = json.loads((paths.schemas_dir() / "audit.schema.json").read_text())
    for line in lines(check(), check("a.b", "fail", cis="")).splitlines():
        jsonschema.validate(json.loads(line), schema)
    for wrong in (HEADER | {"at": "today"}, check("A"), check(severity="dire"), {"end": True}, {}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


# --- judging


@pytest.mark.parametrize(
    ("expected", "status", "severity"),
    [
        (["a.a"], "fail", "high"),
        (["a.a"], "fail", "medium"),
        ([], "fail", "low"),
        ([], "pass", "high"),
        ([], "info", "high"),
        ([], "skip", "high"),
    ],
)
def test_what_is_a_breach(expected: list[str], status: str, severity: str) -> None:
    """Only a failed check with a sufficient severity is a breach."""
    assert expected == ids(report(check("a.a", status, severity=severity)).breaches)


def test_two_reports_are_compared() -> None:
    """Checks that fail now only, that no longer fail, and that are unchanged or were not run again."""
    before = report(
        check("a.same", "fail"), check("b.mended", "fail"), check("c.gone", "fail"), check("d.new"), check("e.ok")
    )
    after = report(
        check("a.same", "fail"), check("b.mended", "skip"), check("d.new", "fail"), check("e.ok"), check("f.x", "fail")
    )
    found = audit.compare(before, after)
    assert (["d.new", "f.x"], ["b.mended"]) == (ids(found.appeared), ids(found.mended))
    assert ["a.same", "c.gone"] == ids(found.same)
    assert audit.Comparison((), (), ()) == audit.compare(report(check()), report(check()))


# --- the verb


FAILED = check("kernel.sysrq", "fail", severity="low", found="1", cis="")
BREACH = check("net.tcp", "fail", found="2323 (tcp)\x1b[2J", remedy="stop what listens")


def tells(monkeypatch: pytest.MonkeyPatch, *checks: dict[str, Any], site: str = "example.org") -> None:
    found = attrs.evolve(report(*checks), site=site)
    monkeypatch.setattr(auditing, "report", lambda _: auditing.Audited(found, "sent by the box 3 min ago"))


def test_the_verb_shows_what_failed(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst first, with what was expected and found and what to do; the rest is counted, or shown if asked for."""
    makemachine.make_machine()
    tells(monkeypatch, check("a.passed"), FAILED, BREACH, check("b.told", "info", found="42"))
    code, out, _ = kimbox("audit", "tiny")
    assert 1 == code
    assert out.splitlines() == [
        "tiny, worker of example.org: sent by the box 3 min ago",
        "FAIL high    net.tcp  About net.tcp [CIS 2.1.22]",
        "             expected  none",
        "             found     2323 (tcp)\ufffd[2J",
        "             remedy    stop what listens",
        "FAIL low     kernel.sysrq  About kernel.sysrq",
        "             expected  none",
        "             found     1",
        "             remedy    close it",
        "4 checks: 1 passed, 2 failed (1 of them breaches), 1 for information, 0 skipped",
    ]
    _, out, _ = kimbox("audit", "tiny", "--verbose")
    assert "pass high    a.passed  About a.passed [CIS 2.1.22]: none\n" in out
    assert "info high    b.told  About b.told [CIS 2.1.22]: 42\n" in out


@pytest.mark.parametrize(("expected", "checks"), [(0, [FAILED, check()]), (1, [BREACH]), (0, [check()])])
def test_the_exit_status_tells_of_a_breach(
    kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch, expected: int, checks: list[dict[str, Any]]
) -> None:
    """With --json too; the result is of the schema."""
    makemachine.make_machine()
    tells(monkeypatch, *checks)
    assert expected == kimbox("audit", "tiny")[0]
    code, out, _ = kimbox("audit", "tiny", "--json")
    assert expected == code
    schema = json.loads((paths.schemas_dir() / "audit.schema.json").read_text())
    jsonschema.validate(result(out, "audit"), {"$ref": "#/$defs/result", "$defs": schema["$defs"]})


@pytest.mark.parametrize("way", ["--save", "--json"])
def test_before_and_after_are_compared(kimbox: Kimbox, world: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """With what --save or --json wrote."""
    makemachine.make_machine()
    tells(monkeypatch, BREACH, FAILED, check("a.a"))
    before = world / "before.json"
    if way == "--save":
        assert 1 == kimbox("audit", "tiny", "--save", str(before))[0]
    else:
        before.write_text(kimbox("audit", "tiny", "--json")[1])
    tells(monkeypatch, check("net.tcp"), FAILED, check("a.a", "fail"))
    code, out, _ = kimbox("audit", "tiny", "--compare", str(before))
    assert 1 == code
    changes = [line.split()[:-1] for line in out.splitlines() if line.startswith(("appeared", "mended", "the same"))]
    assert [["appeared", "a.a"], ["mended", "net.tcp"], ["the", "same", "kernel.sysrq"]] == [
        words[: words.index("About")] for words in changes
    ]
    compared = result(kimbox("audit", "tiny", "--json", "--compare", str(before))[1], "audit")["compared"]
    assert {"appeared": ["a.a"], "mended": ["net.tcp"], "same": ["kernel.sysrq"]} == compared


@pytest.mark.parametrize("text", ["", "{}", "[]", "[" * 90000, '{"result": {"report": 1}}', '{"audit": 1}', "NaN"])
def test_what_cannot_be_compared(kimbox: Kimbox, world: Path, text: str) -> None:
    """A file that holds no report is named, before any box is asked."""
    (world / "bad.json").write_text(text)
    with refused(KimboxError, "bad-report", path=str(world / "bad.json")):
        auditing.read(world / "bad.json")
    code, _, err = kimbox("audit", "tiny", "--compare", str(world / "bad.json"))
    assert 3 == code
    assert f"cannot read an audit report from {world}/bad.json: " in err

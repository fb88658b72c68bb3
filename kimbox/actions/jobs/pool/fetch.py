"""kimbox job fetch: the results of the jobs of a submission that have ended, as `kimbox job run` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
from jsonschema import Draft202012Validator

from kimbox import utctime
from kimbox.actions.jobs import ledger, results
from kimbox.actions.jobs.pool import vmfiles
from kimbox.actions.jobs.pool.watch import states_of
from kimbox.actions.jobs.request import Done
from kimbox.errors import KimboxError
from kimbox.files import locked, parse_json
from kimbox.jobs import listing
from kimbox.jobs.backends.htcondor.states import JobState, State
from kimbox.jobs.backends.htcondor.submission import Submission
from kimbox.jobs.disk import contents, extract
from kimbox.jobs.disk.contents import Contents
from kimbox.jobs.items import Item
from kimbox.jobs.order import CONSOLE, EVENTS, MAX_EVENT_BYTES, REPORT
from kimbox.jobs.record import MAX_RECORD_BYTES, record_schema
from kimbox.jobs.result import RESULTS, Outcome, Verdict
from kimbox.jobs.vet import OUTPUT
from kimbox.log import log, printable
from kimbox.machine.console import CONSOLE_BYTES, SHOWN_LINES, console_lines
from kimbox.newfiles import making


@attrs.frozen
class Fetched:
    """What `fetch` has done. `new`: results that it wrote; `missing`: number of jobs without results."""

    output: Path
    new: list[Done]
    records: list[tuple[Item | None, dict[str, Any] | None]]
    states: list[JobState]

    @property
    def missing(self) -> int:
        return sum(record is None for _, record in self.records)


def fetch(submission: Submission, sign_key: Path | None = None) -> Fetched:
    """Writes the results of all jobs that have ended, and that are not there. The cluster is known.

    May be called again at any time. Raises StateError (`busy`, `file-exists`, `sweep-differs`), and KimboxError
    (`pool-unreachable`).
    """
    busy = f"another kimbox process uses the submission {submission.id}"
    with locked(submission.lock_file, busy=busy):
        found = states_of(submission)
        ended = [state for state in found if state.state is State.DONE]
        _retrieve(submission, ended)
        if submission.items is None:
            done = _fetch_one(submission, ended, sign_key)
            record = done.record if done else _known(submission.output)
            return Fetched(submission.output, [done] if done else [], [(None, record)], found)
        return _fetch_sweep(submission, ended, found, sign_key)


def _retrieve(submission: Submission, ended: list[JobState]) -> None:
    """Gets the files from a remote schedd. A job leaves its queue afterwards."""
    missing = [state.process for state in ended if not submission.results(state.process).exists()]
    if missing and submission.schedd.is_remote and submission.cluster is not None:
        with log.step(f"getting the results of {len(missing)} jobs"):
            submission.schedd.retrieve(submission.cluster, missing, submission.folder)


def _known(output: Path) -> dict[str, Any] | None:
    """Returns the verdict of results that were fetched before; None if there are none."""
    try:
        return dict(json.loads((output / "job.json").read_bytes()[:MAX_RECORD_BYTES]))
    except (OSError, ValueError):
        return None


def _fetch_one(submission: Submission, ended: list[JobState], sign_key: Path | None) -> Done | None:
    """Writes the results of the only job; None if it has not ended, or if they are there."""
    if not ended or (submission.output / "job.json").exists():
        return None
    return _write(submission, ended[0], submission.output, sign_key)


def _fetch_sweep(
    submission: Submission, ended: list[JobState], found: list[JobState], sign_key: Path | None
) -> Fetched:
    """Writes the results of items into the folder of the sweep, which `kimbox job run --each` may complete."""
    items = [Item(text, item.folder) for process, text in enumerate(submission.items or ())
             if (item := submission.item(process))]  # fmt: skip
    new = []
    with ledger.opened(submission.output, submission.facts, items) as book:
        for state in ended:
            item = items[state.process]
            known = book.record(item)
            if known is not None and known["verdict"] not in ledger.NO_RESULTS:
                continue
            done = _write(submission, state, book.target(item), sign_key)
            book.adopt(item)
            new.append(done)
        book.write_lines(items)
        return Fetched(submission.output, new, [(item, book.record(item)) for item in items], found)


def _write(submission: Submission, state: JobState, output: Path, sign_key: Path | None) -> Done:
    """Writes the results of a job to a new folder. A node is not trusted more than a guest."""
    disk_file = submission.results(state.process)
    with making(output) as work:
        target = work / output.name
        try:
            with contents.opened(disk_file) as disk:
                report = vmfiles.report_of(disk, submission, state.process) if submission.is_vm else _report(disk)
                if any(disk.find(name.encode()) for name in RESULTS):
                    extract.extract(disk, target, only=RESULTS, skip_unsafe=True)
                console = console_lines(disk.head(CONSOLE.encode(), CONSOLE_BYTES) or b"")[-SHOWN_LINES:]
                provenance = _provenance(disk.head(EVENTS.encode(), MAX_EVENT_BYTES) or b"", submission)
        except KimboxError as error:
            report = {
                "verdict": str(Outcome.LOST),
                "reason": f"the results cannot be read: {error.message}",
            }
            console, provenance = [], None
        target.mkdir(exist_ok=True)
        (target / "kimbox.lock").write_bytes((submission.folder / "kimbox.lock").read_bytes())
        verdict = _verdict(report)
        verdict, rejected = results.vetted(target, verdict, submission.vetting, submission.job_folder)
        if problem := _invalid(_record(submission, state, report, verdict)):
            verdict = Verdict(Outcome.LOST, reason=f"the runner has reported {problem}, which no job can have")
            report = {}
        record = _record(submission, state, report, verdict)
        record["console"] = [] if verdict.outcome in (Outcome.OK, Outcome.FAILED) else console
        record |= {"provenance": provenance, "quarantine": [str(file) for file in rejected]}
        record["output"] = listing.of_folder(target / OUTPUT).as_json()
        results.keep(target, record, sign_key)
    return Done(verdict, output, record)


def _report(disk: Contents) -> dict[str, Any]:
    """Returns the report of the runner. Raises KimboxError (`bad-record`)."""
    try:
        value = parse_json(disk.head(REPORT.encode(), MAX_RECORD_BYTES) or b"")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise KimboxError("there is no report of the runner", code="bad-record")
    return value


def _verdict(report: dict[str, Any]) -> Verdict:
    """Returns the verdict in a report. What is no verdict is `lost`."""
    number = {key: report.get(key) if type(report.get(key)) is int else None for key in ("exit", "signal")}
    try:
        outcome = Outcome(str(report.get("verdict")))
    except ValueError:
        return Verdict(Outcome.LOST, reason="the report of the runner has no verdict")
    return Verdict(outcome, number["exit"], number["signal"], printable(str(report.get("reason") or "")))


def _provenance(data: bytes, submission: Submission) -> dict[str, Any] | None:
    """Returns what the box has reported of itself, as far as the events have it."""
    from kimbox.actions.observe import provenance_of
    from kimbox.guest.events import parse_line

    events = [event for line in data.split(b"\n") if line.strip() and (event := parse_line(line))]
    return provenance_of(events, submission.static.get("described") or {})


def _record(submission: Submission, state: JobState, report: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    """Returns the content of job.json but for the results themselves."""
    item = submission.item(state.process)
    static = {key: value for key, value in submission.static.items() if key not in ("described", "folders")}
    settings = {**static["settings"], "size_bytes": report.get("size_bytes")}
    return static | {
        "id": report.get("id") or submission.id,
        "verdict": str(verdict.outcome),
        "exit": verdict.exit,
        "signal": verdict.signal,
        "status": verdict.status,
        "reason": verdict.reason or None,
        "arguments": [*submission.facts["arguments"], *([item.text] if item else [])],
        "settings": settings,
        "folder": report.get("folder") or submission.facts["folder"],
        "ended_at": utctime.text(),
        "ready_s": report.get("ready_s"),
        "run_s": report.get("run_s"),
        "memory_peak_bytes": report.get("memory_peak_bytes"),
        "cpu_s": report.get("cpu_s"),
        "skipped": report.get("skipped") or [],
        "start": "cold",
        "restarted": None,
        "pool": {
            "cluster": submission.cluster,
            "process": state.process,
            "starts": state.starts or None,
            "host": report.get("host"),
            "accelerator": report.get("accelerator"),
            "qemu": report.get("qemu"),
        },
    }


def _invalid(record: dict[str, Any]) -> str | None:
    """Returns the key with a value from the runner that cannot be in job.json; None if all can be."""
    schema = record_schema()
    validator = Draft202012Validator({**schema, "required": []})
    fault = next(validator.iter_errors(json.loads(json.dumps(record))), None)
    return "/".join(map(str, fault.absolute_path))[:100] if fault else None

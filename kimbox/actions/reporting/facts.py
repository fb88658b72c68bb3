"""The content of a report as plain values: the JSON of `kimbox report`, from which the page is rendered."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from kimbox import __version__, utctime
from kimbox.actions import audit as auditing
from kimbox.actions import observe
from kimbox.actions.reporting.subjects import Checked, Kind, Outcome, Subject
from kimbox.errors import KimboxError
from kimbox.guest.audit import Status
from kimbox.lock.git import history
from kimbox.lock.provenance.inputs import Provenance, commits
from kimbox.machine import past_audits
from kimbox.machine.folder import Machine
from kimbox.machine.past_audits import PastAudit
from kimbox.machine.timeline import Loading, timeline
from kimbox.spec.urls import is_folder

#: Version of the form of the content.
FORMAT = 1

#: Maximum number of past audits that a report has.
MAX_PAST = 50


def facts_of(subject: Subject) -> dict[str, Any]:
    """Everything that a report has about a subject.

    An open box that answers is audited over ssh. Of other boxes the last audit is used.
    """
    whole, machine = subject.provenance, subject.machine
    audit, reason = _audit(machine) if machine else (None, "only a machine can be audited")
    checks = [*subject.checks, *([_audit_check(audit)] if audit else [])]
    return {
        "format": FORMAT,
        "kimbox": __version__,
        "made": utctime.text(),
        "kind": str(subject.kind),
        "name": subject.name,
        "source": subject.source,
        "state": str(observe.state(machine)) if machine else None,
        "package": attrs.asdict(subject.package) if subject.package else None,
        "image": _image(whole),
        "lock": _lock(whole) if subject.has_lock else None,
        "repositories": [_repository(whole, *commit) for commit in commits(whole.lock)],
        "packages": [
            {"name": name, "version": package.version, "architecture": package.architecture, "sha256": package.sha256}
            for name, package in sorted(whole.packages.items())
        ],
        "packages_from": "disk" if whole.installed is not None else "lock",
        "unpinned": whole.unpinned,
        "lock_mismatch": whole.mismatch.as_json(),
        "stale": {step: dict(pins) for step, pins in sorted(whole.stale.items())},
        "checks": [attrs.asdict(check) for check in checks],
        "audit": audit,
        "audit_missing": reason,
        "past_audits": _past(past_audits.past(machine)) if machine else [],
        "start": timeline(machine.boot_events(), Loading.read(machine)) if machine else None,
        "again": _again(subject),
    }


def _image(whole: Provenance) -> dict[str, Any]:
    bases = [attrs.asdict(base) for base in whole.bases]
    system = {"distribution": whole.distribution, "suite": whole.suite}
    return {"key": whole.image, "sha256": whole.image_sha256, **system, "bases": bases}


def _lock(whole: Provenance) -> dict[str, Any]:
    lock = whole.lock
    as_of = lock.packages.as_of if lock.packages else None
    return {"digest": lock.digest, "spec_digest": lock.spec_digest, "packages_as_of": as_of}


def _repository(whole: Provenance, name: str, url: str, commit: str, tree: str | None) -> dict[str, Any]:
    """A repository or submodule. A commit that kimbox made of a folder has no date."""
    pin = whole.lock.repositories.get(name)
    return {
        "name": name,
        "url": url,
        "ref": pin.ref if pin else None,
        "commit": commit,
        "tree": tree,
        "date": None if is_folder(url) else history.date_of(url, commit),
        "pinned": name not in whole.lock.unpinned,
    }


def _audit(machine: Machine) -> tuple[dict[str, Any] | None, str | None]:
    """The audit of a machine as `kimbox audit --json` has it; or None, and why there is none."""
    try:
        audited = auditing.report(machine)
    except KimboxError as error:
        return None, error.message
    report = audited.report
    counts = {str(status): len(report.of(status)) for status in Status}
    breaches = [check.id for check in report.breaches]
    about = {
        "source": audited.source,
        "stale": audited.stale,
        "unsealed": audited.unsealed,
        "sealed": machine.record().sealed is not None,
    }
    return {**about, "report": report.as_json(), "breaches": breaches, "counts": counts}, None


def _audit_check(audit: Mapping[str, Any]) -> Checked:
    """The audit as one check. An open box is expected to fail some checks, which are those for a sealed box."""
    name = "The audit finds no breach"
    found = f"{len(audit['report']['checks'])} checks, breaches: {', '.join(audit['breaches']) or 'none'}"
    if audit["unsealed"]:
        return Checked(name, Outcome.FAIL, f"the present boot is not sealed: {audit['unsealed']}; {found}")
    if audit["stale"]:
        return Checked(name, Outcome.UNKNOWN, f"the last audit is too old to show the present state; {found}")
    if not audit["breaches"]:
        return Checked(name, Outcome.PASS, found)
    if audit["sealed"]:
        return Checked(name, Outcome.FAIL, found)
    return Checked(name, Outcome.UNKNOWN, f"the box is open, and the checks are those for a sealed box; {found}")


def _past(audits: Sequence[PastAudit]) -> list[dict[str, Any]]:
    """The last audits, oldest first, each with the failed checks that appeared and were mended since the one before."""
    pairs = zip([None, *audits[:-1]], audits, strict=True) if audits else ()
    rows = []
    for before, one in pairs:
        old, new = set(before.failed) if before else set(one.failed), set(one.failed)
        rows.append(attrs.asdict(one) | {"appeared": sorted(new - old), "mended": sorted(old - new)})
    return rows[-MAX_PAST:]


def _again(subject: Subject) -> dict[str, Any]:
    """How to make the subject again: files to save, three commands, and what these do not bring back."""
    whole = subject.provenance
    files = {"kimbox.yaml": subject.spec.decode("utf-8", "replace")} if subject.spec else {}
    files |= {"kimbox.lock": whole.lock.text} if subject.has_lock else {}
    notes: list[str] = []
    if subject.kind is Kind.PACKAGE and subject.package:
        name, file = "report-box", subject.package
        spec = f"kimbox: 1\\nname: {name}\\nimage: {{box: {name}}}\\n"
        commands = [
            f"kimbox box add {name} {shlex.quote(f'./{file.name}')} --digest sha256:{file.sha256}",
            f"printf '{spec}' >kimbox.yaml",
            "kimbox up",
        ]
        return {"files": files, "saves": [], "commands": commands, "notes": notes}
    added = _added_box(subject.spec)
    commands = ["kimbox build", "kimbox up", "kimbox diff"]
    if added:
        digest = f" --digest sha256:{whole.bases[-1].sha256}" if whole.bases and whole.bases[-1].sha256 else ""
        url = shlex.quote(whole.bases[-1].url) if whole.bases and whole.bases[-1].url else "FILE"
        commands[0] = f"kimbox box add {shlex.quote(added)} {url}{digest}"
    if len(files) < 2:
        commands, notes = [], ["an older kimbox sent the manifest and kept no spec: `kimbox provision` sends a new one"]
    if folders := [name for name, url, _, _ in commits(whole.lock) if is_folder(url)]:
        notes.append(f"copy these folders beside kimbox.yaml, because no server has them: {', '.join(folders)}")
    if whole.unpinned or whole.stale:
        notes.append("what no lock pins is not made again: see the changes above")
    return {"files": files, "saves": sorted(files) if commands else [], "commands": commands, "notes": notes}


def _added_box(spec: bytes) -> str | None:
    """The added box on which a spec is based, or None."""
    try:
        image = json.loads(spec or b"{}").get("image")
    except (ValueError, AttributeError):
        return None
    name = image.get("box") if isinstance(image, dict) else None
    return name if isinstance(name, str) else None

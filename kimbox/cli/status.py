"""kimbox status: what a box is now."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from kimbox.cli import target
from kimbox.cli.output import report
from kimbox.spec.model import SETUP, BootMode

if TYPE_CHECKING:
    from pathlib import Path

    from kimbox.guest.events import Event
    from kimbox.machine.folder import Machine


#: Keys of a summary; an unknown value is None. `box` and `purpose`: the box that the machine belongs to, and what it
#: is for. From events of the last boot: `boot`, its mode; `snapshot_percent`, how full a snapshot smaller than root
#: was when it last passed 70, 85 or 95 %; `died`, why the boot before it ended, if that was a full snapshot. `failure`
#: and `reason`: what failed, and why. `wanted`: the manifest that failed, if the box fell back to `manifest`, the last
#: one that was ready; then `reason` says why. `provenance`: what the box is made of and how it was provisioned, from
#: /etc/kimbox/box.json in the box (schemas/boxfile.schema.json). `sealed`: role and site of a box that was secured.
#: `jobs`: the last counts from the runner of its role. `stale`: the steps that ran under other commits than the box
#: has now: each with both commits, and the command that runs it again.
SUMMARY_KEYS = (
    "name", "box", "purpose", "state", "boot", "snapshot_percent", "died", "manifest", "wanted", "failure", "reason",
    "provider", "pid", "ssh_host", "ssh_port", "forwards", "image", "spec", "spec_digest", "folder", "disk_bytes",
    "scratch", "provenance", "follow", "sealed", "jobs", "stale",
)  # fmt: skip


#: Value of `provisioned.by` in box.json -> how a root was provisioned.
_WAYS = {"hand": "by hand", "first": "as a new box", "resnap": "as a new root", "keep": "as a root that was kept"}

_COUNT = re.compile(r"[0-9]{1,12}")


def status(box: target.Name = None, file: target.File = None) -> None:
    """Show the state of a box, how to reach it and what it was made from.

    In its JSON, what the guest told of its last boot is: boot (the mode it is really in), snapshot_percent (how full a
    snapshot smaller than root was, when it last passed 70, 85 or 95 %), died (why the boot before ended, where its
    snapshot filled up), manifest and wanted (the one that failed, where the box went back), failure and reason, and
    provenance: the facts of /etc/kimbox/box.json in the box. stale lists the steps that ran under other commits than
    those that the box has now, with old and new commit of each repository and the command that runs the step again.
    Of a sealed box, sealed (role and site) and jobs (what the runner of its role has told). What is not known is null.

    \b
    Examples:
      kimbox status
      kimbox status openkim-dev --json
    """
    from kimbox.machine.bootmode import MAINTAINED
    from kimbox.machine.record import Purpose

    summary = summary_of(target.machine(box, file))
    if summary["state"] == "absent":
        summary["spec"] = str(target.project(box, file).source)  # or it says that there is no such box
    lines = [f"{summary['name']}: {summary['state']}"]
    if summary.get("failure"):
        lines.append(f"  failed at   {summary['failure']}")
        lines += [f"  reason      {summary['reason']}"] if summary["reason"] else []
    if summary.get("died"):
        lines.append(f"  died before {summary['died']}")
    if summary["state"] != "absent":
        percent = summary["snapshot_percent"]
        if summary["purpose"] != Purpose.BOX:
            lines.append(f"  purpose     {summary['purpose']}, of {summary['box']}")
        lines += [
            f"  boot        {summary['boot'] or 'unknown'}",
            *([MAINTAINED.format(name=summary["name"])] if summary["boot"] == BootMode.MAINTAIN else []),
            *([f"  snapshot    {percent} % full"] if percent is not None else []),
            f"  ssh         {summary['ssh_host']}:{summary['ssh_port']}",
            *(f"  forward     127.0.0.1:{host} -> {guest}" for guest, host in summary["forwards"].items()),
            *_sealed_lines(summary),
            f"  manifest    {summary['manifest'] or 'none'}",
            *_wanted_lines(summary),
            *_provenance_lines(summary["provenance"]),
            *stale_lines(summary),
            *_follow_lines(summary["follow"]),
            f"  image       {summary['image'][:16]}",
            f"  spec        {summary['spec']}",
            f"  disk        {_disk_words(summary['disk_bytes'])} at {summary['folder']}",
        ]
    if scratch := summary["scratch"]:
        lines.append(f"  scratch     {scratch['size_bytes'] / 1e6:.0f} MB at {scratch['mount']} of the guest")
    report("status", summary, "\n".join(lines))


def summary_of(machine: Machine) -> dict[str, Any]:
    """What `status` and `list` show of a machine, as in their JSON: SUMMARY_KEYS. Takes no lock."""
    import attrs

    from kimbox.actions import observe
    from kimbox.drivers import registry
    from kimbox.guest import stale
    from kimbox.machine.console import SNAPSHOT_FULL
    from kimbox.machine.state import State, derive, last_manifest_event, lost_root

    known = observe.observe(machine)
    state = derive(known)
    if state is State.ABSENT:
        return dict.fromkeys(SUMMARY_KEYS) | {"name": machine.name, "state": str(state)}
    record, driver = machine.record(), registry.of(machine)
    events = {event.name: event for event in known.events}
    failed = events.get("failed") if state is State.FAILED else lost_root(known.events)
    failure, reason = (
        (f"{failed.text('kind')} {failed.text('name')}", failed.text("reason")) if failed else (None, None)
    )
    if known.snapshot_full:
        failure, reason = "snapshot of root", SNAPSHOT_FULL.message
    last = last_manifest_event(known.events)
    wanted = last.text("wanted") if last else ""
    provenance = observe.provenance(machine, known.events)
    outdated = stale.steps(machine.name, provenance, sealed=record.sealed is not None)
    if wanted and not failure and "fallback" in events:
        reason = events["fallback"].text("reason")
    return {
        "name": machine.name,
        "box": record.box,
        "purpose": str(record.purpose),
        "state": str(state),
        "boot": events["booting"].text("mode") if "booting" in events else None,
        "snapshot_percent": events["snapshot"].number("percent") if "snapshot" in events else None,
        "died": events["died"].text("reason") if "died" in events else None,
        "manifest": (last.text("manifest") or None) if last else None,
        "wanted": wanted or None,
        "failure": failure,
        "reason": reason,
        "provider": driver.name,
        "pid": driver.pid(),
        "ssh_host": record.ssh_host,
        "ssh_port": record.ssh_port,
        "forwards": {str(guest): host for guest, host in record.forwards.items()},
        "image": record.image,
        "spec": record.source,
        "spec_digest": record.spec_digest,
        "folder": str(machine.folder),
        "disk_bytes": _used_bytes(machine.disk) if driver.features.own_disk else None,
        "scratch": attrs.asdict(record.scratch) if record.scratch else None,
        "provenance": provenance,
        "follow": _follow(events.get("follow")),
        "sealed": attrs.asdict(record.sealed) if record.sealed else None,
        "jobs": _jobs(events.get("jobs")),
        "stale": None if outdated is None else [step.as_json() for step in outdated],
    }


def _jobs(event: Event | None) -> dict[str, int] | None:
    """The counts in a runner's event; fields that are no counts are left out."""
    if event is None:
        return None
    texts = {name: str(value) for name, value in event.fields.items()}
    return {name: int(text) for name, text in texts.items() if _COUNT.fullmatch(text)}


def _sealed_lines(summary: dict[str, Any]) -> list[str]:
    """The role of a sealed box, and the counts from its runner."""
    sealed, jobs = summary["sealed"], summary["jobs"]
    lines = [f"  sealed      {sealed['role']} of {sealed['site']}"] if sealed else []
    if sealed and summary["state"] == "ready":
        lines.append(f"              not yet: `kimbox secure {summary['name']}` restarts it, which closes it")
    if jobs:
        lines.append("  jobs        " + ", ".join(f"{count} {name}" for name, count in jobs.items()))
    return lines


def _provenance_lines(provenance: dict[str, Any] | None) -> list[str]:
    """When and how the root was provisioned, and what in it differs from the lock."""
    if provenance is None:
        return []
    done = provenance["provisioned"]
    line = f"  provisioned {done['at'] or 'not yet'}, {_WAYS.get(done['by'], done['by'])}"
    return [line, *unusual_lines(provenance)]


def _follow(event: Event | None) -> dict[str, Any] | None:
    """The branch that a box follows, and the result at its last boot."""
    if event is None:
        return None
    return {key: event.text(key) or None for key in ("branch", "status", "newest", "commit", "reason")}


def _short(commit: str | None) -> str:
    return commit[:12] if commit else "a commit that it does not tell"


def _follow_lines(follow: dict[str, Any] | None) -> list[str]:
    if follow is None:
        return []
    line = f"  follows     {follow['branch']}: runs {_short(follow['commit'])}"
    if follow["status"] == "failed":
        return [line, f"  newest      {_short(follow['newest'])} failed: {follow['reason']}"]
    if follow["status"] == "unreachable":
        return [f"{line}; it could not be reached: {follow['reason']}"]
    return [f"{line}, its newest"]


def unusual_lines(provenance: dict[str, Any] | None) -> list[str]:
    """What in a box differs from lock and spec."""
    if provenance is None:
        return []
    lines = []
    if unpinned := provenance["unpinned"]:
        commit = provenance["provisioned"]["setup_commit"]
        setup = f" (setup at {commit[:12]})" if commit and SETUP in unpinned else ""
        lines.append(f"  UNPINNED    {', '.join(unpinned)}: not what the lock says{setup}")
    if part := provenance["provisioned"]["part"]:
        lines.append(f"  PARTIAL     {part}: the rest of its manifest was left out")
    return lines


def stale_lines(summary: dict[str, Any]) -> list[str]:
    """The steps that ran under other commits, from what `summary_of` gave."""
    from kimbox.guest.stale import words

    return [f"  STALE       {words(step)}" for step in summary["stale"] or ()]


def _wanted_lines(summary: dict[str, Any]) -> list[str]:
    """The manifest that failed, where the box fell back to an earlier one."""
    if not summary["wanted"]:
        return []
    why = f": {summary['reason']}" if summary["reason"] and not summary["failure"] else ""
    return [f"  wanted      {summary['wanted']}, which failed{why}"]


def _disk_words(size_bytes: int | None) -> str:
    """The size of a disk; None: its hypervisor has it."""
    return "in libvirt's pool, the rest" if size_bytes is None else f"{size_bytes / 1e6:.0f} MB"


def _used_bytes(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:  # the machine is being destroyed, or is damaged
        return 0

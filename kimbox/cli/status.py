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


#: What is told of a machine; what is unknown is None. The last boot told `boot`, the mode it is in; `snapshot_percent`,
#: how full a snapshot smaller than root was when it last passed 70, 85 or 95 %; `died`, why the boot before it came to
#: its end, where that was a full snapshot. `failure` and `reason`: what failed, and why. `wanted`: the manifest that
#: failed, where the box has gone back to `manifest`, the last one that was ready; then `reason` says why. `provenance`:
#: what the box is made of and how it was provisioned, as its own /etc/kimbox/box.json (schemas/boxfile.schema.json).
#: `sealed`: role and site of a box that was secured. `jobs`: the counts that the runner of its role told last.
#: `stale`: the steps that ran under other commits than the box has now, each with these, and the command that helps.
FACTS = (
    "name", "state", "boot", "snapshot_percent", "died", "manifest", "wanted", "failure", "reason", "provider", "pid",
    "ssh_host", "ssh_port", "forwards", "image", "spec", "spec_digest", "folder", "disk_bytes", "scratch", "provenance",
    "follow", "sealed", "jobs", "stale",
)  # fmt: skip


#: How a root was provisioned, in words.
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

    facts = facts_of(target.machine(box, file))
    if facts["state"] == "absent":
        facts["spec"] = str(target.spec(box, file)[0].source)  # or it says that there is no such box
    lines = [f"{facts['name']}: {facts['state']}"]
    if facts.get("failure"):
        lines.append(f"  failed at   {facts['failure']}")
        lines += [f"  reason      {facts['reason']}"] if facts["reason"] else []
    if facts.get("died"):
        lines.append(f"  died before {facts['died']}")
    if facts["state"] != "absent":
        lines += [
            f"  boot        {facts['boot'] or 'unknown'}",
            *([MAINTAINED.format(name=facts["name"])] if facts["boot"] == BootMode.MAINTAIN else []),
            *([f"  snapshot    {facts['snapshot_percent']} % full"] if facts["snapshot_percent"] is not None else []),
            f"  ssh         {facts['ssh_host']}:{facts['ssh_port']}",
            *(f"  forward     127.0.0.1:{host} -> {guest}" for guest, host in facts["forwards"].items()),
            *_sealed_lines(facts),
            f"  manifest    {facts['manifest'] or 'none'}",
            *_wanted_lines(facts),
            *_provenance_lines(facts["provenance"]),
            *stale_lines(facts),
            *_follow_lines(facts["follow"]),
            f"  image       {facts['image'][:16]}",
            f"  spec        {facts['spec']}",
            f"  disk        {_disk_words(facts['disk_bytes'])} at {facts['folder']}",
        ]
    if scratch := facts["scratch"]:
        lines.append(f"  scratch     {scratch['size_bytes'] / 1e6:.0f} MB at {scratch['mount']} of the guest")
    report("status", facts, "\n".join(lines))


def facts_of(machine: Machine) -> dict[str, Any]:
    """What `status` and `list` tell of a machine, as it appears in their JSON. Takes no lock."""
    import attrs

    from kimbox.actions import observe as facts
    from kimbox.drivers import provider as providers
    from kimbox.drivers.qemu import process
    from kimbox.guest import stale
    from kimbox.machine.console import SNAPSHOT_FULL
    from kimbox.machine.state import State, derive, last_word, lost_root

    known = facts.facts(machine)
    state = derive(known)
    if state is State.ABSENT:
        return dict.fromkeys(FACTS) | {"name": machine.name, "state": str(state)}
    record, provider = machine.record(), providers.of(machine)
    events = {event.name: event for event in known.events}
    failed = events.get("failed") if state is State.FAILED else lost_root(known.events)
    failure, reason = (
        (f"{failed.text('kind')} {failed.text('name')}", failed.text("reason")) if failed else (None, None)
    )
    if known.snapshot_full:
        failure, reason = "snapshot of root", SNAPSHOT_FULL.message
    told = last_word(known.events)
    wanted = told.text("wanted") if told else ""
    provenance = facts.provenance(machine, known.events)
    outdated = stale.steps(machine.name, provenance, sealed=record.sealed is not None)
    if wanted and not failure and "fallback" in events:
        reason = events["fallback"].text("reason")
    return {
        "name": machine.name,
        "state": str(state),
        "boot": events["booting"].text("mode") if "booting" in events else None,
        "snapshot_percent": events["snapshot"].number("percent") if "snapshot" in events else None,
        "died": events["died"].text("reason") if "died" in events else None,
        "manifest": (told.text("manifest") or None) if told else None,
        "wanted": wanted or None,
        "failure": failure,
        "reason": reason,
        "provider": provider.name,
        "pid": process.pid(machine),
        "ssh_host": record.ssh_host,
        "ssh_port": record.ssh_port,
        "forwards": {str(guest): host for guest, host in record.forwards.items()},
        "image": record.image,
        "spec": record.source,
        "spec_digest": record.spec_digest,
        "folder": str(machine.folder),
        "disk_bytes": _used_bytes(machine.disk) if provider.name == "qemu" else None,
        "scratch": attrs.asdict(record.scratch) if record.scratch else None,
        "provenance": provenance,
        "follow": _follow(events.get("follow")),
        "sealed": attrs.asdict(record.sealed) if record.sealed else None,
        "jobs": _jobs(events.get("jobs")),
        "stale": None if outdated is None else [step.as_json() for step in outdated],
    }


def _jobs(told: Event | None) -> dict[str, int] | None:
    """The counts of a runner; what is none is dropped."""
    if told is None:
        return None
    texts = {name: str(value) for name, value in told.fields.items()}
    return {name: int(text) for name, text in texts.items() if _COUNT.fullmatch(text)}


def _sealed_lines(facts: dict[str, Any]) -> list[str]:
    """What a box became, and what its runner told."""
    sealed, jobs = facts["sealed"], facts["jobs"]
    lines = [f"  sealed      {sealed['role']} of {sealed['site']}"] if sealed else []
    if sealed and facts["state"] == "ready":
        lines.append(f"              not yet: `kimbox secure {facts['name']}` restarts it, which closes it")
    if jobs:
        lines.append("  jobs        " + ", ".join(f"{count} {name}" for name, count in jobs.items()))
    return lines


def _provenance_lines(told: dict[str, Any] | None) -> list[str]:
    """When and how the root was provisioned, and what in it is not what the lock says."""
    if told is None:
        return []
    done = told["provisioned"]
    return [f"  provisioned {done['at'] or 'not yet'}, {_WAYS.get(done['by'], done['by'])}", *unusual_lines(told)]


def _follow(told: Event | None) -> dict[str, Any] | None:
    """Which branch a box follows, and what came of it at its last boot."""
    if told is None:
        return None
    return {key: told.text(key) or None for key in ("branch", "status", "newest", "commit", "reason")}


def _short(commit: str | None) -> str:
    return commit[:12] if commit else "a commit that it does not tell"


def _follow_lines(told: dict[str, Any] | None) -> list[str]:
    if told is None:
        return []
    line = f"  follows     {told['branch']}: runs {_short(told['commit'])}"
    if told["status"] == "failed":
        return [line, f"  newest      {_short(told['newest'])} failed: {told['reason']}"]
    return [
        line + (f"; it could not be reached: {told['reason']}" if told["status"] == "unreachable" else ", its newest")
    ]


def unusual_lines(told: dict[str, Any] | None) -> list[str]:
    """What in a box is not what lock and spec say, from its `provenance`."""
    lines = []
    if told and told["unpinned"]:
        commit = told["provisioned"]["setup_commit"]
        setup = f" (setup at {commit[:12]})" if commit and SETUP in told["unpinned"] else ""
        lines.append(f"  UNPINNED    {', '.join(told['unpinned'])}: not what the lock says{setup}")
    if told and told["provisioned"]["part"]:
        lines.append(f"  PARTIAL     {told['provisioned']['part']}: the rest of its manifest was left out")
    return lines


def stale_lines(facts: dict[str, Any]) -> list[str]:
    """The steps that ran under other commits, from what `facts_of` gave."""
    from kimbox.guest.stale import words

    return [f"  STALE       {words(step)}" for step in facts["stale"] or ()]


def _wanted_lines(facts: dict[str, Any]) -> list[str]:
    """What the box has gone back from, if it has."""
    if not facts["wanted"]:
        return []
    why = f": {facts['reason']}" if facts["reason"] and not facts["failure"] else ""
    return [f"  wanted      {facts['wanted']}, which failed{why}"]


def _disk_words(size_bytes: int | None) -> str:
    """How large a disk is; None: it lies with libvirt."""
    return "in libvirt's pool, the rest" if size_bytes is None else f"{size_bytes / 1e6:.0f} MB"


def _used_bytes(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:  # it is being destroyed, or was damaged
        return 0

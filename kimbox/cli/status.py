"""kimbox status: show the state of a box and how to reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kimbox.cli import connections, lifetimes, several, spaces, target
from kimbox.spec.model import SETUP, BootMode

if TYPE_CHECKING:
    from pathlib import Path

    from kimbox.guest.events import Event
    from kimbox.machine.folder import Machine
    from kimbox.machine.record import Record
    from kimbox.machine.state import Observation, State


#: Keys of a summary. An unknown value is None.
#: - `box` and `purpose`: the box that the machine belongs to, and the purpose of the machine.
#: - `boot`, from the events of the last boot: its mode.
#: - `snapshot_percent`, from the same events: the fill level of a snapshot smaller than root, when it last passed 70,
#:   85 or 95 %.
#: - `died`, from the same events: why the previous boot ended, if its snapshot was full.
#: - `template`: the key of the template that a clone was made from.
#: - `failure` and `reason`: what failed, and why.
#: - `wanted`: the manifest that failed, if the box returned to `manifest`, the last one that reached ready. Then
#:   `reason` says why.
#: - `packages_as_of`: the date of the packages of its image.
#: - `provenance`: content of the box and how it was provisioned, from /etc/kimbox/box.json in the box
#:   (schemas/boxfile.schema.json).
#: - `sealed`: role and site of a sealed box.
#: - `put_back`: the last time at which the host put the disk of a sealed box back to its image, and what the run before
#:   had changed.
#: - `mounts`: the folders of the host; `is_served` is false if the program that serves one has ended.
#: - `host_key`: the public ssh host key of the box. A worker pins that of its director.
#: - `guest`: `cloud-init` or `kimbox`, of a box whose image kimbox did not build: whether its guest reported by itself.
#: - `jobs`: the last counts from the runner of its role.
#: - `stale`: the steps that ran under other commits than the box has now, each with both commits and the command that
#:   runs it again.
#: - `auto_forwards`, `display`, `networks`: see `connections.connections_of`.
#: - `saved`: the last save: url of the store, number, and time; null if it was never saved.
#: - `lifetime`: ends_at, remaining_s, ended_at (shut down and saved) and failure; null if it has none.
#: - `service`: its service of systemd (state, result, restarts, is_enabled, gave_up); null if it has none.
#: - `installed`: the packages that `up --install` has added to those of its image.
#: - `settings`: the values of the spec that `--set` has changed, as KEY=VALUE.
#: - `health`: the last report of a sealed box, see `health.as_json`.
#: - `problems`: the problems of the box, each with code, time, severity and detail; see `machine.problems`.
SUMMARY_KEYS = (
    "name", "box", "purpose", "state", "boot", "snapshot_percent", "died", "manifest", "wanted", "failure", "reason",
    "provider", "pid", "ssh_host", "ssh_port", "forwards", "auto_forwards", "networks", "display", "image",
    "packages_as_of", "spec", "spec_digest", "folder", "disk_bytes", "scratch", "mounts", "template", "provenance",
    "follow", "sealed", "put_back", "jobs", "stale", "host_key", "guest", "saved", "lifetime", "service", "settings",
    "installed", "health", "problems",
)  # fmt: skip


#: Value of `provisioned.by` in box.json -> how the root was provisioned.
_PROVISIONED_BY = {
    "hand": "by hand", "first": "as a new box", "resnap": "as a new root", "keep": "as a root that was kept",
}  # fmt: skip

#: Codes of problems that other lines of the output show.
_SHOWN_ELSEWHERE = {
    "crashed",
    "failed",
    "fallback",
    "not-running",
    "not-sealed",
    "snapshot-lost",
    "stale-steps",
    "starting",
}


def status(
    box: target.Name = None,
    file: target.File = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Print one line and exit with 0, 1, 2 or 3, as plugins of monitoring systems do."),
    ] = False,
) -> None:
    """Show the state of a box, how to reach it and what it was made from.

    The JSON has these values from the events of the last boot: boot (the mode of the boot), snapshot_percent (the fill
    level of a snapshot smaller than root, when it last passed 70, 85 or 95 %), died (why the previous boot ended, if
    its snapshot was full), manifest, wanted (the manifest that failed, if the box returned to the last good one),
    failure and reason, and provenance (the content of /etc/kimbox/box.json in the box).

    stale lists the steps that ran under other commits than the box has now, with the old and the new commit of each
    repository and the command that runs the step again. A sealed box has sealed (role and site), put_back (at: when the
    host last put its disk back to the image; changed: the parts that the run before had changed) and jobs (counts from
    the runner of its role). host_key is the ssh host key of the box, for `gateway.host_keys` of workers. guest
    is cloud-init for a box of a cloud image, which kimbox has prepared over ssh. networks has the networks of the last
    start: name, subnet, addresses (of each box) and is_up. auto_forwards has the ports of `guest: auto` that are
    forwarded now. display is the protocol of its screen. mounts has the folders of the host; is_served is false if the
    program that serves one does not run. An unknown value is null.

    problems lists what is wrong: code, since (the time in UTC, as far as this host knows), severity (warning, critical)
    and detail. health has the last report of a sealed box: spaces (free space of each file system), snapshot_percent,
    clock_synchronised, link_age_s (seconds since the last answer of its director), last_job_age_s, and age_s (of the
    report). docs/monitoring.md lists the codes.

    With --check the exit status is 0 without a problem, 1 with warnings, 2 with a critical problem, and 3 if the state
    is unknown, for example because there is no such box. The line has the numbers as performance data.

    \b
    Examples:
      kimbox status
      kimbox status openkim-dev --json
      kimbox status openkim-worker --check
    """
    if check:
        from kimbox.cli import plugin

        raise typer.Exit(plugin.check(box, file))
    several.one_or_each("status", box, file, _summary, "\n\n")


def _summary(box: str | None, file: Path | None) -> tuple[dict[str, Any], str]:
    """Returns the summary of a box, and the text of it. Raises StateError if there is no such box."""
    summary = summary_of(target.machine(box, file))
    if summary["state"] == "absent":
        summary["spec"] = str(target.project(box, file).source)
    return summary, "\n".join(_lines(summary))


def _lines(summary: dict[str, Any]) -> list[str]:
    """Returns the lines of the output."""
    from kimbox.lock.apt import age
    from kimbox.machine.bootmode import MAINTAINED
    from kimbox.machine.record import Purpose

    lines = [f"{summary['name']}: {summary['state']}"]
    if summary.get("failure"):
        lines.append(f"  failed at   {summary['failure']}")
        lines += [f"  reason      {summary['reason']}"] if summary["reason"] else []
    if summary.get("died"):
        lines.append(f"  previous    the boot ended: {summary['died']}")
    if summary["state"] != "absent":
        percent = summary["snapshot_percent"]
        if summary["purpose"] != Purpose.BOX:
            lines.append(f"  purpose     {summary['purpose']}, of {summary['box']}")
        if summary["template"]:
            lines.append(f"  template    {summary['template'][:16]}")
        lines += [
            f"  boot        {summary['boot'] or 'unknown'}",
            *([MAINTAINED.format(name=summary["name"])] if summary["boot"] == BootMode.MAINTAIN else []),
            *([f"  snapshot    {percent} % full"] if percent is not None else []),
            *connections.lines(summary),
            *_sealed_lines(summary),
            *_problem_lines(summary),
            f"  manifest    {summary['manifest'] or 'none'}",
            *_wanted_lines(summary),
            *_provenance_lines(summary["provenance"]),
            *stale_lines(summary),
            *_follow_lines(summary["follow"]),
            f"  image       {summary['image'][:16]}",
            *(f"  installed   {package}" for package in summary["installed"]),
            *([f"  packages    {age.words(as_of)}"] if (as_of := summary["packages_as_of"]) else []),
            f"  spec        {summary['spec']}",
            *(f"  set         {setting}" for setting in summary["settings"]),
            f"  disk        {_disk_text(summary)}",
            *lifetimes.lines(summary),
        ]
    return lines + spaces.lines(summary)


def summary_of(machine: Machine) -> dict[str, Any]:
    """Returns the keys SUMMARY_KEYS of a machine, as in the JSON of `status` and `list`. Takes no lock."""
    from kimbox.actions import observe
    from kimbox.guest import stale
    from kimbox.guest.health import Work
    from kimbox.machine.console import SNAPSHOT_FULL
    from kimbox.machine.state import State, derive, last_manifest_event, lost_root

    observation = observe.observe(machine)
    state = derive(observation)
    if state is State.ABSENT:
        return dict.fromkeys(SUMMARY_KEYS) | {"name": machine.name, "state": str(state)}
    record = machine.record()
    events = {event.name: event for event in observation.events}
    failed = events.get("failed") if state is State.FAILED else lost_root(observation.events)
    failure, reason = (
        (f"{failed.text('kind')} {failed.text('name')}", failed.text("reason")) if failed else (None, None)
    )
    if observation.snapshot_full:
        failure, reason = "snapshot of root", SNAPSHOT_FULL.message
    last_event = last_manifest_event(observation.events)
    failed_manifest = last_event.text("wanted") if last_event else ""
    provenance = observe.provenance(machine, observation.events)
    stale_steps = stale.steps(machine.name, provenance, sealed=record.sealed is not None)
    if failed_manifest and not failure and "fallback" in events:
        reason = events["fallback"].text("reason")
    return {
        "name": machine.name,
        "box": record.box,
        "purpose": str(record.purpose),
        "state": str(state),
        "boot": events["booting"].text("mode") if "booting" in events else None,
        "snapshot_percent": events["snapshot"].number("percent") if "snapshot" in events else None,
        "died": events["died"].text("reason") if "died" in events else None,
        "manifest": (last_event.text("manifest") or None) if last_event else None,
        "wanted": failed_manifest or None,
        "failure": failure,
        "reason": reason,
        **_host_facts(machine, record),
        "provenance": provenance,
        "follow": _follow(events.get("follow")),
        "jobs": Work.of(events["jobs"]).counts if "jobs" in events else None,
        "stale": None if stale_steps is None else [step.as_json() for step in stale_steps],
        **_health(machine, observation, state, reason, [step.step for step in stale_steps or ()]),
    }


def _host_facts(machine: Machine, record: Record) -> dict[str, Any]:
    """Returns the keys of a summary that this host knows without the guest."""
    import attrs

    from kimbox.drivers import registry
    from kimbox.image.store import dates
    from kimbox.machine import keys

    driver = registry.of(machine)
    return {
        "template": record.template,
        "provider": driver.name,
        "pid": driver.pid(),
        **connections.connections_of(machine, record),
        "image": record.image,
        "packages_as_of": dates.packages_as_of(record.image),
        "spec": record.source,
        "spec_digest": record.spec_digest,
        "folder": str(machine.folder),
        "disk_bytes": _used_bytes(machine.disk) if driver.features.own_disk else None,
        **spaces.spaces_of(machine, record),
        "sealed": attrs.asdict(record.sealed) if record.sealed else None,
        "put_back": attrs.asdict(record.put_back) if record.put_back else None,
        "host_key": keys.host_key(machine),
        "guest": record.guest and str(record.guest),
        "saved": attrs.asdict(record.saved) if record.saved else None,
        "lifetime": lifetimes.lifetime_of(machine),
        "service": lifetimes.service_of(machine),
        "settings": list(record.settings),
        "installed": list(record.installed),
    }


def _health(
    machine: Machine, observation: Observation, state: State, reason: str | None, stale_steps: list[str]
) -> dict[str, Any]:
    """Returns the keys `health` and `problems` of a summary."""
    import time

    from kimbox.files import read_end
    from kimbox.guest import health
    from kimbox.machine.console import CONSOLE_BYTES, last_panic
    from kimbox.machine.problems import Known, problems

    now_s = time.time()
    clock = health.Clock(observation.events, _changed_s(machine.events_file) or now_s)
    record, ended_s = machine.record(), None if state.running else _changed_s(machine.record_file)
    known = Known(
        state,
        record.sealed is not None,
        clock,
        now_s,
        ended_s,
        reason,
        stale_steps,
        record.put_back,
        _full_outputs(machine),
        last_panic(read_end(machine.serial_log, CONSOLE_BYTES)),
        [*spaces.lost(machine, record), *connections.lost(machine, record)] if state.running else (),
    )
    return {
        "health": health.as_json(observation.events, clock, now_s) if state.running else None,
        "problems": [problem.as_json() for problem in problems(known)],
    }


def _full_outputs(machine: Machine) -> list[str]:
    """Returns the names of the files with output of the guest that have reached OUTPUT_LIMIT_BYTES."""
    from kimbox.machine.folder import OUTPUT_LIMIT_BYTES

    sizes = {file.name: file.stat().st_size for file in machine.outputs if file.exists()}
    return [name for name, size_bytes in sizes.items() if size_bytes >= OUTPUT_LIMIT_BYTES]


def _changed_s(path: Path) -> float | None:
    """Returns the time at which a file was changed, in seconds since the epoch; None if it cannot be read."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _problem_lines(summary: dict[str, Any]) -> list[str]:
    """Returns lines with the problems that no other line shows."""
    return [
        f"  PROBLEM     {problem['detail']}, since {problem['since'] or 'an unknown time'}"
        for problem in summary["problems"]
        if problem["code"] not in _SHOWN_ELSEWHERE
    ]


def _sealed_lines(summary: dict[str, Any]) -> list[str]:
    """Returns lines with the role of a sealed box, the state of its disk, and the counts from its runner."""
    sealed, jobs = summary["sealed"], summary["jobs"]
    lines = [f"  sealed      {sealed['role']} of {sealed['site']}"] if sealed else []
    if sealed and summary["state"] == "ready":
        lines.append(f"              not yet: `kimbox secure {summary['name']}` restarts the box, which seals it")
    if put_back := summary["put_back"]:
        lines.append(f"  put back    {put_back['at']}, by this host: the disk except /persistent is that of the image")
        if put_back["changed"]:
            lines.append(f"  CHANGED     by root in the box, before that: {', '.join(put_back['changed'])}")
    if sealed and summary["host_key"]:
        lines.append(f"  host key    {summary['host_key']}")
    if jobs:
        lines.append("  jobs        " + ", ".join(f"{count} {name}" for name, count in jobs.items()))
    return lines


def _provenance_lines(provenance: dict[str, Any] | None) -> list[str]:
    """Returns lines with the time and the way of the provisioning, and the differences from the lock."""
    if provenance is None:
        return []
    provisioned = provenance["provisioned"]
    way = _PROVISIONED_BY.get(provisioned["by"], provisioned["by"])
    line = f"  provisioned {provisioned['at'] or 'not yet'}, {way}"
    return [line, *unusual_lines(provenance)]


def _follow(event: Event | None) -> dict[str, Any] | None:
    """Returns the branch that a box follows, and the result of the last boot."""
    if event is None:
        return None
    return {key: event.text(key) or None for key in ("branch", "status", "newest", "commit", "reason")}


def _short(commit: str | None) -> str:
    return commit[:12] if commit else "an unknown commit"


def _follow_lines(follow: dict[str, Any] | None) -> list[str]:
    if follow is None:
        return []
    line = f"  follows     {follow['branch']}: runs {_short(follow['commit'])}"
    if follow["status"] == "failed":
        return [line, f"  newest      {_short(follow['newest'])} failed: {follow['reason']}"]
    if follow["status"] == "unreachable":
        return [f"{line}; the branch could not be fetched: {follow['reason']}"]
    return [f"{line}, the newest commit"]


def unusual_lines(provenance: dict[str, Any] | None) -> list[str]:
    """Returns lines with the differences of a box from lock and spec."""
    if provenance is None:
        return []
    lines = []
    if unpinned := provenance["unpinned"]:
        commit = provenance["provisioned"]["setup_commit"]
        setup = f" (setup at {commit[:12]})" if commit and SETUP in unpinned else ""
        lines.append(f"  UNPINNED    {', '.join(unpinned)}: not at the commit of the lock{setup}")
    if part := provenance["provisioned"]["part"]:
        lines.append(f"  PARTIAL     {part}: other steps of the manifest did not run")
    return lines


def stale_lines(summary: dict[str, Any]) -> list[str]:
    """Returns lines with the steps that ran under other commits, from the result of `summary_of`."""
    from kimbox.guest.stale import words

    return [f"  STALE       {words(step)}" for step in summary["stale"] or ()]


def _wanted_lines(summary: dict[str, Any]) -> list[str]:
    """Returns a line with the manifest that failed, if the box returned to an earlier one."""
    if not summary["wanted"]:
        return []
    reason = f": {summary['reason']}" if summary["reason"] and not summary["failure"] else ""
    return [f"  wanted      {summary['wanted']}, which failed{reason}"]


def _disk_text(summary: dict[str, Any]) -> str:
    """Returns the size of the disk and the folder of the machine. Some drivers keep the disk elsewhere."""
    size_bytes, folder = summary["disk_bytes"], summary["folder"]
    if size_bytes is None:
        return f"managed by {summary['provider']}; other files of the machine at {folder}"
    return f"{size_bytes / 1e6:.0f} MB at {folder}"


def _used_bytes(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:  # the machine is being destroyed, or is damaged
        return 0

"""kimbox expire: end the lifetimes that are over, and send the notifications that wait."""

from __future__ import annotations

from kimbox.cli.output import report


def expire() -> None:
    """Shut down and save the boxes whose lifetime is over, announce ends that are near, and send notifications.

    You need not run it: the timer of systemd that kimbox writes for you does, every five minutes, and each other verb
    runs it in the background if something is due. On a host without systemd, it can be in a crontab.

    A box whose save fails keeps its disk. `kimbox list` shows why, and a later run makes another attempt. Nothing is
    removed.

    The JSON has: ended (name, url, number and failure of each box), announced and crashed (names), and notifications
    (event, name, and reason if it was not sent).

    \b
    Examples:
      kimbox expire
      kimbox expire --json
    """
    import attrs

    from kimbox.actions import expire as expiring

    done = expiring.expire()
    lines = []
    for end in done.ended:
        saved = f"saved as number {end.number} in {end.url}" if end.url else "nothing to save"
        lines.append(f"{end.name} has ended: {end.failure or saved}")
    lines += [f"{name} ends within an hour" for name in done.announced]
    lines += [f"{name} has crashed" for name in done.crashed]
    for one in done.deliveries:
        what = f"notification of {one.message['name']}: {one.message['event']}"
        lines.append(f"{what}: {one.reason or 'sent'}")
    result = {
        "ended": [attrs.asdict(end) for end in done.ended],
        "announced": done.announced,
        "crashed": done.crashed,
        "notifications": [
            {"event": one.message["event"], "name": one.message["name"], "reason": one.reason}
            for one in done.deliveries
        ],
    }
    report("expire", result, "\n".join(lines) or "nothing is due")

"""Notices that a guest has hung: it no longer reports every few seconds that it is alive (provisioners/job). Pure.

The silence of a guest has several causes, and all of them are its end: its kernel hangs or loops, its processes do not
run, or QEMU itself does not work.
"""

from __future__ import annotations

from dataclasses import dataclass

from kimbox.guest.events import Event

#: A guest that is silent for this time has hung, in seconds. It is long, because a program may use all of the memory
#: and the processors, and a host may be busy.
SILENCE_S = 90.0

#: Time from the time limit of the program until the guest must have ended it, in seconds.
END_MARGIN_S = 120.0

#: Name of the event of a job, and its statuses that do not report an end.
EVENT, PROGRESS = "job", ("started", "alive")

#: What the kernel writes to the console when it cannot go on.
PANIC = "Kernel panic"


@dataclass(slots=True)
class Heartbeat:
    """The last sign of life of a guest. Times are those of time.monotonic()."""

    limit_s: float
    #: At first, when the guest was ready: it starts the job within a few seconds. None: the guest does not tell while
    #: the program runs, because its image is that of an older kimbox.
    _last_s: float | None

    def hear(self, event: Event, now_s: float) -> None:
        """Takes an event `job` of the guest."""
        if event.text("status") == "started" and not event.text("beat"):
            self._last_s = None
        elif self._last_s is not None:
            self._last_s = now_s

    def is_silent(self, now_s: float) -> bool:
        """Whether the guest has hung."""
        return self._last_s is not None and now_s - self._last_s > self.limit_s

"""The states of a machine and how they follow from an observation. Pure: no file says what state a machine is in.

            up                     halt, poweroff
absent ----------> booting ---> provisioning ---> ready ----------> halted
                                            \\---> sealed, once it was secured
   ^                  |  \\          |    \\        |  ^
   |                  |   \\         v     +----> failed  (up again, after a look inside)
destroy               |    +-----> crashed        |
   +------------------+---------------------------+
                                 suspend -> suspended -> resume
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import attrs

from kimbox.errors import StateError
from kimbox.guest.events import Event


class State(StrEnum):
    """What a machine is now; the words that `status` prints."""

    ABSENT = "absent"
    HALTED = "halted"
    SUSPENDED = "suspended"
    CRASHED = "crashed"
    PAUSED = "paused"
    BOOTING = "booting"
    PROVISIONING = "provisioning"
    READY = "ready"
    SEALED = "sealed"
    FAILED = "failed"

    @property
    def running(self) -> bool:
        """Whether there is a process that runs the guest."""
        return self in (State.PAUSED, State.BOOTING, State.PROVISIONING, State.READY, State.SEALED, State.FAILED)

    @property
    def reachable(self) -> bool:
        """Whether ssh may be expected to answer."""
        return self in (State.PROVISIONING, State.READY, State.FAILED)


#: Which states allow a verb. `up` and `status` are always allowed; `up` knows a way from everywhere.
_ANSWERS = frozenset({State.BOOTING, State.PROVISIONING, State.READY, State.FAILED})
ALLOWED: dict[str, frozenset[State]] = {
    "ssh": _ANSWERS,
    "exec": _ANSWERS,
    "audit": _ANSWERS | {State.SEALED},
    "provision": frozenset({State.READY, State.FAILED, State.PROVISIONING}),
    "suspend": frozenset({State.READY, State.FAILED, State.PROVISIONING, State.BOOTING, State.PAUSED}),
    "resume": frozenset({State.SUSPENDED, State.PAUSED}),
    "secure": frozenset({State.READY}),
}

#: What to do instead.
INSTEAD = {
    State.ABSENT: "create it with `kimbox up {name}`",
    State.HALTED: "start it with `kimbox up {name}`",
    State.SUSPENDED: "wake it with `kimbox resume {name}`",
    State.PAUSED: "let it go on with `kimbox resume {name}`",
    State.CRASHED: "start it again with `kimbox up {name}`; `kimbox logs --serial {name}` tells its last words",
    State.BOOTING: "wait for it with `kimbox up {name}`",
    State.PROVISIONING: "wait for it with `kimbox up {name}`",
    State.SEALED: "nobody enters it: `kimbox status {name}` and `kimbox audit {name}` tell how it is; `kimbox halt`, "
    "`reload` and `destroy` are what the host can do",
    State.READY: "it is running: `kimbox ssh {name}`",
    State.FAILED: "look inside with `kimbox ssh {name}`, or at `kimbox logs {name}`",
}

#: Events that say how far a boot has come. `hostkey` and `sshd` tell something else.
_STAGES = {
    "booting": State.BOOTING,
    "waiting": State.PROVISIONING,
    "provisioning": State.PROVISIONING,
    "step": State.PROVISIONING,
    "ready": State.READY,
    "sealed": State.SEALED,
    "failed": State.FAILED,
}


#: Kinds of failure after which a guest ends itself: the initramfs found no root, the snapshot was full, or a box that
#: was secured cannot close itself.
LOST_ROOT = frozenset({"boot", "snapshot", "seal"})

#: Those of them after which it is off; the others may start it again.
POWERED_OFF = frozenset({"boot", "seal"})


@attrs.frozen
class Observation:
    """What a driver observed of a machine, at one moment."""

    exists: bool
    #: There is a guest that runs.
    running: bool
    #: Its processors are stopped.
    paused: bool
    #: The record says that the state was saved.
    suspended: bool
    #: Events of the last boot, oldest first.
    events: tuple[Event, ...]
    #: kimbox itself ended the last run, or there was none yet: a missing farewell of the guest is no crash.
    ended_by_us: bool
    #: The guest's kernel said on the console that it powers off.
    shut_down: bool = False
    #: The guest's kernel said on the console, in this boot, that the snapshot of root is full: nothing works any more.
    snapshot_full: bool = False


#: Events that tell of a manifest that everything of it was done.
DONE = ("ready", "sealed")


def lost_root(events: Sequence[Event]) -> Event | None:
    """What the guest told when it had no root, if that was its last word on how far it has come."""
    last = next((event for event in reversed(events) if event.name in _STAGES), None)
    return last if last and last.name == "failed" and last.text("kind") in LOST_ROOT else None


def derive(known: Observation) -> State:
    """The state that follows from an observation.

    A box without a root powers itself off, and is crashed all the same: nobody halted it.
    """
    if not known.exists:
        return State.ABSENT
    if not known.running:
        if known.suspended:
            return State.SUSPENDED
        shut_down = known.shut_down and not lost_root(known.events)
        return State.HALTED if shut_down or known.ended_by_us else State.CRASHED
    if known.paused:
        return State.PAUSED
    if known.snapshot_full:
        return State.FAILED
    stages = [_STAGES[event.name] for event in known.events if event.name in _STAGES]
    return stages[-1] if stages else State.BOOTING


def last_word(events: Sequence[Event]) -> Event | None:
    """The guest's last word on a manifest."""
    return next((event for event in reversed(events) if event.name in ("provisioning", *DONE, "failed")), None)


def wanted_by(told: Event) -> str:
    """The manifest that a guest has from the host, by its word on one; after a fallback it uses another."""
    return told.text("wanted") or told.text("manifest")


def require(verb: str, name: str, state: State) -> None:
    """Raises StateError, saying what to do instead, where the state does not allow the verb."""
    if verb in ALLOWED and state not in ALLOWED[verb]:
        what = "there is no box" if state is State.ABSENT else f"the box is {state}"
        raise StateError(f"cannot {verb} {name}: {what}", hint=INSTEAD[state].format(name=name))

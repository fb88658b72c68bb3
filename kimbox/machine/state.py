"""The states of a machine, derived from an observation. No file stores the state, and this module reads no file.

            up                     halt, poweroff
absent ----------> booting ---> provisioning ---> ready ----------> halted
                                            \\---> sealed, if the box was secured
   ^                  |  \\          |    \\        |  ^
   |                  |   \\         v     +----> failed  (repair it, then up or provision)
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
    """The state of a machine. `status` prints these words."""

    ABSENT = "absent"
    HALTED = "halted"
    SUSPENDED = "suspended"
    CRASHED = "crashed"
    PAUSED = "paused"
    UNRESPONSIVE = "unresponsive"
    BOOTING = "booting"
    PROVISIONING = "provisioning"
    READY = "ready"
    SEALED = "sealed"
    FAILED = "failed"

    @property
    def running(self) -> bool:
        """Whether a process runs the guest, even if its processors are stopped."""
        return self not in (State.ABSENT, State.HALTED, State.SUSPENDED, State.CRASHED)

    @property
    def reachable(self) -> bool:
        """Whether the ssh server of the guest is expected to answer."""
        return self in (State.PROVISIONING, State.READY, State.FAILED)


#: Verb -> states that allow it. A verb that is not in the table, as `status`, is allowed in each state.
_ANSWERS = frozenset({State.BOOTING, State.PROVISIONING, State.READY, State.FAILED})
ALLOWED: dict[str, frozenset[State]] = {
    "up": frozenset(State) - {State.UNRESPONSIVE},
    "ssh": _ANSWERS,
    "view": frozenset(state for state in State if state.running),
    "exec": _ANSWERS,
    "cp": _ANSWERS,
    "audit": _ANSWERS | {State.SEALED},
    "provision": frozenset({State.READY, State.FAILED, State.PROVISIONING}),
    "suspend": frozenset({State.READY, State.FAILED, State.PROVISIONING, State.BOOTING, State.PAUSED}),
    "resume": frozenset({State.SUSPENDED, State.PAUSED}),
    "secure": frozenset({State.READY}),
    "reload": frozenset(State) - {State.ABSENT, State.SUSPENDED},
}

#: State -> hint for a verb that the state does not allow.
STATE_HINTS = {
    State.ABSENT: "create it with `kimbox up {name}`",
    State.HALTED: "start it with `kimbox up {name}`",
    State.SUSPENDED: "resume it with `kimbox resume {name}`",
    State.PAUSED: "continue it with `kimbox resume {name}`",
    State.UNRESPONSIVE: "the process that runs it does not answer: `kimbox halt --force {name}` ends it",
    State.CRASHED: "start it with `kimbox up {name}`; `kimbox logs --serial {name}` shows the end of its console",
    State.BOOTING: "wait for it with `kimbox up {name}`",
    State.PROVISIONING: "wait for it with `kimbox up {name}`",
    State.SEALED: "a sealed box accepts no login. `kimbox status {name}` and `kimbox audit {name}` show its state; "
    "from the host, `kimbox halt`, `reload` and `destroy` work",
    State.READY: "it is running: `kimbox ssh {name}`",
    State.FAILED: "inspect it with `kimbox ssh {name}` and `kimbox logs {name}`",
}

#: Event -> state of the machine after it. Other events, as `hostkey` and `sshd`, do not change the state.
_STAGES = {
    "booting": State.BOOTING,
    "waiting": State.PROVISIONING,
    "provisioning": State.PROVISIONING,
    "step": State.PROVISIONING,
    "ready": State.READY,
    "sealed": State.SEALED,
    "failed": State.FAILED,
}

#: Kinds of failure after which a guest powers itself off or restarts: the initramfs did not find a root, the snapshot
#: was full, or a sealed box could not seal itself.
LOST_ROOT = frozenset({"boot", "snapshot", "seal"})

#: Kinds of LOST_ROOT after which the guest is off. After the other kinds it may restart.
POWERED_OFF = frozenset({"boot", "seal"})


@attrs.frozen
class Observation:
    """What a driver observed of a machine at one moment."""

    exists: bool
    #: A process runs the guest.
    running: bool
    #: The processors of the guest are stopped.
    paused: bool
    #: The record has a saved state.
    suspended: bool
    #: Events of the last boot, oldest first.
    events: tuple[Event, ...]
    #: kimbox ended the last run, or the machine has never run. A missing message of a shutdown is not a crash then.
    ended_by_us: bool
    #: The kernel of the guest wrote to the console that it powers off.
    shut_down: bool = False
    #: In this boot the kernel of the guest wrote to the console that the snapshot of root is full, and now invalid.
    snapshot_full: bool = False
    #: The process that runs the guest does not answer its driver.
    unresponsive: bool = False


#: Events that report that all of a manifest was done.
DONE = ("ready", "sealed")


def lost_root(events: Sequence[Event]) -> Event | None:
    """Returns the `failed` event of a guest that lost its root, or None. Later events in _STAGES cancel it."""
    last = next((event for event in reversed(events) if event.name in _STAGES), None)
    return last if last and last.name == "failed" and last.text("kind") in LOST_ROOT else None


def derive(known: Observation) -> State:
    """Derives the state from an observation.

    A guest without a root powers itself off. Its state is `crashed`, because no user halted it.
    """
    if not known.exists:
        return State.ABSENT
    if not known.running:
        if known.suspended:
            return State.SUSPENDED
        shut_down = known.shut_down and not lost_root(known.events)
        return State.HALTED if shut_down or known.ended_by_us else State.CRASHED
    if known.unresponsive:
        return State.UNRESPONSIVE
    if known.paused:
        return State.PAUSED
    if known.snapshot_full:
        return State.FAILED
    stages = [_STAGES[event.name] for event in known.events if event.name in _STAGES]
    return stages[-1] if stages else State.BOOTING


def last_manifest_event(events: Sequence[Event]) -> Event | None:
    """Returns the last event that names a manifest, or None: provisioning started, or it ended well or badly."""
    return next((event for event in reversed(events) if event.name in ("provisioning", *DONE, "failed")), None)


def sent_manifest(event: Event) -> str:
    """Returns the digest of the manifest that the host sent, from an event that names a manifest.

    It is in the field `wanted` if the guest fell back to its last good manifest, which is in the field `manifest` then.
    """
    return event.text("wanted") or event.text("manifest")


def require(verb: str, name: str, state: State) -> None:
    """Raises StateError if the state does not allow the verb: `box-not-found` or `wrong-state`."""
    if verb in ALLOWED and state not in ALLOWED[verb]:
        is_absent = state is State.ABSENT
        raise StateError(
            f"cannot {verb} {name}: {'there is no box' if is_absent else f'the box is {state}'}",
            code="box-not-found" if is_absent else "wrong-state",
            hint=STATE_HINTS[state].format(name=name),
            fields={"verb": verb, "name": name, "state": state},
        )

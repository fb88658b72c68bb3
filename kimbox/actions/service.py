"""kimbox service: the user's systemd keeps boxes up, from the start of the host on.

A machine has a unit. Its main process is QEMU, so systemd notices at once when that ends, and nothing asks for it. If
QEMU crashes, systemd starts the machine again, later each time, and gives up after so many attempts. A guest that hangs
is a matter of its watchdog, which resets it without an end of QEMU.

The units of a pool are those of the clones BOX-1, BOX-2, ... Each start makes a new clone, so that it begins clean, and
one that shuts itself down starts again, too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from kimbox import paths, run
from kimbox.actions.observe import state
from kimbox.actions.userunits import folder, is_available, quoted, suffix, systemctl
from kimbox.drivers import registry
from kimbox.errors import GuestError, KimboxError, MissingToolError, StateError
from kimbox.files import write_atomic
from kimbox.log import log
from kimbox.machine.folder import Machine, machine_of
from kimbox.project.project import Project

#: Maximum number of starts within a time, after which systemd gives up, and that time.
MAX_STARTS, STARTS_WITHIN = 5, "1h"

#: Delay of a new start, in seconds, and the longest one, which systemd 254 and newer reach in so many steps.
DELAY_S, MAX_DELAY_S, DELAY_STEPS = 10, 300, 4

#: Timeout of a start and of a stop, in seconds. The first start builds the image or makes the template.
START_TIMEOUT_S, STOP_TIMEOUT_S = 3600, 180

#: The names of units begin with this.
PREFIX = "kimbox-box-"

#: The variable in which a kimbox that systemd has started for a service finds the name of its machine.
CALLER = "KIMBOX_SERVICE"

_UNIT = """\
# Written by `kimbox service install`.
[Unit]
Description=kimbox box {name}
StartLimitIntervalSec={within}
StartLimitBurst={burst}

[Service]
Type=forking
PIDFile={pid_file}
Environment={home} {own}
{before}ExecStart={kimbox} {start}
ExecStop=/bin/sh -c 'test -z "$$MAINPID" || exec "$$@"' sh {kimbox} halt {quoted_name}
Restart={restart}
RestartSec={delay}
RestartSteps={steps}
RestartMaxDelaySec={max_delay}
TimeoutStartSec={start_timeout}
TimeoutStopSec={stop_timeout}
KillMode=mixed

[Install]
WantedBy=default.target
"""


@attrs.frozen
class Service:
    """The service of a machine, as systemd reports it."""

    name: str
    unit: str
    #: `active`, `activating`, `inactive`, `failed`, ...
    state: str
    #: How the last run ended: `success`, `signal`, `exit-code`, `timeout`, ...
    result: str
    #: Number of starts by systemd after a failure.
    restarts: int
    #: Whether it starts with the host.
    is_enabled: bool

    @property
    def gave_up(self) -> bool:
        """Whether systemd starts the machine no more."""
        return self.state == "failed"


def unit_of(name: str) -> str:
    """Returns the name of the unit of a machine."""
    return f"{PREFIX}{name}{suffix()}.service"


def unit_file(name: str) -> Path:
    """Returns the file of the unit of a machine, whether it exists or not."""
    return folder() / unit_of(name)


def text_of(project: Project, name: str, *, is_clone: bool) -> str:
    """Returns the unit of a machine: that of the box, or a clone of a pool."""
    box = project.box
    spec = [] if project.shipped else ["--file", str(box.source)]
    start = ["clone", *([] if spec else [box.name]), *spec, name] if is_clone else ["up", name, *spec]
    kimbox = f"{quoted(sys.executable)} -P -m kimbox --quiet"
    return _UNIT.format(
        name=name,
        within=STARTS_WITHIN,
        burst=MAX_STARTS,
        pid_file=str(Machine(name).pid_file).replace("%", "%%"),
        home=quoted(f"KIMBOX_HOME={paths.home()}"),
        own=quoted(f"{CALLER}={name}"),
        before=f"ExecStartPre=-{kimbox} destroy --yes {quoted(name)}\n" if is_clone else "",
        kimbox=kimbox,
        start=" ".join(map(quoted, start)),
        quoted_name=quoted(name),
        restart="always" if is_clone else "on-failure",
        delay=DELAY_S,
        steps=DELAY_STEPS,
        max_delay=MAX_DELAY_S,
        start_timeout=START_TIMEOUT_S,
        stop_timeout=STOP_TIMEOUT_S,
    )


def install(project: Project, count: int | None) -> list[Service]:
    """Writes and starts the units of a box, or of `count` clones of it. Those of clones beyond that are removed.

    Raises MissingToolError if the user has no systemd; StateError (`wrong-state`) if the machine runs without its
    service, or its driver runs no process of its own; GuestError (`service-failed`) if a machine does not start.
    """
    _need_systemd()
    names = [project.name] if count is None else [f"{project.name}-{number}" for number in range(1, count + 1)]
    for name in names:
        machine = machine_of(name) if count is None else Machine(name)
        registry.need_own_process(machine)
        _refuse_running(machine)
    texts = {name: text_of(project, name, is_clone=count is not None) for name in names}
    for name, text in texts.items():
        write_atomic(unit_file(name), text)
    if count is not None:
        _remove_beyond(project.name, count)
    units = [unit_of(name) for name in names]
    systemctl("daemon-reload")
    systemctl("enable", *units)
    _linger()
    with log.step(f"starting {', '.join(names)}" if len(names) < 4 else f"starting {len(names)} clones"):
        try:
            systemctl("start", *units, timeout_s=START_TIMEOUT_S)
        except run.CommandError as error:
            raise GuestError(
                f"systemd could not start {', '.join(names)}: {error}",
                code="service-failed",
                hint=f"`journalctl --user -u {units[0]}` has the reason; `kimbox service remove` ends the attempts",
                fields={"name": project.name},
            ) from None
    return [found for name in names if (found := service(name))]


def _need_systemd() -> None:
    if not is_available():
        raise MissingToolError(
            "this host has no systemd for its users, or you have no session of it",
            hint="log in through ssh or a console of the host; `loginctl user-status` shows your session",
            fields={"program": "systemctl"},
        )


def _refuse_running(machine: Machine) -> None:
    """Raises StateError if a machine runs, and systemd did not start it: it cannot take it over."""
    now = service(machine.name)
    if machine.running and not (now and now.state == "active"):
        raise StateError(
            f"{machine.name} runs already, and systemd cannot take its process over",
            code="wrong-state",
            hint=f"`kimbox halt {machine.name}`, then the same command again",
            fields={"name": machine.name, "state": str(state(machine))},
        )


def _linger() -> None:
    """Lets the user's systemd start with the host, and not only with a login."""
    try:
        run.run(["loginctl", "enable-linger"], timeout_s=20)
    except KimboxError as error:
        log.warn(f"the service starts when you log in, not with the host: {error}; try `sudo loginctl enable-linger`")


def _remove_beyond(box: str, count: int) -> None:
    """Removes the services of a pool with a number above `count`."""
    for name in installed():
        if (_number(name, box) or 0) > count:
            remove(name)


def remove(name: str) -> bool:
    """Stops and removes the service of a machine, which is halted. Returns whether there was one."""
    if not unit_file(name).exists() or _is_caller(name):
        return False
    if is_available():
        with log.step(f"stopping the service of {name}"):
            systemctl("disable", "--now", unit_of(name), timeout_s=STOP_TIMEOUT_S)
    unit_file(name).unlink(missing_ok=True)
    if is_available():
        systemctl("daemon-reload")
        run.run(["systemctl", "--user", "reset-failed", unit_of(name)], check=False)
    return True


def rest(machine: Machine) -> None:
    """Tells systemd that a machine was halted on purpose: it is not started again before the next start of the host."""
    if unit_file(machine.name).exists() and is_available() and not _is_caller(machine.name):
        try:
            systemctl("stop", unit_of(machine.name), timeout_s=STOP_TIMEOUT_S)
        except KimboxError as error:
            log.warn(f"systemd may start {machine.name} again: {error}")


def _is_caller(name: str) -> bool:
    """Whether systemd runs this process to start or stop the machine."""
    return os.environ.get(CALLER) == name


def names_of(box: str) -> list[str]:
    """Returns the machines of a box that have a service: the box itself and the clones of its pool."""
    return [name for name in installed() if name == box or _number(name, box) is not None]


def _number(name: str, box: str) -> int | None:
    """Returns the number of a clone in the pool of a box; None if the machine is not one."""
    number = name.removeprefix(f"{box}-")
    return int(number) if number != name and number.isdecimal() and len(number) < 7 else None


def installed() -> list[str]:
    """Returns the names of all machines of this home that have a service."""
    end = f"{suffix()}.service"
    files = sorted(folder().glob(f"{PREFIX}*{end}"), key=lambda path: (len(path.name), path.name))
    names = [path.name.removeprefix(PREFIX).removesuffix(end) for path in files]
    return [name for name in names if _is_of_this_home(unit_file(name))]


def _is_of_this_home(path: Path) -> bool:
    try:
        return quoted(f"KIMBOX_HOME={paths.home()}") in path.read_text()
    except (OSError, UnicodeDecodeError):
        return False


def service(name: str) -> Service | None:
    """Returns the service of a machine; None if it has none. Without systemd its state is `unknown`."""
    if not unit_file(name).exists():
        return None
    values: dict[str, str] = {}
    if is_available():
        keys = "ActiveState,Result,NRestarts,UnitFileState"
        lines = systemctl("show", "--property", keys, unit_of(name)).splitlines()
        values = dict(line.split("=", 1) for line in lines if "=" in line)
    restarts = values.get("NRestarts", "")
    return Service(
        name,
        unit_of(name),
        values.get("ActiveState", "unknown"),
        values.get("Result", "unknown"),
        int(restarts) if restarts.isdecimal() else 0,
        values.get("UnitFileState") == "enabled",
    )


def services(names: Sequence[str]) -> list[Service]:
    """Returns the services of these machines."""
    return [found for name in names if (found := service(name))]

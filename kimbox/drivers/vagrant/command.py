"""Runs Vagrant with the library python-vagrant. No other module imports that library.

python-vagrant ignores exit statuses and discards Vagrant's stderr. So each call in this module appends both streams to
a log, checks the exit status, and raises an error with Vagrant's message.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from kimbox import paths, run
from kimbox.drivers import accelerator
from kimbox.drivers.vagrant import hypervisor
from kimbox.drivers.vagrant.hypervisor import Hypervisor
from kimbox.errors import GuestError, MissingToolError
from kimbox.files import read_end
from kimbox.guest.events import printable

#: A function that calls python-vagrant. Its arguments: Vagrant's subcommand, for messages, and the call.
Call = Callable[[str, Callable[[Any], Any]], Any]

#: Number of bytes at the end of Vagrant's output that are read for an error, and of lines of it that are shown.
OUTPUT_BYTES = 64 << 10
OUTPUT_LINES = 12

_ERROR = re.compile(r"^\d+,[^,]*,error-exit,([^,]*),(.*)$", re.MULTILINE)


def library(backend: Hypervisor) -> Any:
    """Returns the module of python-vagrant. Raises MissingToolError if Vagrant or the hypervisor is not installed."""
    run.require("vagrant", "it runs the box")
    backend.require_program()
    try:
        import vagrant
    except ImportError as error:
        raise MissingToolError(f"python-vagrant is missing: {error}", hint="install kimbox again") from None
    return vagrant


def plugins() -> list[str]:
    """Returns the names of Vagrant's plugins in kimbox's VAGRANT_HOME. Raises GuestError if Vagrant fails."""
    folder = paths.vagrant_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return [plugin.name for plugin in in_home(hypervisor.default())("plugin list", lambda v: v.plugin_list())]


def in_home(backend: Hypervisor) -> Call:
    """Returns a `Call` that runs Vagrant in VAGRANT_HOME, for commands that concern no machine."""
    folder = paths.vagrant_dir()
    return lambda what, act: call(backend, folder, folder / "vagrant.log", what, act)


def call(backend: Hypervisor, folder: Path, output: Path, what: str, act: Callable[[Any], Any], of: str = "") -> Any:
    """Calls `act` with python-vagrant in a folder; stdout and stderr are appended to the file `output`.

    `what` (Vagrant's subcommand) and `of` (the machine) are for the message. Raises GuestError (`vagrant-failed`) with
    Vagrant's message.
    """
    python_vagrant = library(backend)
    start = output.stat().st_size if output.exists() else 0

    @contextlib.contextmanager
    def appended() -> Iterator[IO[bytes]]:
        with output.open("ab") as file:
            yield file

    vagrant = python_vagrant.Vagrant(str(folder), env=_environment(backend), out_cm=appended, err_cm=appended)
    command = vagrant._make_vagrant_command
    if run.which("setpriv"):  # else Vagrant runs on if kimbox is killed, and holds its lock of the machine
        vagrant._make_vagrant_command = lambda arguments: [*run.die_with_parent_prefix(), *command(arguments)]
    try:
        return act(vagrant)
    except python_vagrant.subprocess.CalledProcessError as error:
        printed = (error.output or b"").decode("utf-8", "replace")
        logged = read_end(output, min(OUTPUT_BYTES, max(0, output.stat().st_size - start)))
        status, text = run.describe_status(error.returncode), failure_text(printed, logged)
        raise GuestError(
            f"vagrant {what} {status}{f' for {of}' if of else ''}:\n{text}".rstrip(),
            code="vagrant-failed",
            hint=f"the complete output of Vagrant is in {output}",
            fields={"name": of, "command": what},
        ) from None


def failure_text(printed: str, logged: bytes) -> str:
    """Returns the text of a failure: Vagrant's machine-readable error, or the end of its output."""
    error = _ERROR.search(printed)
    if error:
        text = error[2].replace("%!(VAGRANT_COMMA)", ",").replace("\\n", "\n").replace("\\r", "")
    else:
        text = f"{logged.decode('utf-8', 'replace')}\n{printed}"
    lines = [line for line in text.splitlines() if line.strip() and "Progress: " not in line]
    return "\n".join(f"    {printable(line)[:400]}" for line in lines[-OUTPUT_LINES:])


def _environment(backend: Hypervisor) -> dict[str, str]:
    """Returns Vagrant's environment: kimbox's own boxes, no check for updates, and the domain type of this host."""
    domain_type = "kvm" if accelerator.find().name == "kvm" else "qemu"
    return run.environment(
        {
            "VAGRANT_HOME": str(paths.vagrant_dir()),
            "VAGRANT_DEFAULT_PROVIDER": backend.NAME,
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_NO_COLOR": "1",
            "KIMBOX_LIBVIRT_DRIVER": domain_type,
        }
    )

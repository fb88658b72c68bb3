"""Runs the commands with which `kimbox doctor` repairs this host.

A check that fails says what helps, for a person to read. If that text is a command of kimbox's own making, it can be
run: without a shell, and with `sudo` only if this user is not root.
"""

from __future__ import annotations

import os
import pwd
import shlex
import sys
from collections.abc import Iterable

import attrs

from kimbox import run
from kimbox.drivers.hostcheck import HostCheck, Outcome
from kimbox.errors import KimboxError
from kimbox.log import log

#: The programs that a repair calls. A text that starts with another word is advice, and no command.
PROGRAMS = ("apt-get", "usermod", "sysctl", "systemctl", "vagrant", "kimbox")

#: The program, or the program and its verb -> an option with which it does not ask.
_DO_NOT_ASK = {("apt-get", "install"): "--yes", ("kimbox", "prune"): "--yes"}


@attrs.frozen
class Command:
    """A command, and the variables of the environment that it is run with."""

    words: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """The command as a user would type it."""
        return shlex.join([*(f"{name}={value}" for name, value in self.env), *self.words])


def commands(checks: Iterable[HostCheck], outcome: Outcome) -> list[Command]:
    """Returns the commands that repair the checks with an outcome, in order, each once. The first installs packages."""
    found = [command for check in checks if check.outcome is outcome for command in commands_in(check.repair or "")]
    packages = [word for command in found if _is_install(command) for word in command.words[3:]]
    others = [command for command in dict.fromkeys(found) if not _is_install(command)]
    install = [Command(("sudo", "apt-get", "install", *dict.fromkeys(packages)))] if packages else []
    return install + others


def _is_install(command: Command) -> bool:
    return command.words[:3] == ("sudo", "apt-get", "install")


def commands_in(repair: str) -> list[Command]:
    """Returns the commands in the text of a check, which are joined by `&&`. None if the text is advice."""
    try:
        words = shlex.split(repair, comments=True)
    except ValueError:  # an apostrophe, as in: this machine's
        return []
    found: list[Command] = []
    user = pwd.getpwuid(os.getuid()).pw_name
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        part, words = words[:end], words[end + 1 :]
        env = []
        while part and "=" in part[0]:
            name, _, value = part.pop(0).partition("=")
            env.append((name, value))
        program = part[1:2] if part[:1] == ["sudo"] else part[:1]
        if not program or program[0] not in PROGRAMS:
            return []
        found.append(Command(tuple(user if word == "$USER" else word for word in part), tuple(env)))
    return found


def perform(command: Command) -> None:
    """Runs a command. Its output is shown. Raises CommandError, MissingToolError."""
    words = list(command.words)
    is_sudo = words[0] == "sudo"
    if is_sudo:
        words.pop(0)
    if option := _DO_NOT_ASK.get((words[0], words[1] if len(words) > 1 else "")):
        words.insert(2, option)
    if words[0] == "kimbox":
        words[:1] = [sys.executable, "-m", "kimbox"]
    if is_sudo and os.geteuid() != 0:
        words.insert(0, "sudo")
    with log.step(str(command)):
        run.stream(words, on_line=log.guest, env=dict(command.env))


def perform_all(chosen: Iterable[Command]) -> list[Command]:
    """Runs commands. Returns those that failed: the others are run all the same, and each failure is shown."""
    failed = []
    for command in chosen:
        try:
            perform(command)
        except KimboxError as error:
            log.warn(error.message)
            failed.append(command)
    return failed

"""The shell texts with which `kimbox exec` runs a command in the guest, and ends it.

sshd reports a program that a signal killed in a way that ssh(1) does not pass on, and it does not end a program whose
connection ends. So the login shell runs the command as its child, and a second text finds that shell by a marker in its
arguments. Each command of ssh has a session (setsid(2)) of its own, whose first process is that shell.
"""

from __future__ import annotations

import secrets
import shlex
import signal
from collections.abc import Sequence

import attrs

#: Prefix of the marker in the arguments of the login shell.
PREFIX = "kimbox-exec-"

#: How long a command that ignores a signal continues until it is killed, in seconds.
GRACE_S = 5

#: Exit codes of the text that ends a command: it has ended, or it does not run. With any other code, the text failed.
ENDED, NOT_FOUND = 0, 1

#: Timeout of that text in the shared connection, in seconds.
END_TIMEOUT_S = 20.0

#: Timeout of that text in a connection of its own, in seconds. It includes a login.
END_AFTER_LOGIN_TIMEOUT_S = 40.0

#: Ends every process of the session whose shell has the marker $0$1: sends the signal $2, and after $3 seconds SIGKILL.
#: Programs that start others faster than pkill finds them are stopped before that. If they have reached the limit of
#: processes of another connection, cgroup.kill (Linux 5.14) ends all of its programs: pkill would take minutes.
_END = """
id=$(pgrep -of "^[^ ]* -c : $0$1;") || exit 1
group=$(sed -n s/^0:://p "/proc/$id/cgroup")
if [ "$group" != "$(sed -n s/^0:://p /proc/self/cgroup)" ]; then
    cd "/sys/fs/cgroup$group" && grep -q "^max [1-9]" pids.events && echo 1 >cgroup.kill && exit 0
fi 2>/dev/null
pkill "-$2" -s "$id"
end=$(($(date +%s) + $3))
while pgrep -s "$id" >/dev/null && [ "$(date +%s)" -lt "$end" ]; do sleep 0.1; done
for pass in 1 2 3; do pkill -STOP -s "$id" || exit 0; done
pkill -KILL -s "$id"
exit 0
"""


@attrs.frozen
class Marked:
    """A command, as shell text with a marker."""

    text: str
    #: Random part of the marker.
    token: str

    def ended_by(self, number: int) -> str:
        """Returns the shell text that ends the command with a signal, and after GRACE_S with SIGKILL.

        Its exit code is ENDED or NOT_FOUND. Programs that the command runs with sudo are ended, too.
        """
        name = signal.Signals(number).name.removeprefix("SIG")
        end = shlex.join(["sh", "-c", _END, PREFIX, self.token, name, str(GRACE_S)])
        return f"if sudo -n true 2>/dev/null; then sudo -n {end}; else {end}; fi"


def marked(command: Sequence[str]) -> Marked:
    """Returns a command as text for the login shell, which exits with 128 + N if signal N killed the command.

    The shell must outlive the command to report that, so it catches the signals that end a session; programs do not
    inherit a caught signal. Its own stderr is discarded, because it reports each killed child there.
    """
    token = secrets.token_hex(8)
    text = (
        f": {PREFIX}{token}; trap : HUP INT QUIT TERM; exec 3>&2 2>/dev/null; {shlex.join(command)} 2>&3 3>&-; exit $?"
    )
    return Marked(text, token)

"""Two boxes of one spec, with variables and a setting: both come up with one command, and stop with one."""

from __future__ import annotations

import json

import pytest
from conftest import Kimbox

pytestmark = pytest.mark.guest

#: A value with everything that is special to a shell. PAM and each step must leave it unchanged.
HARD = """a $HOME 'b' "c" `d` \\e ;f & g=h * é"""

#: As many as a file of PAM may have in a line, with the name.
LONG = "x" * 800

SECRET = "s3cr3t $x 'y'"

SPEC = f"""\
kimbox: 1
base: [minimal.yaml]
memory: 512MiB
env:
  LONG: {LONG}
boxes:
  second:
    needs: [first]
  first:
    env:
      HARD: {json.dumps(HARD)}
      TOKEN: {{file: token}}
    provision:
      - name: see
        script: |
          printf '%s\\n%s\\n%s\\n' "$HARD" "$TOKEN" "$LONG" >/var/tmp/root
          cat /proc/$$/cmdline /proc/$PPID/cmdline >/var/tmp/words
      - {{name: see-user, mode: user, script: 'printf "%s\\n%s\\n%s\\n" "$HARD" "$TOKEN" "$LONG" >/var/tmp/user'}}
"""

#: What a box has: in the two steps, a session, a command of sudo, and a new login.
SHOW = """
cat /var/tmp/root /var/tmp/user
printf '%s\\n%s\\n%s\\n' "$HARD" "$TOKEN" "$LONG"
sudo sh -c 'printf "%s\\n%s\\n%s\\n" "$HARD" "$TOKEN" "$LONG"'
sudo su - vagrant -c 'printf "%s\\n%s\\n%s\\n" "$HARD" "$TOKEN" "$LONG"'
"""

#: The number of files below /persistent and /etc with the secret; the arguments of the step with it; its place in /run.
SEARCH = """
printf 's3c%s' r3t >/tmp/pattern
sudo grep -rlF -f /tmp/pattern /persistent /etc /var /home 2>/dev/null | grep -cv -e /var/tmp/root -e /var/tmp/user
stat -c '%a %U' /run/kimbox/env
grep -c -f /tmp/pattern /var/tmp/words || true
"""


def test_two_boxes_of_one_spec(kimbox: Kimbox) -> None:
    """The second starts when the first is ready. Variables arrive unchanged, and the secret is stored nowhere."""
    (kimbox.folder / "kimbox.yaml").write_text(SPEC)
    token = kimbox.folder / "token"
    token.write_text(SECRET + "\n")
    token.chmod(0o600)
    up = kimbox("--json", "up", "--set", "memory=640MiB")
    lines = up.stderr.splitlines()
    first_done = next(n for n, line in enumerate(lines) if line.startswith("first  | booting first: "))
    second_begins = next(n for n, line in enumerate(lines) if line.startswith("second | "))
    assert first_done < second_begins, up.stderr
    assert ["ready", "ready"] == [box["state"] for box in kimbox.json("status")["boxes"]]
    assert ["memory=640MiB"] == kimbox.json("status", "second")["settings"]
    kib = int(kimbox.sh("second", "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"))
    assert 512 << 10 < kib < 640 << 10
    assert f"{HARD}\n{SECRET}\n{LONG}\n" * 5 == kimbox.sh("first", SHOW)
    assert "0\n600 root\n0\n" == kimbox.sh("first", SEARCH)
    assert f"\n\n{LONG}\n" == kimbox.sh("second", 'printf "%s\\n%s\\n%s\\n" "$HARD" "$TOKEN" "$LONG"')
    stored = [path for path in kimbox.home.rglob("*") if path.is_file() and path.stat().st_size < 1 << 20]
    assert [] == [path for path in stored if b"s3cr3t" in path.read_bytes()]
    assert "box-has-secrets" == kimbox.json("suspend", "first", check=False)["code"]
    halted = kimbox.json("halt")["boxes"]
    assert [("second", "halted"), ("first", "halted")] == [(box["name"], box["state"]) for box in halted]
    kimbox("destroy", "-y")
    assert ["absent", "absent"] == [box["state"] for box in kimbox.json("status")["boxes"]]

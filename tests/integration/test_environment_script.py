"""The variables of `env` in the guest's own scripts: for steps, and in the file that PAM reads."""

from __future__ import annotations

from pathlib import Path

import attrs
import fakeguest
from fakeguest import FakeGuest, box_with, needs_namespace, provision, step

from kimbox.guest import delivery
from kimbox.spec.model import Box, Mode, Variable

guest = fakeguest.guest  # a fixture

pytestmark = needs_namespace

#: A value with everything that is special to a shell.
HARD = "a $HOME 'b' \"c\" `d` \\e ;f & g=h * é"

#: Writes the two variables, and the arguments of all processes of the step.
SCRIPT = (
    'printf \'%s\\n%s\\n\' "$HARD" "$TOKEN" >/tmp/seen-$(id -u); cat /proc/$$/cmdline /proc/$PPID/cmdline >/tmp/words'
)


def box_of(folder: Path, *variables: Variable) -> Box:
    """A box with these variables, and a step that writes them."""
    return attrs.evolve(box_with(folder, step("show", SCRIPT, mode=Mode.SYSTEM)), variables=variables)


def give(guest: FakeGuest, text: str) -> None:
    """Gives the guest secret values for this start."""
    given = guest.path("/run/credentials/@system")
    given.mkdir(parents=True, exist_ok=True)
    (given / "kimbox.environment").write_text(text)


def test_a_step_has_the_variables(guest: FakeGuest, tmp_path: Path) -> None:
    """Values arrive unchanged. The secret one is in no argument and nowhere below /persistent."""
    give(guest, "TOKEN=s3cr3t 'x'\nOTHER=no\n")
    box = box_of(tmp_path, Variable("HARD", HARD, None), Variable("TOKEN", None, tmp_path / "token"))
    assert 0 == provision(guest, tmp_path, box), guest.log()
    assert f"{HARD}\ns3cr3t 'x'\n" == guest.path("/tmp/seen-0").read_text()
    file = guest.path("/run/kimbox/env")
    assert (f"HARD={HARD}\nTOKEN=s3cr3t 'x'\n", 0o600) == (file.read_text(), file.stat().st_mode & 0o777)
    assert b"s3cr3t" not in guest.path("/tmp/words").read_bytes()
    stored = [path for path in guest.path("/persistent").rglob("*") if path.is_file()]
    assert stored
    assert not [path for path in stored if b"s3cr3t" in path.read_bytes()]


def test_a_secret_that_the_host_did_not_give(guest: FakeGuest, tmp_path: Path) -> None:
    """The box is not ready, and the event names the variable. With the value, the next attempt is ready."""
    give(guest, "TOKENS=other\n")
    box = box_of(tmp_path, Variable("TOKEN", None, tmp_path / "token"))
    provision(guest, tmp_path, box)
    [event] = [event for event in guest.events() if event["event"] == "failed"]
    assert ("environment", "TOKEN") == (event["kind"], event["name"])
    give(guest, "TOKEN=x\n")
    assert 0 == provision(guest, tmp_path, box)
    assert "ready" == guest.events()[-1]["event"]


def test_a_secret_that_comes_over_ssh(guest: FakeGuest, tmp_path: Path) -> None:
    """The script of the host puts it where a credential would be. Only root can read it."""
    (tmp_path / "text").write_text("TOKEN=x\n")
    guest.path("/run/credentials/@system").mkdir(parents=True)
    assert guest.run("sh", "-c", delivery._PUT_SECRETS, stdin=str(tmp_path / "text")).ok
    given = guest.path("/run/credentials/@system/kimbox.environment")
    assert ("TOKEN=x\n", 0o600) == (given.read_text(), given.stat().st_mode & 0o777)
    box = box_of(tmp_path, Variable("TOKEN", None, tmp_path / "token"))
    assert 0 == provision(guest, tmp_path, box)
    assert "ready" == guest.events()[-1]["event"]


def test_variables_end_with_their_manifest(guest: FakeGuest, tmp_path: Path) -> None:
    """A manifest without variables empties the file. A new boot has them also if nothing is left to do."""
    provision(guest, tmp_path, box_of(tmp_path, Variable("HARD", "x", None)))
    guest.new_boot()
    assert 0 == guest.run("/usr/lib/kimbox/provisiond").code
    assert "HARD=x\n" == guest.path("/run/kimbox/env").read_text()
    provision(guest, tmp_path, box_of(tmp_path))
    assert "" == guest.path("/run/kimbox/env").read_text()

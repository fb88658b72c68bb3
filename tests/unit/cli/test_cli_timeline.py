"""`kimbox logs --timeline`."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import clirun
import makemachine
from clirun import Kimbox

from kimbox.machine.timeline import Loading

kimbox = clirun.kimbox  # a fixture
world = clirun.world  # a fixture


def test_a_timeline(kimbox: Kimbox, tmp_path: Path) -> None:
    """Text, JSON and picture have the same stages. Without a start, and with another log, it is an error."""
    machine = makemachine.make_machine()
    assert 5 == kimbox("logs", "--timeline", "tiny")[0]
    makemachine.tell(
        machine,
        makemachine.event("booting", mode="keep", uptime_s=4.0),
        makemachine.event("step", status="running", n=1, of=1, kind="provision", name="<b>\x1b[2J", uptime_s=5.0),
        makemachine.event("ready", uptime_s=9.0),
    )
    machine.loading_file.write_text(json.dumps({"boot": makemachine.BOOT, "kernel_s": 1.0, "console_s": None}))
    assert Loading(makemachine.BOOT, 1.0, None) == Loading.read(machine)
    picture = tmp_path / "start.svg"
    code, out, _ = kimbox("logs", "--timeline", "--svg", str(picture), "tiny")
    lines = out.splitlines()
    assert (0, "ready: 10.0 s since the start of QEMU") == (code, lines[0])
    assert 5 == len(lines)
    assert "step 1 of 1: provision <b>\ufffd[2J" in lines[-1]
    start = json.loads(kimbox("--json", "logs", "--timeline", "tiny")[1])["result"]["start"]
    assert [0.0, 1.0, 5.0, 6.0] == [stage["start_s"] for stage in start["stages"]]
    texts = [element.text or "" for element in ElementTree.parse(picture).iter() if element.tag.endswith("}text")]  # noqa: S314
    assert ["firmware and boot loader  1.0 s", "step 1 of 1: provision <b>\ufffd[2J  4.0 s"] == [texts[0], texts[-1]]
    assert 2 == kimbox("logs", "--timeline", "--serial", "tiny")[0] == kimbox("logs", "--svg", "x.svg", "tiny")[0]

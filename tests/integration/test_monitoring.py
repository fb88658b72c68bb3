"""Monitoring: `kimbox status --check`, and each snippet of docs/monitoring.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clirun
import makemachine
import pytest
from clirun import Kimbox, environment, result
from makemachine import event, make_machine, running, tell
from ruamel.yaml import YAML

from kimbox.machine.folder import Machine
from kimbox.machine.record import Sealed
from kimbox.run import Completed, which
from kimbox.run import run as run_program

kimbox, world = clirun.kimbox, clirun.world  # fixtures

PAGE = (Path(__file__).resolve().parents[2] / "docs/monitoring.md").read_text()

#: A line of the text format of Prometheus: a comment, or a metric with labels and a value.
METRIC = re.compile(r'# (HELP|TYPE) [a-z_]+ .+|[a-z_]+\{([a-z]+="[^"\\\n]*",?)+\} -?[0-9.e+]+')

#: A value of the performance data of a plugin.
DATUM = re.compile(r"'[^'=]+'=[0-9]+(%|s)?(;[0-9]*){0,2}")

HEALTH = {"space": "/:40:600 /persistent:98:20", "clock": "yes", "percent": 12}


def snippet(language: str) -> str:
    """The only block of a language on the page."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(text)


@pytest.fixture
def worker(world: Path) -> Iterator[Machine]:
    """A sealed worker that runs and reports."""
    machine = make_machine("openkim-worker", sealed=Sealed("worker", "openkim.org"), ended=None)
    machine.data_key.touch()
    tell(
        machine,
        event("booting", mode="resnap"),
        event("sealed", manifest="a" * 64, role="worker", site="openkim.org", uptime_s=20),
    )
    with running(machine):
        yield machine


def line_of(kimbox: Kimbox, *words: str) -> tuple[int, str, str]:
    """The exit status, the text and the performance data of `kimbox status --check`: one line, and nothing else."""
    code, out, err = kimbox("status", "--check", *words)
    assert "" == err
    assert 1 == out.count("\n")
    text, _, data = out.strip().partition(" | ")
    assert not [word for word in data.split() if not DATUM.fullmatch(word)]
    return code, text, data


def test_the_exit_status_is_that_of_the_worst_problem(kimbox: Kimbox, worker: Machine) -> None:
    """0 without a problem, 1 with a warning, 2 with a critical problem."""
    assert (0, "KIMBOX OK - openkim-worker is sealed", "") == line_of(kimbox, "openkim-worker")
    tell(worker, event("health", uptime_s=30, space="/:91:600", clock="yes"))
    code, text, data = line_of(kimbox, "openkim-worker")
    assert (1, "KIMBOX WARNING - openkim-worker is sealed; / is 91 % full") == (code, text)
    assert "'/'=91%;90;97" == data
    tell(worker, event("health", uptime_s=31, **HEALTH))
    tell(worker, event("jobs", uptime_s=31, done="3", failed="1", link_s="1000", last_s="7"))
    code, text, data = line_of(kimbox, "openkim-worker")
    assert 2 == code
    assert "no answer of the director for 16 min; /persistent is 98 % full" in text
    assert "'/persistent'=98%;90;97 'snapshot'=12%;85;95 'link_age'=100" in data
    assert data.endswith("'jobs_done'=3 'jobs_failed'=1")


def test_the_unknown_is_three(kimbox: Kimbox, worker: Machine) -> None:
    """A box that does not exist, a name that cannot be one, and a damaged record say nothing about a box."""
    worker.record_file.write_text("{")
    for name in ("nothing", "A B", "openkim-worker", "minimal"):
        code, text, _ = line_of(kimbox, name)
        assert (3, True) == (code, text.startswith("KIMBOX UNKNOWN - ")), name


def test_a_box_that_does_not_run(kimbox: Kimbox, world: Path) -> None:
    """It is critical, since kimbox has ended it."""
    make_machine("halted")
    assert (2, "KIMBOX CRITICAL - halted is halted; it is halted", "") == line_of(kimbox, "halted")
    (problem,) = result(kimbox("--json", "status", "halted")[1], "status")["problems"]
    assert "not-running" == problem["code"]
    assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}Z", problem["since"])


def test_json(kimbox: Kimbox, worker: Machine) -> None:
    """`--json` has the problems with codes and times, also with --check, whose exit status stays."""
    tell(worker, event("health", uptime_s=30, **HEALTH))
    os.utime(worker.events_file, (time.time() - 3600, time.time() - 3600))
    for words, expected in (((), 0), (("--check",), 2)):
        code, out, _ = kimbox("--json", "status", "openkim-worker", *words)
        summary = result(out, "status")
        assert expected == code
        assert ["space-full", "no-report"] == [problem["code"] for problem in summary["problems"]]
        assert 3600 <= summary["health"]["age_s"] < 3700
    assert "critical" == summary["check"]["status"]


def test_texts_of_a_guest_stay_in_the_text(kimbox: Kimbox, worker: Machine) -> None:
    """A reason with a line break, a bar or control characters gives no second line and no performance data."""
    tell(worker, event("failed", uptime_s=40, manifest="", kind="setup", name="x", reason="a|'b'=1\nOK \x1b[31m" * 99))
    code, text, data = line_of(kimbox, "openkim-worker")
    assert (2, "") == (code, data)
    assert text.isprintable()
    assert 600 > len(text)


# ---- the snippets of the page


def called(world: Path, words: list[str]) -> Completed:
    """Runs a command line of the page with this kimbox, as the user of this test."""
    program = words.index("/opt/kimbox/.venv/bin/kimbox")
    assert ["/usr/bin/sudo", "-n", "-u", "kimbox"] == words[:program]
    own = Path(sys.executable).with_name("kimbox")
    return run_program([own, *words[program + 1 :]], check=False, env=environment(world))


def test_the_command_of_nagios(world: Path, worker: Machine) -> None:
    """Its command line, with the argument of its service."""
    text = snippet("nagios")
    line = re.search(r"command_line +(.+)", text)
    argument = re.search(r"check_command +check_kimbox!(\S+)", text)
    assert line is not None
    assert argument is not None
    done = called(world, shlex.split(line[1].replace("$ARG1$", argument[1])))
    assert (0, "KIMBOX OK - openkim-worker is sealed\n") == (done.code, done.stdout)


def test_the_command_of_icinga(world: Path, worker: Machine) -> None:
    """Its list of arguments, with the variable of its service."""
    text = snippet("icinga")
    command = re.search(r"command = (\[.+\])", text)
    box = re.search(r'vars\.kimbox_box = "(.+)"', text)
    assert command is not None
    assert box is not None
    done = called(world, [word.replace("$kimbox_box$", box[1]) for word in json.loads(command[1])])
    assert (0, "KIMBOX OK - openkim-worker is sealed\n") == (done.code, done.stdout)


def test_the_line_of_sudoers(tmp_path: Path) -> None:
    """It allows the command of the other snippets, without a wildcard. visudo accepts it, where sudo is installed."""
    text = snippet("sudoers")
    assert "/opt/kimbox/.venv/bin/kimbox status --check openkim-worker" in text
    assert "*" not in text
    (tmp_path / "kimbox").write_text(text)
    if visudo := which("visudo"):
        run_program([visudo, "-c", "-f", tmp_path / "kimbox"])


def metrics(world: Path, target: Path) -> list[str]:
    """Runs the script for the textfile collector, and returns the lines that it wrote. Each is valid."""
    script = world / "kimbox-textfile"
    script.write_text(snippet("sh"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run_program(["sh", script, target], env=environment(world, PATH=path))
    lines = target.read_text().splitlines()
    assert [] == [line for line in lines if not METRIC.fullmatch(line)]
    return lines


def test_the_metrics_of_prometheus(world: Path, worker: Machine) -> None:
    """The script writes every metric of the box, and replaces the file at once."""
    make_machine("halted")
    tell(worker, event("health", uptime_s=30, **HEALTH), event("jobs", uptime_s=30, done="3", link_s="1000"))
    lines = metrics(world, world / "kimbox.prom")
    assert {
        'kimbox_box_up{box="openkim-worker"} 1',
        'kimbox_box_up{box="halted"} 0',
        'kimbox_jobs{box="openkim-worker",count="done"} 3',
        'kimbox_problem{box="openkim-worker",code="link-lost",severity="critical"} 1',
        'kimbox_free_bytes{box="openkim-worker",mount="/persistent"} 20',
    } <= set(lines)
    assert [line for line in lines if line.startswith('kimbox_link_age_seconds{box="openkim-worker"} 100')]
    assert not (world / "kimbox.prom.new").exists()


def test_the_alert_uses_a_metric_of_the_script() -> None:
    """Its expression has the name and the labels of a metric."""
    rules: Any = YAML(typ="safe").load(snippet("yaml"))
    (rule,) = rules["groups"][0]["rules"]
    name = rule["expr"].partition("{")[0]
    assert f"# TYPE {name} gauge" in snippet("sh")
    assert 'severity="critical"' in rule["expr"]
    assert makemachine.BOOT not in PAGE

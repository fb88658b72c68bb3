"""The shipped pipeline and those who mean it ill: workers, jobs, servers in another's place."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import makepipeline
import pytest
import test_pipeline
from makepipeline import Pipeline, beanstalk, jobs, results
from test_pipeline import FCC, FEW, HCP
from waiting import until

from kimbox.run import run

few = test_pipeline.few  # a fixture


def ask(made: Pipeline, *command: str) -> str:
    """What sftp with a worker's key complains about; with some versions of it a refused `ls` is no failure."""
    batch = made.here / "batch"
    batch.write_text("\n".join(command) + "\n")
    done = run(["sftp", "-F", made.here / "ssh_config", "-b", batch, "gateway"], check=False, timeout_s=30)
    return done.stderr


def sent(made: Pipeline, job: str, /, *, run_name: str = "0123abcd", **changes: Any) -> str:
    """A worker's result in the folder for them, with changes; returns the file's name."""
    entry = next(entry for entry in made.entries if entry["job"] == job)
    asked = jobs.from_fields({key: value for key, value in entry.items() if key != "expected"})
    values = {key: entry["expected"][key] for key in ("a", "e")}
    attempt = results.Attempt(job, "w", 1, run_name)
    outcome = makepipeline.module("lammps").Outcome("1 Jan 2020", values)
    result = json.loads(results.make(attempt, asked, outcome, results.now(), {})) | changes
    part = made.incoming / f"{attempt.file_name}.part"
    part.write_text(json.dumps(result))
    part.rename(made.incoming / attempt.file_name)
    return str(attempt.file_name)


def two_names(path: Path, content: str) -> None:
    """A file that has a second name, somewhere else."""
    elsewhere = path.with_name("elsewhere.part")
    elsewhere.write_text(content)
    os.link(elsewhere, path)


def test_the_director_believes_no_worker(few: Pipeline) -> None:
    """Links, pipes, folders, other names, too much, other content: refused, removed, and the jobs stay in the queue."""
    inbox, secret = few.incoming, few.here / "secret"
    name = sent(few, FCC)
    good = (inbox / name).read_text()
    (inbox / name).unlink()
    secret.write_text(good)
    few.start_queue()
    few.start_director()
    until("all are queued", lambda: few.output("director").count("put into the queue") == 3)
    tricks = [
        lambda: (inbox / name).symlink_to(secret),
        lambda: two_names(inbox / name, good),
        lambda: os.mkfifo(inbox / name),
        lambda: (inbox / name).mkdir(),
        lambda: (inbox / "no-such-job.w.1.0123abcd.json").write_text("{}"),
        lambda: (inbox / "..json").write_text("{}"),
        lambda: (inbox / name).write_bytes(b" " * (results.LIMIT + 1)),
        lambda: (inbox / name).write_text("[" * 100000),
        lambda: (inbox / name).write_bytes(b"\xff\xfe"),
        lambda: sent(few, FCC, values={"a": float("nan"), "e": -3.36}),
        lambda: sent(few, FCC, values={"a": True, "e": -3.36}),
        lambda: sent(few, FCC, values={"a": 10**400, "e": -3.36}),
        lambda: sent(few, FCC, values=[]),
        lambda: sent(few, FCC, job=HCP),
        lambda: sent(few, FCC, attempt="1"),
        lambda: sent(few, FCC, asked={}),
        lambda: sent(few, FCC, tail=["x"] * 100),
        lambda: sent(few, FCC, reason="\x1b[2J"),
        lambda: sent(few, FCC, box=[]),
        lambda: sent(few, FCC, box=json.loads('{"x":' * 300 + "1" + "}" * 300)),
        lambda: (inbox / name).write_text(good.replace('"box": {}', '"box": {"x": 1e999}')),
        lambda: sent(few, FCC, started="now"),
        lambda: sent(few, FCC, status="perfect"),
        lambda: sent(few, FCC, more=1),
    ]  # fmt: skip
    for number, trick in enumerate(tricks, 1):
        trick()
        until(f"trick {number} is refused", lambda: few.output("director").count("refused") == number)  # noqa: B023
        until("it is removed", lambda: not list(inbox.glob("*.json")))
    assert ({}, good, 3) == (few.results(), secret.read_text(), few.queued())
    sent(few, FCC)
    until("a good one is taken", lambda: list(few.results()) == [FCC])


def test_a_job_that_is_laid_aside_comes_back(few: Pipeline) -> None:
    """Whoever has a worker's key may bury a job, or put it off for years, without a result: it is put there again."""
    few.start_queue()
    few.start_director()
    until("all are queued", lambda: few.output("director").count("put into the queue") == 3)
    with beanstalk.Queue(("127.0.0.1", few.queue_port), jobs.TUBE) as queue:
        first, second = queue.reserve(3), queue.reserve(3)
        assert first
        assert second
        assert queue.bury(first.id)
        assert queue.release(second.id, delay_s=10 * 365 * 86400)
        until("they are there again", lambda: few.output("director").count("put into the queue") == 5)
        assert (None, None, 3) == (queue.peek(first.id), queue.peek(second.id), few.queued())
        bodies = {got.body for got in iter(lambda: queue.reserve(0), None) if got}
        assert {first.body, second.body} <= bodies


def test_a_wrong_value_does_not_settle_a_job(few: Pipeline) -> None:
    """Its worker takes it for done and removes it; three times in all, then it has failed."""
    few.start_queue()
    few.start_director()
    until("all are queued", lambda: few.output("director").count("put into the queue") == 3)
    with beanstalk.Queue(("127.0.0.1", few.queue_port), jobs.TUBE) as queue:

        def remove(job: str) -> None:
            (number,) = [n for n in range(1, 9) if f'"{job}"'.encode() in (queue.peek(n) or b"")]
            queue.delete(number)

        def put(job: str) -> int:
            return few.output("director").count(f"{job}: put into the queue")

        for count in (1, 2, 3):
            until("it is in the queue", lambda: put(FCC) == count)  # noqa: B023
            sent(few, FCC, values={"a": 4.0321, "e": -3.3}, run_name=f"0000000{count}")
            until("it came", lambda: few.output("director").count(f"{FCC}: failed") == count)  # noqa: B023
            remove(FCC)
        remove(HCP)
        until("another that was removed is there again", lambda: put(HCP) == 2)
    assert (3, "failed", 2) == (put(FCC), few.results()[FCC]["status"], few.queued())


def test_a_wrong_value_is_a_failure_until_a_right_one_comes(few: Pipeline) -> None:
    """The one that is done counts; one that failed, before or after, lies beside it."""
    few.start_queue()
    few.start_director()
    sent(few, FCC, values={"a": 4.0321, "e": -3.3}, run_name="00000001")
    until("it came", lambda: FCC in few.results())
    assert "E = -3.3000 eV/atom are not within 0.001 of 4.0321 and -3.3600" in few.results()[FCC]["reason"]
    sent(few, FCC, run_name="00000002")
    until("a right one counts", lambda: few.results()[FCC]["status"] == "done")
    sent(few, FCC, status="failed", values=None, reason="late", run_name="00000003")
    until("all came", lambda: len(few.duplicates()) == 2)
    assert "00000002" == few.results()[FCC]["run"]
    beside = [(result["run"], result["status"], result["duplicate"]) for result in few.duplicates().values()]
    assert [("00000001", "failed", True), ("00000003", "failed", True)] == beside


@pytest.mark.skipif(os.getuid() != 0, reason="needs files of another account")
def test_a_file_of_another_account_is_refused(few: Pipeline) -> None:
    """Only what the workers' own account wrote is read."""
    few.start_queue()
    few.start_director()
    until("all are queued", lambda: few.output("director").count("put into the queue") == 3)
    few.kill("director")
    os.chown(few.incoming / sent(few, HCP), 65534, 65534)
    sent(few, FCC)
    few.start_director()
    until("ours is taken", lambda: list(few.results()) == [FCC])
    until("another's is refused", lambda: "no plain file of a worker's" in few.output("director"))


def test_a_job_that_would_be_a_command_is_never_begun(few: Pipeline) -> None:
    """LAMMPS has a command `shell`, and every worker can put jobs into the queue."""
    good = {key: value for key, value in FEW[0].items() if key != "expected"}
    bad = [
        good | {"model": "x\nshell touch /tmp/x"}, good | {"lattice": "fcc 1\nshell x\nlattice fcc"},
        good | {"a": "5\nshell x"}, good | {"species": "Si\nshell x"}, good | {"a": float("inf")},
        good | {"job": "../x"}, good | {"more": 1}, [], "x",
    ]  # fmt: skip
    few.start_queue()
    few.start_gateway()
    few.start_link()
    with beanstalk.Queue(("127.0.0.1", few.queue_port), jobs.TUBE) as queue:
        ids = [queue.put(json.dumps(job).encode(), ttr_s=60) for job in bad]
        ids.append(queue.put(b"x" * 5000, ttr_s=60))
        few.start_worker()
        until("all are buried", lambda: few.output("worker").count("gets buried") == len(ids))
        assert [] == few.computed()
        assert all(queue.peek(number) is not None for number in ids)


def test_a_workers_key_opens_nothing_else(few: Pipeline) -> None:
    """It may write a file and rename it; no list, no reading, no folders, no links, no shell, no other port."""
    few.start_queue()
    few.start_gateway()
    (few.here / "x").write_text("x")
    assert "" == ask(few, f"put -f {few.here}/x y.part", "rename y.part y")
    assert "x" == (few.incoming / "y").read_text()
    for command in ("ls", "mkdir z", "ln -s y z", "ln y z", "rm y", "chmod 777 y", f"get y {few.here}/got"):
        answer = ask(few, command)
        assert "denied" in answer or "does not support" in answer, command
    assert ["y"] == [path.name for path in few.incoming.iterdir()]
    ssh = ["ssh", "-F", few.here / "ssh_config"]
    answer = run([*ssh, "gateway", "id"], check=False, timeout_s=30)
    assert "uid=" not in answer.stdout
    refused = run([*ssh, "-W", f"127.0.0.1:{few.ssh_port}", "gateway"], check=False, timeout_s=30)
    assert "administratively prohibited" in refused.stderr
    back = run([*ssh, "-N", "-R", "0:127.0.0.1:1", "gateway"], check=False, timeout_s=30)
    assert "remote port forwarding failed" in back.stderr


def test_another_host_key_gets_no_results(few: Pipeline) -> None:
    """Whoever answers in the gateway's place is told nothing."""
    few.start_gateway()
    assert "" == ask(few, "pwd")
    (few.here / "known").write_text(f"kimbox-gateway {(few.here / 'key.pub').read_text()}")
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in ask(few, "pwd")


def test_only_numbers_reach_the_host(few: Pipeline) -> None:
    """Whatever the runner writes, by mistake or not."""
    few.start_status()
    with (few.here / "status").open("w") as pipe:
        for line in (
            "total=1 done=x", "ready=1", "total=1 done=1 manifest=1", "total=", "$(id)", "*", "total=99999999999", "",
            "done=1 " * 9, "total=1 -n", "done=1", "total=2 done=1", "running=1 x",
        ):  # fmt: skip
            pipe.write(f"{line}\n")
        pipe.flush()
        until("the newest of those has come", lambda: few.last_event() == "jobs total=2 done=1")
        pipe.write("done=3 failed=0 running=1\n")
    until("the last has come", lambda: "running" in few.last_event())
    events = few.events()
    assert ["jobs total=2 done=1", "jobs done=3 failed=0 running=1"] == events[-2:]
    assert {"jobs done=1"} >= set(events[:-2])  # the burst was not seen whole


def test_a_line_that_comes_in_pieces_reaches_the_host(few: Pipeline) -> None:
    """Also where the time runs out in its middle."""
    few.start_status()
    with (few.here / "status").open("w") as pipe:
        pipe.write("done=1\ntotal=3 do")
        pipe.flush()
        until("the first has come", lambda: few.last_event() == "jobs done=1")
        pipe.write("ne=2\n")
        pipe.flush()
        until("the second has come", lambda: few.last_event() == "jobs total=3 done=2")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"x" * 100000, "without an end of line"),
        (b"FOUND 1 99999999999\r\n", "at most 65536 are taken"),
        (b"FOUND 1 3\r\nabcdef\r\n", "more than it announced"),
        (b"FOUND one two\r\n", "where a number belongs"),
        (b"OUT_OF_MEMORY\r\n", "OUT_OF_MEMORY"),
        (b"", "closed the connection"),
        (None, "timed out"),
    ],
)
def test_a_queue_that_lies_costs_neither_time_nor_memory(answer: bytes | None, words: str) -> None:
    """Too long, out of step, an error, the end, or nothing at all: an exception."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as asked:
                for greeting in (b"USING x\r\n", b"WATCHING 2\r\n", b"WATCHING 1\r\n"):
                    asked.readline()
                    connection.sendall(greeting)
                asked.readline()
                if answer is None:
                    done.wait(30)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                beanstalk.Queue(server.getsockname(), "x", answer_s=0.5 if answer is None else 30) as queue,
                pytest.raises((beanstalk.QueueError, OSError), match=words),
            ):
                queue.peek(1)
        finally:
            done.set()
            thread.join()

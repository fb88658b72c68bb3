"""The shipped pipeline with hostile workers, jobs and servers."""

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


def sftp_errors(made: Pipeline, *command: str) -> str:
    """Runs commands of sftp with a worker's key and returns stderr. Some versions exit with 0 after a refused `ls`."""
    batch = made.here / "batch"
    batch.write_text("\n".join(command) + "\n")
    done = run(["sftp", "-F", made.here / "ssh_config", "-b", batch, "gateway"], check=False, timeout_s=30)
    return done.stderr


def send_result(made: Pipeline, job: str, /, *, run_name: str = "0123abcd", **changes: Any) -> str:
    """Writes the result of a worker, with changes, into the folder of incoming results. Returns the file name."""
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
    """Makes a file with a second hard link."""
    elsewhere = path.with_name("elsewhere.part")
    elsewhere.write_text(content)
    os.link(elsewhere, path)


def test_the_director_refuses_invalid_results(few: Pipeline) -> None:
    """Links, pipes, folders, wrong names, sizes and contents are refused and removed. The jobs stay in the queue."""
    inbox, secret = few.incoming, few.here / "secret"
    name = send_result(few, FCC)
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
        lambda: send_result(few, FCC, values={"a": float("nan"), "e": -3.36}),
        lambda: send_result(few, FCC, values={"a": True, "e": -3.36}),
        lambda: send_result(few, FCC, values={"a": 10**400, "e": -3.36}),
        lambda: send_result(few, FCC, values=[]),
        lambda: send_result(few, FCC, job=HCP),
        lambda: send_result(few, FCC, attempt="1"),
        lambda: send_result(few, FCC, asked={}),
        lambda: send_result(few, FCC, tail=["x"] * 100),
        lambda: send_result(few, FCC, reason="\x1b[2J"),
        lambda: send_result(few, FCC, box=[]),
        lambda: send_result(few, FCC, box=json.loads('{"x":' * 300 + "1" + "}" * 300)),
        lambda: (inbox / name).write_text(good.replace('"box": {}', '"box": {"x": 1e999}')),
        lambda: send_result(few, FCC, started="now"),
        lambda: send_result(few, FCC, status="perfect"),
        lambda: send_result(few, FCC, more=1),
    ]  # fmt: skip
    for number, trick in enumerate(tricks, 1):
        trick()
        until(f"trick {number} is refused", lambda: few.output("director").count("refused") == number)  # noqa: B023
        until("it is removed", lambda: not list(inbox.glob("*.json")))
    assert ({}, good, 3) == (few.results(), secret.read_text(), few.queued())
    send_result(few, FCC)
    until("a valid result is accepted", lambda: list(few.results()) == [FCC])


def test_a_buried_or_delayed_job_is_added_again(few: Pipeline) -> None:
    """A worker can bury a job or delay it for years without a result. The director then adds the job again."""
    few.start_queue()
    few.start_director()
    until("all are queued", lambda: few.output("director").count("put into the queue") == 3)
    with beanstalk.Queue(("127.0.0.1", few.queue_port), jobs.TUBE) as queue:
        first, second = queue.reserve(3), queue.reserve(3)
        assert first
        assert second
        assert queue.bury(first.id)
        assert queue.release(second.id, delay_s=10 * 365 * 86400)
        until("both jobs are added again", lambda: few.output("director").count("put into the queue") == 5)
        assert (None, None, 3) == (queue.peek(first.id), queue.peek(second.id), few.queued())
        bodies = {got.body for got in iter(lambda: queue.reserve(0), None) if got}
        assert {first.body, second.body} <= bodies


def test_a_wrong_value_is_not_the_result_of_a_job(few: Pipeline) -> None:
    """After a wrong value, the worker removes the job and the director adds it again. After three, it has failed."""
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
            send_result(few, FCC, values={"a": 4.0321, "e": -3.3}, run_name=f"0000000{count}")
            until("the result is read", lambda: few.output("director").count(f"{FCC}: failed") == count)  # noqa: B023
            remove(FCC)
        remove(HCP)
        until("another removed job is added again", lambda: put(HCP) == 2)
    assert (3, "failed", 2) == (put(FCC), few.results()[FCC]["status"], few.queued())


def test_a_right_value_replaces_a_failure(few: Pipeline) -> None:
    """The result with status `done` counts. Failed ones, before or after it, are duplicates."""
    few.start_queue()
    few.start_director()
    send_result(few, FCC, values={"a": 4.0321, "e": -3.3}, run_name="00000001")
    until("the result is read", lambda: FCC in few.results())
    assert "E = -3.3000 eV/atom are not within 0.001 of 4.0321 and -3.3600" in few.results()[FCC]["reason"]
    send_result(few, FCC, run_name="00000002")
    until("the right value counts", lambda: few.results()[FCC]["status"] == "done")
    send_result(few, FCC, status="failed", values=None, reason="late", run_name="00000003")
    until("all results are read", lambda: len(few.duplicates()) == 2)
    assert "00000002" == few.results()[FCC]["run"]
    beside = [(result["run"], result["status"], result["duplicate"]) for result in few.duplicates().values()]
    assert [("00000001", "failed", True), ("00000003", "failed", True)] == beside


@pytest.mark.skipif(os.getuid() != 0, reason="needs files of another account")
def test_a_file_of_another_account_is_refused(few: Pipeline) -> None:
    """The director only reads files of the workers' account."""
    few.start_queue()
    few.start_director()
    until("all are queued", lambda: few.output("director").count("put into the queue") == 3)
    few.kill("director")
    os.chown(few.incoming / send_result(few, HCP), 65534, 65534)
    send_result(few, FCC)
    few.start_director()
    until("the file of the workers' account is accepted", lambda: list(few.results()) == [FCC])
    until("the file of another account is refused", lambda: "no plain file of a worker's" in few.output("director"))


def test_a_job_with_a_command_is_not_computed(few: Pipeline) -> None:
    """LAMMPS has a command `shell`, and every worker can add jobs to the queue."""
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


def test_a_workers_key_permits_nothing_else(few: Pipeline) -> None:
    """A worker can write and rename files. It has no listing, reading, folders, links, shell or other ports."""
    few.start_queue()
    few.start_gateway()
    (few.here / "x").write_text("x")
    assert "" == sftp_errors(few, f"put -f {few.here}/x y.part", "rename y.part y")
    assert "x" == (few.incoming / "y").read_text()
    for command in ("ls", "mkdir z", "ln -s y z", "ln y z", "rm y", "chmod 777 y", f"get y {few.here}/got"):
        answer = sftp_errors(few, command)
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
    """A server with another host key receives nothing."""
    few.start_gateway()
    assert "" == sftp_errors(few, "pwd")
    (few.here / "known").write_text(f"kimbox-gateway {(few.here / 'key.pub').read_text()}")
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in sftp_errors(few, "pwd")


def test_only_numbers_reach_the_host(few: Pipeline) -> None:
    """All other output of the runner is dropped."""
    few.start_status()
    with (few.here / "status").open("w") as pipe:
        for line in (
            "total=1 done=x", "ready=1", "total=1 done=1 manifest=1", "total=", "$(id)", "*", "total=99999999999", "",
            "done=1 " * 9, "total=1 -n", "link_s=-1", "link_x=1", "done=1", "total=2 done=1", "running=1 x",
        ):  # fmt: skip
            pipe.write(f"{line}\n")
        pipe.flush()
        until("the newest line is sent", lambda: few.last_event() == "jobs total=2 done=1")
        pipe.write("done=3 failed=0 running=1 link_s=4 last_s=5\n")
    until("the last line is sent", lambda: "running" in few.last_event())
    events = few.events()
    assert ["jobs total=2 done=1", "jobs done=3 failed=0 running=1 link_s=4 last_s=5"] == events[-2:]
    assert {"jobs done=1"} >= set(events[:-2])  # some lines of the burst are skipped


def test_a_line_in_pieces_reaches_the_host(few: Pipeline) -> None:
    """This is so too if the timeout of a read is within the line."""
    few.start_status()
    with (few.here / "status").open("w") as pipe:
        pipe.write("done=1\ntotal=3 do")
        pipe.flush()
        until("the first line is sent", lambda: few.last_event() == "jobs done=1")
        pipe.write("ne=2\n")
        pipe.flush()
        until("the second line is sent", lambda: few.last_event() == "jobs total=3 done=2")


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
def test_a_wrong_answer_of_the_queue_is_an_error(answer: bytes | None, words: str) -> None:
    """An answer that is too long, out of step, an error, empty or missing raises an exception, in bounded memory."""
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

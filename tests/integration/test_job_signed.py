"""The signature over the results of a job: other programs verify it, and it covers every result."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from makejobrecord import A_LOCK, make_folder, make_results

from kimbox import run
from kimbox.actions.jobs.provenance import CHECKSUMS, SIGNATURE, STATEMENT, check_key, sign
from kimbox.errors import KimboxError
from kimbox.files import sha256_file

RESULTS = {"a.csv": b"1\n", "deep/b c": b"2\n", "back\\slash": b"3\n", os.fsdecode(b"na\xffme"): b"4\n"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The folder with the results of a job, signed with the key `key`."""
    folder = make_folder(tmp_path / "job")
    record = make_results(folder, tmp_path / "out", RESULTS)
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"])
    sign(record.parent, tmp_path / "key")
    return record.parent


def verified(results: Path) -> bool:
    """Whether ssh-keygen accepts the signature, and sha256sum each file."""
    signers = results.parent / "signers"
    signers.write_text(f"kimbox {(results.parent / 'key.pub').read_text()}")
    done = run.run(
        ["ssh-keygen", "-Y", "verify", "-f", signers, "-I", "kimbox", "-n", "kimbox-box", "-s", results / SIGNATURE],
        input=(results / CHECKSUMS).read_text(),
        check=False,
    )
    return done.ok and run.run(["sha256sum", "--check", "--quiet", CHECKSUMS], cwd=results, check=False).ok


def test_other_programs_verify_it(results: Path) -> None:
    """Until one of the files is changed."""
    assert verified(results)
    for name in ("output/a.csv", "job.json", STATEMENT, CHECKSUMS):
        before = (results / name).read_bytes()
        (results / name).write_bytes(before.replace(b"1", b"7"))
        assert not verified(results), name
        (results / name).write_bytes(before)
    assert verified(results)


def test_the_statement_is_in_toto(results: Path) -> None:
    """Its subjects are all results, also those whose names sha256sum cannot list; its materials are the inputs."""
    text = (results / STATEMENT).read_bytes()
    Statement.copy_from_pb(json_format.Parse(text, statement_pb2.Statement())).validate()
    value = json.loads(text)
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in value["subject"]}
    names = {"output/a.csv", "output/deep/b c", r"output/back\\slash", r"output/na\xffme"}
    assert names | {"job.json", "kimbox.lock", "run-job.log"} == set(subjects)
    assert sha256_file(results / "job.json") == f"sha256:{subjects['job.json']}"
    used = {item["name"]: item["digest"] for item in value["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert {"gitCommit": "c" * 40, "gitTree": "d" * 40} == used["setup"]
    assert {"sha256": A_LOCK.digest} == used["lock"]
    assert {"kimboxImageKey": "1" * 64} == used["image"]
    record = json.loads((results / "job.json").read_text())
    assert record["input"]["digest"] == f"sha256:{used['folder']['kimboxListing']}"


def test_a_key_that_cannot_sign_is_refused_first(tmp_path: Path) -> None:
    """Before the job runs. Without a key, nothing is signed."""
    check_key(None)
    with pytest.raises(KimboxError) as caught:
        check_key(tmp_path / "missing")
    assert "signing-failed" == caught.value.code

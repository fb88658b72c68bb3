"""The output of commands whose exit code alone matters: a guest could send it without end, and kimbox would keep it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kimbox.guest import shared
from kimbox.guest.endpoint import Endpoint

#: Succeeds if nothing reads its output.
SSH = """#!/bin/sh
[ "$(readlink /proc/$$/fd/1) $(readlink /proc/$$/fd/2)" = "/dev/null /dev/null" ]
"""


@pytest.mark.parametrize(
    "call",
    [lambda endpoint: shared.succeeds(endpoint, "command -v xauth"), shared.answers, shared.can_start],
    ids=["succeeds", "answers", "can_start"],
)
def test_output_is_not_read(call: Callable[[Endpoint], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ssh has /dev/null as stdout and stderr."""
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    codes: list[int] = []
    run = shared.run

    def recorded(*words: object, **options: object) -> object:
        done = run(*words, **options)  # type: ignore[arg-type]
        codes.append(done.code)
        return done

    monkeypatch.setattr(shared, "run", recorded)
    key, known_hosts = tmp_path / "id_ed25519", tmp_path / "known_hosts"
    assert call(Endpoint("127.0.0.1", 22, "vagrant", key, known_hosts, "kimbox-tiny"))
    assert [0] == codes

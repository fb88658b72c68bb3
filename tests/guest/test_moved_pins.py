"""Steps and the commits that they ran with, in a real box that keeps its root, also after a power failure."""

from __future__ import annotations

import json

import makebox
import pytest
from conftest import Kimbox, state_of

pytestmark = pytest.mark.guest

SPEC = """
boot: keep
cpus: 1
memory: 1GiB
repositories:
  tool: {url: "file://TOOL", path: /opt/tool}
provision:
  - {name: named, uses: [tool], script: "echo x >>/var/tmp/named"}
  - {name: path, script: "install /opt/tool/run /usr/local/bin/tool; echo x >>/var/tmp/path"}
  - {name: plain, script: "echo x >>/var/tmp/plain"}
"""

#: A step that cannot run twice.
ACCOUNT = "  - {name: account, uses: [], script: useradd -m alice}\n"

COUNT = "cat /var/tmp/named | wc -l; cat /var/tmp/path | wc -l; cat /var/tmp/plain | wc -l"

#: Removes the commits from the records of steps: older versions of kimbox wrote records without commits.
REMOVE_COMMITS = "sudo sed -i '2,$d' /var/lib/kimbox/done/provision-*; cat /var/lib/kimbox/done/provision-* | wc -l"


def move(kimbox: Kimbox, text: str) -> str:
    """Commits a tool that prints the text, and updates the lock. Returns the commit."""
    tool, files = kimbox.folder / "tool", {"run": f"#!/bin/sh\necho {text}\n"}
    if not tool.exists():
        return makebox.make_repository(tool, files)
    commit = makebox.commit(tool, files)
    kimbox("lock", "--update", "tool")
    return commit


def test_steps_of_an_old_commit_are_reported(kimbox: Kimbox) -> None:
    """After a pin moves, steps that use the repository run again. Other steps are reported until they run again.

    Records of older versions stay valid. No step runs twice.
    """
    first = move(kimbox, "one")
    spec = kimbox.spec("moved", SPEC.replace("TOOL", str(kimbox.folder / "tool")))
    assert kimbox.json("up")["stale"] == []
    assert kimbox.sh("moved", REMOVE_COMMITS) == "3\n"

    second = move(kimbox, "two")
    stale = [
        {
            "step": "plain",
            "repositories": {"tool": {"old": first, "new": second}},
            "command": "kimbox provision --only plain moved",
        }
    ]
    assert kimbox.json("up")["stale"] == stale
    assert kimbox.sh("moved", f"{COUNT}; tool") == "2\n2\n1\ntwo\n"
    printed = kimbox("up").stdout
    assert "plain" in printed
    assert "as it was" not in printed
    assert kimbox.json("status")["stale"] == stale
    assert kimbox.json("diff")["stale"] == {"old": stale, "new": None}
    assert kimbox.json("diff")["differs"] is True
    assert kimbox.json("provenance")["stale"] == {"plain": {"tool": first}}
    assert first in json.dumps(json.loads((kimbox.folder / "moved.intoto.json").read_text()))

    assert kimbox.json("provision", "--only", "plain")["stale"] == []
    assert kimbox.json("diff")["differs"] is False

    spec.write_text(spec.read_text() + ACCOUNT)
    kimbox("up")
    kimbox("halt", "--force")
    assert kimbox.json("up")["stale"] == []
    assert state_of("moved") == "ready"
    assert kimbox.sh("moved", f"{COUNT}; tool; id -un alice") == "2\n2\n2\ntwo\nalice\n"
    kimbox("destroy", "-y")

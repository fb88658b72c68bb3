"""Steps and the commits that they ran under, in a real box that keeps its root; and what a power cut leaves of them."""

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

#: Records as a kimbox wrote them that did not note commits.
FORGET = "sudo sed -i '2,$d' /var/lib/kimbox/done/provision-*; cat /var/lib/kimbox/done/provision-* | wc -l"


def move(kimbox: Kimbox, text: str) -> str:
    """A new commit of the tool, which prints the text; the lock follows. Returns the commit."""
    tool, files = kimbox.folder / "tool", {"run": f"#!/bin/sh\necho {text}\n"}
    if not tool.exists():
        return makebox.make_repository(tool, files)
    commit = makebox.commit(tool, files)
    kimbox("lock", "--update", "tool")
    return commit


def test_a_box_is_never_of_a_former_commit_in_silence(kimbox: Kimbox) -> None:
    """A pin moves: users run again, others are named until they did; records of old stay valid; no step runs twice."""
    one = move(kimbox, "one")
    spec = kimbox.spec("moved", SPEC.replace("TOOL", str(kimbox.folder / "tool")))
    assert kimbox.json("up")["stale"] == []
    assert kimbox.sh("moved", FORGET) == "3\n"

    two = move(kimbox, "two")
    stale = [
        {
            "step": "plain",
            "repositories": {"tool": {"old": one, "new": two}},
            "command": "kimbox provision --only plain moved",
        }
    ]
    assert kimbox.json("up")["stale"] == stale
    assert kimbox.sh("moved", f"{COUNT}; tool") == "2\n2\n1\ntwo\n"
    again = kimbox("up").stdout
    assert "plain" in again
    assert "as it was" not in again
    assert kimbox.json("status")["stale"] == stale
    assert kimbox.json("diff")["stale"] == {"old": stale, "new": None}
    assert kimbox.json("diff")["differs"] is True
    assert kimbox.json("provenance")["stale"] == {"plain": {"tool": one}}
    assert one in json.dumps(json.loads((kimbox.folder / "moved.intoto.json").read_text()))

    assert kimbox.json("provision", "--only", "plain")["stale"] == []
    assert kimbox.json("diff")["differs"] is False

    spec.write_text(spec.read_text() + ACCOUNT)
    kimbox("up")
    kimbox("halt", "--force")
    assert kimbox.json("up")["stale"] == []
    assert state_of("moved") == "ready"
    assert kimbox.sh("moved", f"{COUNT}; tool; id -un alice") == "2\n2\n2\ntwo\nalice\n"
    kimbox("destroy", "-y")

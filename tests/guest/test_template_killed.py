"""kill -9 of kimbox at each step of the making of a template and of its first clone. Only `script/test soak` runs this.

Each point needs a boot of its own. One such point is in every run: the fixture `first` of test_clones.py.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Kimbox, exchange, state_of, until

from kimbox import paths, run
from kimbox.files import is_locked
from kimbox.machine import templates

pytestmark = [pytest.mark.guest, pytest.mark.soak]

BOX, CLONE = "torn", "torn-1"

#: The file at whose opening kimbox dies, at the so many-th time: points before the template is in the store. The
#: counts of events.jsonl are checks of a boot that lasts half a minute.
MAKING = [
    ("*/.tmp-*/torn/.machine.json*", 1),
    ("*/.tmp-*/torn/deliver-*/delivery.tar", 1),
    ("*/.tmp-*/torn/ram", 1),
    ("*/.tmp-*/torn/qemu.log", 1),
    ("*/.tmp-*/torn/.machine.json*", 2),
    ("*/.tmp-*/torn/.machine.json*", 3),
    ("*/.tmp-*/torn/events.jsonl", 2),
    ("*/.tmp-*/torn/events.jsonl", 100),
    ("*/.tmp-*/torn/events.jsonl", 250),
    ("*/.tmp-*/torn/.known_hosts*", 1),
    ("*/.tmp-*/torn/ram", 2),
    ("*/.tmp-*/done/state", 1),
    ("*/.tmp-*/done", 1),
    ("*/.tmp-*/done/.template.json*", 1),
    ("*/.tmp-*/done", 2),
]

#: Points after that. The first is the flushing of the folder of the store, after the template was moved there.
STARTING = [
    ("*/templates", 1),
    ("*/machines/torn-1/disk.qcow2", 1),
    ("*/machines/torn-1/locks/.*.lock*", 1),
    ("*/templates/*/ram", 1),
    ("*/templates/*/state", 1),
    ("*/machines/torn-1/.machine.json*", 1),
    ("*/machines/torn-1/.known_hosts*", 1),
]


@pytest.fixture(scope="module")
def torn(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kimbox]:
    """The spec of a box whose image is built, and which has no template. Its clone is destroyed at the end."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp(BOX))
    kimbox.spec(BOX)
    kimbox("build")
    exchange(home)
    yield kimbox
    kimbox("destroy", "-y", CLONE, check=False)


def templates_of_box() -> list[str]:
    """Returns the keys of the templates of the box. A damaged one has no box, and counts."""
    return [summary.key for summary in templates.every() if summary.box in (BOX, None)]


def left() -> set[str]:
    """Returns the folders of templates that were not completed."""
    return {str(path) for path in templates.remains()}


def listed(kimbox: Kimbox) -> set[str]:
    """Returns the folders that `kimbox prune` would remove."""
    return {item["path"] for item in kimbox.json("prune", "--dry-run")["unused"]}


def killed(kimbox: Kimbox, pattern: str, count: int) -> None:
    """Runs `kimbox clone`, which kills itself at a point. Waits until the guest of the template has ended with it.

    The process of an unfinished clone ends with the next `clone` of its name, or with `prune`.
    """
    dying = [sys.executable, Path(__file__).with_name("dying.py"), pattern, str(count)]
    command = [*dying, "clone", kimbox.folder / "kimbox.yaml", CLONE]
    environment = {"KIMBOX_HOME": str(kimbox.home), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = run.run(command, check=False, env=environment, timeout_s=900)
    assert -signal.SIGKILL == done.code, done.stdout + done.stderr
    locks = list(paths.templates_dir().glob(".tmp-*/torn/run.lock"))
    until("the guest has ended with kimbox", lambda: not any(map(is_locked, locks)), limit_s=60)


@pytest.mark.parametrize(("pattern", "count"), MAKING)
def test_no_template_is_left(torn: Kimbox, pattern: str, count: int) -> None:
    """The store has no template. What the killed kimbox left is listed, and is no obstacle to the next one."""
    killed(torn, pattern, count)
    assert [] == templates_of_box()
    assert 1 == len(left())
    assert left() <= listed(torn)
    assert "absent" == state_of(CLONE)


@pytest.mark.parametrize(("pattern", "count"), STARTING)
def test_a_whole_template_is_left(torn: Kimbox, pattern: str, count: int) -> None:
    """The store has the template, and the next command makes the clone from it. `prune` removes what else is left."""
    killed(torn, pattern, count)
    (key,) = templates_of_box()
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in templates.folder(key).iterdir()}
    if state_of(CLONE) != "absent":
        torn("destroy", "-y", CLONE)
    torn("clone", CLONE)
    assert f"{CLONE}\n" == torn.sh(CLONE, "hostname")  # at once, while its ssh server starts again
    assert left() <= listed(torn)
    assert [key] == templates_of_box()
    assert before == {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in templates.folder(key).iterdir()
    }
    torn("destroy", "-y", CLONE)

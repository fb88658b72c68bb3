"""The store of templates: complete or absent, private, and kept while something uses it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from refused import refused

from kimbox import files, paths, run
from kimbox.errors import ImageError, KimboxError, StateError
from kimbox.files import write_json
from kimbox.machine import templates
from kimbox.machine.templates import Template
from kimbox.spec.model import Scratch

KEY = "a" * 64


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    return tmp_path


def template(key: str = KEY) -> Template:
    events = ({"event": "booting", "boot": "", "uptime_s": 1.5, "mode": "keep"},)
    return Template(key, "box", "b" * 64, "c" * 64, 1, 1 << 30, Scratch(1 << 20, "/staging"), events)


def fill(work: Path, done: Path) -> Template:
    assert work == done.parent
    for name in (templates.DISK, templates.OVERLAY, templates.RAM, templates.STATE):
        (done / name).write_bytes(bytes(4096))
    return template()


def test_a_template_is_made_once() -> None:
    assert template() == templates.make(KEY, fill) == templates.find(KEY)
    assert template() == templates.make(KEY, lambda work, done: pytest.fail("it exists"))
    assert [KEY] == templates.stored()
    assert 0o700 == templates.folder(KEY).stat().st_mode & 0o777
    assert 0o600 == (templates.folder(KEY) / templates.FACTS).stat().st_mode & 0o777
    assert [] == templates.remains()
    assert templates.size_bytes(KEY) >= 4 * 4096


def test_a_failure_leaves_nothing() -> None:
    def fails(work: Path, done: Path) -> Template:
        fill(work, done)
        raise KimboxError("no")

    with pytest.raises(KimboxError, match="no"):
        templates.make(KEY, fails)
    assert templates.find(KEY) is None
    assert [] == templates.remains() == templates.stored()


def test_a_full_disk_is_named() -> None:
    def fails(work: Path, done: Path) -> Template:
        raise OSError(28, "No space left on device")

    with refused(ImageError, "no-space"):
        templates.make(KEY, fails)
    assert [] == templates.remains()


def test_the_space_that_is_needed_is_named() -> None:
    def fails(work: Path, done: Path) -> Template:
        files.need_space(work, 1 << 60, "the memory")
        return pytest.fail("there is no such disk")

    with refused(KimboxError, "no-space", need_bytes=str(1 << 60)):
        templates.make(KEY, fails)


def killed_in(source: str) -> None:
    """Runs Python that makes the template, and kills itself with SIGKILL."""
    start = "import os, signal; from pathlib import Path; from kimbox.machine import templates; import test_templates\n"
    path = ":".join([str(Path(__file__).parent), *sys.path])
    done = run.run(
        [sys.executable, "-c", start + source],
        check=False,
        env={"KIMBOX_HOME": str(paths.home()), "PYTHONPATH": path},
    )
    assert -signal.SIGKILL == done.code, done.stderr


@pytest.mark.parametrize(
    "source",
    [
        "templates.make(test_templates.KEY, lambda work, done: os.kill(os.getpid(), signal.SIGKILL))",
        "templates.write_json = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "templates.make(test_templates.KEY, test_templates.fill)",
        "Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "templates.make(test_templates.KEY, test_templates.fill)",
    ],
    ids=["while it is filled", "before its facts", "before the rename"],
)
def test_a_killed_process_leaves_no_template(source: str) -> None:
    """The next one removes what is left, and makes the template."""
    killed_in(source)
    assert templates.find(KEY) is None
    assert [paths.templates_dir() / f".tmp-{KEY}"] == templates.remains()
    assert template() == templates.make(KEY, fill)
    assert [] == templates.remains()


def test_a_killed_process_leaves_a_whole_template() -> None:
    killed_in(
        "templates.remove_tree = lambda path: (templates.find(test_templates.KEY) "
        "and os.kill(os.getpid(), signal.SIGKILL))\n"
        "templates.make(test_templates.KEY, test_templates.fill)"
    )
    assert template() == templates.find(KEY)
    templates.sweep()
    assert template() == templates.find(KEY)
    assert [] == templates.remains()


def test_a_template_in_use_is_not_removed() -> None:
    templates.make(KEY, fill)
    with templates.shared(KEY):
        assert not templates.remove(KEY, is_unused=lambda: True)
    assert not templates.remove(KEY, is_unused=lambda: False)
    assert templates.find(KEY)
    assert templates.remove(KEY, is_unused=lambda: True)
    assert not templates.remove(KEY, is_unused=lambda: True)
    assert [] == templates.stored() == templates.remains()


def test_the_lease_names_the_template() -> None:
    from kimbox.image.store import lease

    busy = refused(StateError, "busy", template=KEY, use="using")
    with templates.shared(KEY), busy, lease.exclusive(KEY, lease.TEMPLATE):
        pass


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / templates.RAM).unlink(),
        lambda folder: (folder / templates.FACTS).unlink(),
        lambda folder: (folder / templates.FACTS).write_text("{"),
        lambda folder: write_json(folder / templates.FACTS, template("d" * 64).as_json()),
        lambda folder: write_json(folder / templates.FACTS, template().as_json() | {"format": 9}),
        lambda folder: write_json(folder / templates.FACTS, template().as_json() | {"events": [1]}),
        lambda folder: write_json(folder / templates.FACTS, template().as_json() | {"cpus": None}),
    ],
)
def test_a_damaged_template(damage: Callable[[Path], object]) -> None:
    templates.make(KEY, fill)
    damage(templates.folder(KEY))
    with refused(ImageError, "template-unusable", template=KEY):
        templates.find(KEY)
    assert [(KEY, None)] == [(found.key, found.box) for found in templates.every()]


def test_the_key_depends_on_everything() -> None:
    given = {"image": "i", "manifest": "m", "facts": ["-smp 1"]}
    keys = {templates.key_of(**given | change) for change in ({}, {"image": "j"}, {"manifest": "n"}, {"facts": []})}
    assert 4 == len(keys)

"""The modules that a start loads. A library that a verb does not need makes every start slower."""

from __future__ import annotations

import sys
from pathlib import Path

import makemachine
import pytest

from kimbox.run import run

ROOT = Path(__file__).resolve().parents[2]

#: Runs kimbox in this process, then prints which of the given modules are loaded.
RUN_AND_LIST = """
import sys
sys.argv = ["kimbox", *{arguments!r}]
from kimbox.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(*sorted(set({names!r}) & set(sys.modules)), file=sys.stderr)
"""

SSH = ["fabric", "paramiko", "invoke", "kimbox.guest.ssh"]
GIT = ["git", "kimbox.lock.git.mirror", "kimbox.lock.git.command"]
SPEC = ["ruamel.yaml", "jsonschema", "kimbox.spec.load"]
IMAGE = ["kimbox.image.store.images", "kimbox.image.obtain", "kimbox.render.manifest", "jinja2"]
REST = ["qemu", "qemu.qmp", "asyncio", "vagrant", "rich", "cyclonedx", "packageurl", "pydantic"]
MAKING = ["kimbox.image.build.builder", "kimbox.image.sources.remote", "kimbox.actions.lifecycle.handover"]


def loaded(home: Path, arguments: list[str], names: list[str], **env: str) -> list[str]:
    """Returns which of the modules `names` a run of kimbox loads."""
    code = RUN_AND_LIST.format(arguments=arguments, names=names)
    env |= {"KIMBOX_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return run([sys.executable, "-c", code], env=env, cwd=home).stderr.split()


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--version"], ["typer", "click", "attrs", "json", *SSH, *GIT, *SPEC, *IMAGE, *REST]),
        (["--help"], [*SSH, *GIT, *SPEC, *IMAGE, *REST, "kimbox.cli.up"]),
        (["provenance", "--help"], [*SSH, *GIT, *IMAGE, "qemu", "cyclonedx", "packageurl"]),
        (["validate", "minimal"], [*SSH, *GIT, *IMAGE, *REST, "kimbox.drivers.qemu.process"]),
        (["schema"], [*SSH, *GIT, *IMAGE, *REST]),
        (["status", "tiny"], [*SSH, *GIT, *SPEC, *IMAGE, *REST]),
        (["status", "tiny", "--json"], [*SSH, *GIT, *SPEC, *IMAGE, *REST]),
        (["list"], [*SSH, *GIT, *SPEC, *IMAGE, *REST]),
        (["ssh-config", "tiny"], [*SSH, *GIT, *SPEC, *IMAGE, *REST]),
        (["logs", "tiny"], [*SSH, *GIT, *SPEC, *IMAGE, *REST]),
        (["halt", "tiny"], [*SSH, *GIT, *SPEC, *IMAGE, "qemu", "rich"]),
        (["destroy", "tiny", "-y"], [*SSH, *GIT, *SPEC, *IMAGE, "rich"]),
    ],
)
def test_a_verb_loads_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], unwanted: list[str]
) -> None:
    """It loads none of the modules in the list."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    makemachine.make_machine().provision_log.touch()
    assert [] == loaded(tmp_path, arguments, unwanted)


def test_a_clone_loads_nothing_that_makes_a_template(tmp_path: Path) -> None:
    """It is awake in less than a second, of which imports take a part."""
    names = [*SSH, *MAKING, "urllib.request", "rich", "pydantic", "jinja2"]
    code = f"import sys, kimbox.actions.clones.clone\nprint(*sorted(set({names!r}) & set(sys.modules)))"
    assert [] == run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, cwd=tmp_path).stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("line", ["kimbox ", "kimbox halt ", "kimbox snapshot restore "])
def test_completion_loads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str, line: str) -> None:
    """Completion loads no module that reads specs, and not rich, because the user waits for it at a key press."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    makemachine.make_machine()
    (tmp_path / "kimbox.yaml").write_text("name: tiny\n")
    completion_env = {
        "_KIMBOX_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split())),
        "_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    unwanted = [*SSH, *GIT, *SPEC, *IMAGE, *REST, "kimbox.actions.up", "kimbox.drivers.qemu.process"]
    assert [] == loaded(tmp_path, [], unwanted, **completion_env)


def test_loaded_modules_are_detected(tmp_path: Path) -> None:
    """A module that is loaded is in the result."""
    assert ["kimbox.spec.load", "ruamel.yaml"] == loaded(tmp_path, ["validate", "minimal"], ["ruamel.yaml", SPEC[2]])

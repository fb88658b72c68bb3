"""Makes boxes and repositories for tests, with real git."""

from __future__ import annotations

from pathlib import Path

from kimbox.run import run
from kimbox.spec.model import BootMode, Box, Disk, PackageImage, Probe, Repository, Step, Volume

MIB = 1 << 20


def make_box(
    folder: Path,
    *,
    repositories: tuple[Repository, ...] = (),
    provision: tuple[Step, ...] = (),
    probes: tuple[Probe, ...] = (),
) -> Box:
    """Returns a small box whose spec is in `folder`."""
    volumes = {n: Volume(n, 64 * MIB) for n in ("root", "persistent", "swap")}
    return Box(
        name="tiny",
        description="",
        source=folder / "kimbox.yaml",
        layers=(folder / "kimbox.yaml",),
        digest="d" * 64,
        image=PackageImage("debian", "trixie", ()),
        disk=Disk(512 * MIB, 64 * MIB, "vg", **volumes, snapshot=Volume("root_snap", None)),
        boot=BootMode.KEEP,
        cpus=1,
        memory_bytes=512 * MIB,
        forwards=(),
        repositories=repositories,
        provision=provision,
        probes=probes,
    )


def git(folder: Path, *args: str) -> str:
    """Runs git with an identity, and without the configuration of the user and the system. Returns its output."""
    env = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    return run(["git", *identity, *args], cwd=folder, env=env, die_with_parent=False).stdout.strip()


def make_repository(folder: Path, files: dict[str, str] | None = None) -> str:
    """Makes a git repository with one commit on `main`. Returns it. Files that begin with `#!` are executable."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    return commit(folder, files or {"a": "one\n"})


def commit(folder: Path, files: dict[str, str]) -> str:
    """Adds a commit with these files and returns it."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755 if text.startswith("#!") else 0o644)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "work")
    return git(folder, "rev-parse", "HEAD")

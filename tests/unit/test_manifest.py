"""The manifest: what the guest is told to be."""

from __future__ import annotations

from pathlib import Path

import attrs
import makebox
import pytest

from kimbox.errors import KimboxError
from kimbox.lock.lockfile import Lock, PinnedRepository
from kimbox.render.manifest import manifest_digest, render_manifest
from kimbox.render.quote import assignments
from kimbox.run import run
from kimbox.spec.model import Mode, Probe, Repository, Run, Step

HOSTILE = 'it\'s $(touch /tmp/x) `id` "$HOME" \\ \n\t!*?~#;&|<>é'

REPOSITORIES = tuple(Repository(n, f"https://example.org/{n}", False, "main", f"/opt/{n}") for n in ("api", "setup"))
LOCK = Lock(
    "d" * 64,
    None,
    {r.name: PinnedRepository(r.url, r.ref, c * 40, c * 40) for r, c in zip(REPOSITORIES, "ab", strict=True)},
)


def test_the_manifest_holds_what_the_guest_needs(tmp_path: Path) -> None:
    """setup first, steps in order with their digests, probes, and whether there is something to do each time."""
    steps = (
        Step("first.one", "true", Mode.USER, Run.ONCE, 60),
        Step("2", "#!/bin/bash\ntrue\n", Mode.SYSTEM, Run.ONCE, 5),
    )
    box = makebox.make_box(tmp_path, repositories=REPOSITORIES, provision=steps)
    manifest = render_manifest(box, LOCK)
    assert list(manifest) == [
        "manifest.env", "repositories", "steps/01-first.one/script", "steps/01-first.one/env",
        "steps/02-2/script", "steps/02-2/env", "box.env", "box.json",
    ]  # fmt: skip
    assert manifest["repositories"][0].decode() == f"setup\t{'b' * 40}\t/opt/setup\napi\t{'a' * 40}\t/opt/api\n"
    assert manifest["steps/01-first.one/script"] == (b"#!/bin/sh -e\ntrue\n", 0o755)
    assert manifest["steps/02-2/script"] == (b"#!/bin/bash\ntrue\n", 0o755)
    assert b"KIMBOX_EACH_TIME='no'\n" in manifest["manifest.env"][0]
    assert b"KIMBOX_STEPS='5'\n" in manifest["manifest.env"][0]
    again = attrs.evolve(box, probes=(Probe("p", "true", None, 5),))
    assert b"KIMBOX_EACH_TIME='yes'\n" in render_manifest(again, LOCK)["manifest.env"][0]


def test_nothing_in_a_spec_becomes_shell(tmp_path: Path) -> None:
    """A shell that sources the files gets every value exactly, and runs none of it."""
    box = makebox.make_box(
        tmp_path,
        provision=(Step(HOSTILE, "true", Mode.SYSTEM, Run.ONCE, 5),),
        probes=(Probe(HOSTILE, "true", HOSTILE, 5),),
    )
    manifest = render_manifest(box, Lock("", None, {}))
    for path, variable in {
        p: "KIMBOX_STEP" if "steps" in p else "KIMBOX_PROBE_HINT" for p in manifest if p.endswith("/env")
    }.items():
        (tmp_path / "env").write_bytes(manifest[path][0])
        said = run(["dash", "-c", f'. "$1"; printf %s "${variable}"', "x", tmp_path / "env"]).stdout
        assert said == (HOSTILE if variable == "KIMBOX_STEP" else HOSTILE.replace("\n", " "))
        assert ".." not in path
        assert path.isascii()
    with pytest.raises(ValueError, match="cannot be assigned"):
        assignments({"KIMBOX_X": "a\0b"})


def test_the_digest_moves_with_everything_and_nothing_else(tmp_path: Path) -> None:
    """Same spec and lock, same digest; another commit, script, mode or hint gives another."""
    box = makebox.make_box(
        tmp_path, repositories=REPOSITORIES, provision=(Step("s", "true", Mode.SYSTEM, Run.ONCE, 5),)
    )
    digest = manifest_digest(render_manifest(box, LOCK))
    assert digest == manifest_digest(render_manifest(box, LOCK))
    assert digest == manifest_digest(
        render_manifest(makebox.make_box(Path("/elsewhere"), repositories=REPOSITORIES, provision=box.provision), LOCK)
    )
    other_pin = attrs.evolve(
        LOCK, repositories={**LOCK.repositories, "api": attrs.evolve(LOCK.repositories["api"], commit="c" * 40)}
    )
    changed = [
        manifest_digest(render_manifest(box, other_pin)),
        manifest_digest(
            render_manifest(attrs.evolve(box, provision=(attrs.evolve(box.provision[0], script="false"),)), LOCK)
        ),
        manifest_digest(
            render_manifest(attrs.evolve(box, provision=(attrs.evolve(box.provision[0], mode=Mode.USER),)), LOCK)
        ),
    ]
    assert len({digest, *changed}) == 4


def test_a_lock_that_lacks_a_repository_is_refused(tmp_path: Path) -> None:
    """What is not pinned does not go into a guest; nor does a path that would break the list."""
    box = makebox.make_box(tmp_path, repositories=REPOSITORIES)
    with pytest.raises(KimboxError, match="does not hold the repository"):
        render_manifest(box, Lock("", None, {}))
    odd = makebox.make_box(tmp_path, repositories=(attrs.evolve(REPOSITORIES[0], path="/opt/a\tb"),))
    with pytest.raises(KimboxError, match="a tab"):
        render_manifest(odd, LOCK)

"""The manifest: the target state of the guest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import attrs
import makebox
import pytest

from kimbox.errors import KimboxError
from kimbox.lock.lockfile import Lock, PinnedRepository
from kimbox.render.manifest import manifest_digest, render_manifest
from kimbox.render.quote import assignments, parse_assignments
from kimbox.render.uses import MAX_FOLDERS, named_paths
from kimbox.run import run
from kimbox.spec.model import Mode, Probe, Repository, ResnapKeep, Run, Step

HOSTILE = 'it\'s $(touch /tmp/x) `id` "$HOME" \\ \n\t!*?~#;&|<>é'

REPOSITORIES = tuple(Repository(n, f"https://example.org/{n}", False, "main", f"/opt/{n}") for n in ("api", "setup"))
LOCK = Lock(
    "d" * 64,
    None,
    {r.name: PinnedRepository(r.url, r.ref, c * 40, c * 40) for r, c in zip(REPOSITORIES, "ab", strict=True)},
)


def test_the_manifest_contains_what_the_guest_needs(tmp_path: Path) -> None:
    """setup is first, then the steps in order with their digests, the probes, and whether a step runs at each boot."""
    steps = (
        Step("first.one", "true", Mode.USER, Run.ONCE, 60),
        Step("2", "#!/bin/bash\ntrue\n", Mode.SYSTEM, Run.ONCE, 5),
    )
    box = makebox.make_box(tmp_path, repositories=REPOSITORIES, provision=steps)
    manifest = render_manifest(box, LOCK)
    assert list(manifest) == [
        "manifest.env", "repositories", "origins", "gitconfig", "steps/01-first.one/script", "steps/01-first.one/env",
        "steps/02-2/script", "steps/02-2/env", "box.env", "box.json",
    ]  # fmt: skip
    assert manifest["repositories"][0].decode() == f"setup\t{'b' * 40}\t/opt/setup\napi\t{'a' * 40}\t/opt/api\n"
    assert manifest["steps/01-first.one/script"] == (b"#!/bin/sh -e\ntrue\n", 0o755)
    assert manifest["steps/02-2/script"] == (b"#!/bin/bash\ntrue\n", 0o755)
    assert b"KIMBOX_EACH_TIME='no'\n" in manifest["manifest.env"][0]
    assert b"KIMBOX_STEPS='5'\n" in manifest["manifest.env"][0]
    assert b"KIMBOX_KEEP" not in manifest["manifest.env"][0]
    keeps_nothing = attrs.evolve(box, resnap_keep=ResnapKeep.NOTHING)
    assert b"KIMBOX_KEEP='nothing'\n" in render_manifest(keeps_nothing, LOCK)["manifest.env"][0]
    with_probe = attrs.evolve(box, probes=(Probe("p", "true", None, 5),))
    assert b"KIMBOX_EACH_TIME='yes'\n" in render_manifest(with_probe, LOCK)["manifest.env"][0]


def test_nothing_in_a_spec_becomes_shell(tmp_path: Path) -> None:
    """A shell that sources the files gets every value exactly and runs no part of a value."""
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
        printed = run(["dash", "-c", f'. "$1"; printf %s "${variable}"', "x", tmp_path / "env"]).stdout
        assert printed == (HOSTILE if variable == "KIMBOX_STEP" else HOSTILE.replace("\n", " "))
        assert ".." not in path
        assert path.isascii()
    with pytest.raises(ValueError, match="cannot be assigned"):
        assignments({"KIMBOX_X": "a\0b"})


def test_the_digest_depends_on_spec_and_lock_only(tmp_path: Path) -> None:
    """The same spec and lock have the same digest. Another commit, script, mode or hint has another digest."""
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
    """A repository without a commit is an error, and so is a path that would break the list."""
    box = makebox.make_box(tmp_path, repositories=REPOSITORIES)
    with pytest.raises(KimboxError) as missing:
        render_manifest(box, Lock("", None, {}))
    assert ("lock-disagrees", {"repository": "setup"}) == (missing.value.code, missing.value.fields)
    odd = makebox.make_box(tmp_path, repositories=(attrs.evolve(REPOSITORIES[0], path="/opt/a\tb"),))
    with pytest.raises(KimboxError) as bad:
        render_manifest(odd, LOCK)
    assert ("forbidden-character", {"repository": "api"}) == (bad.value.code, bad.value.fields)


def uses_of(folder: Path, *steps: Step) -> list[str]:
    """Returns KIMBOX_STEP_USES of each step of a box with these repositories and one below each home folder."""
    more = tuple(
        Repository(name, f"https://example.org/{name}", False, "main", path)
        for name, path in {"own": "/home/vagrant/src/own", "roots": "/root/src/roots"}.items()
    )
    box = makebox.make_box(folder, repositories=(*REPOSITORIES, *more), provision=steps)
    pins = {r.name: PinnedRepository(r.url, r.ref, "e" * 40, "e" * 40) for r in box.repositories}
    manifest = render_manifest(box, Lock("d" * 64, None, pins))
    envs = [parse_assignments(data) for path, (data, _) in manifest.items() if path.endswith("/env")]
    return [env["KIMBOX_STEP_USES"] for env in envs]


@pytest.mark.parametrize(
    ("expected", "script"),
    [
        ("", "true"),
        ("", "make -C /opt/apis; make -C /opt/api-2; cat /opt/api.conf /opt/api.d/x"),
        ("", "cat /mnt/opt/api ./opt/api ../opt/api $D/opt/api /opt/API"),
        ("", "cat $HOME/src/own ~/src/roots2 ~root/src/roots"),
        ("api", "make -C /opt/api"),
        ("api", "cd '/opt/api'; ls"),
        ("api", "ls --dir=/opt/api/x"),
        ("api", "git clone file:///opt/api"),
        ("api", "PATH=$PATH:/opt/api:/bin tool"),
        ("api", "# built from /opt/api."),
        ("setup api", "/opt/setup/x /opt/api*"),
        ("own", "ls /home/vagrant/src/own ~vagrant/src/own"),
        ("roots", "ls ~/src/roots $HOME/src/roots/x ${HOME}/src/roots"),
    ],
)
def test_a_script_uses_the_repositories_that_it_names(tmp_path: Path, expected: str, script: str) -> None:
    """Only the complete path of a repository counts, and not a path that begins or ends like it."""
    used = uses_of(tmp_path, Step("s", script, Mode.SYSTEM, Run.ONCE, 5))
    assert sorted(expected.split()) == sorted(used[0].split())


def test_a_home_folder_is_that_of_the_account(tmp_path: Path) -> None:
    """In a step of mode user, `~` is the home folder of vagrant."""
    script = "ls ~/src/own ~/src/roots"
    steps = (Step("u", script, Mode.USER, Run.ONCE, 5), Step("r", script, Mode.SYSTEM, Run.ONCE, 5))
    assert ["own", "roots"] == uses_of(tmp_path, *steps)


def test_uses_of_a_step_replaces_the_search_in_its_script(tmp_path: Path) -> None:
    """The names are in the order of the spec. An empty `uses` differs from a missing `uses`."""
    script = "ls /opt/api"
    all_uses = [("setup", "api"), ("own",), ()]
    steps = (Step(str(n), script, Mode.SYSTEM, Run.ONCE, 5, uses) for n, uses in enumerate(all_uses))
    assert ["api setup", "own", "-"] == uses_of(tmp_path, *steps)


def test_an_older_image_refuses_a_manifest_that_it_would_misread(tmp_path: Path) -> None:
    """A manifest with a non-empty `uses` has a newer format number, because older images would ignore the key."""
    formats = []
    for uses in (None, (), ("api",)):
        step = Step("s", "ls /opt/api", Mode.SYSTEM, Run.ONCE, 5, uses)
        box = makebox.make_box(tmp_path, repositories=REPOSITORIES, provision=(step,))
        formats.append(parse_assignments(render_manifest(box, LOCK)["manifest.env"][0])["KIMBOX_MANIFEST_FORMAT"])
    zoned = parse_assignments(render_manifest(attrs.evolve(box, timezone="UTC"), LOCK)["manifest.env"][0])
    assert ["1", "1", "3"] == formats
    assert ("4", "UTC") == (zoned["KIMBOX_MANIFEST_FORMAT"], zoned["KIMBOX_TIMEZONE"])


def test_the_digest_of_a_step_is_that_of_mode_and_script(tmp_path: Path) -> None:
    """`uses` does not change the digest, so that records of done steps from an older kimbox stay valid."""
    digests = set()
    for uses in (None, (), ("api",)):
        step = Step("s", "ls /opt/api", Mode.SYSTEM, Run.ONCE, 5, uses)
        box = makebox.make_box(tmp_path, repositories=REPOSITORIES, provision=(step,))
        digests.add(parse_assignments(render_manifest(box, LOCK)["steps/01-s/env"][0])["KIMBOX_STEP_DIGEST"])
    assert {hashlib.sha256(b"system\n#!/bin/sh -e\nls /opt/api\n").hexdigest()} == digests


def test_paths_in_a_script_are_found_in_bounded_work(tmp_path: Path) -> None:
    """The work for a path with very many folders grows linearly with the length of the text."""
    step = Step("s", "ls " + "/a" * 200_000, Mode.SYSTEM, Run.ONCE, 5)
    assert MAX_FOLDERS >= len(named_paths(step)) > 0
    assert [""] == uses_of(tmp_path, step)

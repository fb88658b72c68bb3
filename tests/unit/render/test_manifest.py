"""The manifest: what the guest is told to be."""

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
    with pytest.raises(KimboxError) as missing:
        render_manifest(box, Lock("", None, {}))
    assert ("lock-disagrees", {"repository": "setup"}) == (missing.value.code, missing.value.fields)
    odd = makebox.make_box(tmp_path, repositories=(attrs.evolve(REPOSITORIES[0], path="/opt/a\tb"),))
    with pytest.raises(KimboxError) as bad:
        render_manifest(odd, LOCK)
    assert ("forbidden-character", {"repository": "api"}) == (bad.value.code, bad.value.fields)


def uses_of(folder: Path, *steps: Step) -> list[str]:
    """KIMBOX_STEP_USES of each step, of a box with these repositories and one below each home folder."""
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
def test_a_script_uses_what_it_names(tmp_path: Path, expected: str, script: str) -> None:
    """A whole path of a repository counts, and nothing that only begins or ends like one."""
    used = uses_of(tmp_path, Step("s", script, Mode.SYSTEM, Run.ONCE, 5))
    assert sorted(expected.split()) == sorted(used[0].split())


def test_a_home_folder_is_that_of_the_account(tmp_path: Path) -> None:
    """`~` of a step of mode user is the home folder of vagrant."""
    script = "ls ~/src/own ~/src/roots"
    steps = (Step("u", script, Mode.USER, Run.ONCE, 5), Step("r", script, Mode.SYSTEM, Run.ONCE, 5))
    assert ["own", "roots"] == uses_of(tmp_path, *steps)


def test_what_a_step_says_that_it_uses_stands_in_place_of_its_text(tmp_path: Path) -> None:
    """Names in the order of the spec; a step that says that it uses nothing is told from one that does not say."""
    script = "ls /opt/api"
    said = [("setup", "api"), ("own",), ()]
    steps = (Step(str(n), script, Mode.SYSTEM, Run.ONCE, 5, uses) for n, uses in enumerate(said))
    assert ["api setup", "own", "-"] == uses_of(tmp_path, *steps)


def test_an_older_image_refuses_what_it_would_pass_over(tmp_path: Path) -> None:
    """A manifest in which a step says what it uses is of another format; one that says `nothing` needs none."""
    formats = []
    for uses in (None, (), ("api",)):
        step = Step("s", "ls /opt/api", Mode.SYSTEM, Run.ONCE, 5, uses)
        box = makebox.make_box(tmp_path, repositories=REPOSITORIES, provision=(step,))
        formats.append(parse_assignments(render_manifest(box, LOCK)["manifest.env"][0])["KIMBOX_MANIFEST_FORMAT"])
    assert ["1", "1", "3"] == formats


def test_the_digest_of_a_step_stays_that_of_mode_and_text(tmp_path: Path) -> None:
    """What a guest noted as done under an older kimbox is known by the same digest, whatever the step uses."""
    digests = set()
    for uses in (None, (), ("api",)):
        step = Step("s", "ls /opt/api", Mode.SYSTEM, Run.ONCE, 5, uses)
        box = makebox.make_box(tmp_path, repositories=REPOSITORIES, provision=(step,))
        digests.add(parse_assignments(render_manifest(box, LOCK)["steps/01-s/env"][0])["KIMBOX_STEP_DIGEST"])
    assert {hashlib.sha256(b"system\n#!/bin/sh -e\nls /opt/api\n").hexdigest()} == digests


def test_paths_in_a_script_are_found_in_bounded_work(tmp_path: Path) -> None:
    """What is found of a path of very many folders grows with the length of the text alone."""
    step = Step("s", "ls " + "/a" * 200_000, Mode.SYSTEM, Run.ONCE, 5)
    assert MAX_FOLDERS >= len(named_paths(step)) > 0
    assert [""] == uses_of(tmp_path, step)

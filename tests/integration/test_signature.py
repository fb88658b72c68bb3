"""`verify` of a repository: signed commits and tags, with real keys of ssh and gpg, and the spec's side of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import attrs
import clirun
import makebox
import makekeys
import pytest
from clirun import Kimbox
from makekeys import Signer
from refused import refused

from kimbox import paths
from kimbox.errors import SpecError
from kimbox.lock.git import signature
from kimbox.lock.git.command import GitError, SignatureError
from kimbox.lock.git.mirror import Mirror
from kimbox.run import run
from kimbox.spec.load import load_box
from kimbox.spec.model import Repository

kimbox, world = clirun.kimbox, clirun.world  # fixtures


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Signer]]:
    """Two with keys of ssh, two with keys of gpg."""
    folder = tmp_path_factory.mktemp("keys")
    with makekeys.short_folder() as home:
        yield {
            "ann": makekeys.ssh(folder, "ann"),
            "bob": makekeys.ssh(folder, "bob", "rsa"),
            "cat": makekeys.gpg("cat", Path(home)),
            "dan": makekeys.gpg("dan", Path(home)),
        }
        run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)


@pytest.fixture
def source(world: Path) -> Path:
    makebox.make_repository(world / "code")
    return world / "code"


def of(source: Path, *keys: str, ref: str = "main", offline: bool = False) -> Mirror:
    """The mirror of a repository that wants a signature by one of these keys, as a spec has them."""
    plain = tuple(key if key.startswith("-") else " ".join(key.split()[:2]) for key in keys)
    repository = Repository("code", f"file://{source}", False, ref, "/opt/code", keys=plain)
    return Mirror.of(repository, offline=offline)


@pytest.mark.parametrize("who", ["ann", "bob", "cat", "dan"])
def test_a_signed_commit_is_taken(people: dict[str, Signer], source: Path, who: str) -> None:
    """By any of the keys, at resolve and at ensure, without the server the second time."""
    commit = people[who].commit(source, "signed\n")
    keys = [signer.public for signer in people.values()]
    assert commit == of(source, *keys).resolve("main").commit
    source.rename(source.with_name("gone"))
    assert commit == of(source, people[who].public, offline=True).ensure(commit).commit


@pytest.mark.parametrize(("who", "other"), [("ann", "bob"), ("cat", "dan"), ("ann", "cat"), ("cat", "ann")])
def test_another_key_is_refused(people: dict[str, Signer], source: Path, who: str, other: str) -> None:
    """A good signature of somebody whom the spec does not name."""
    commit = people[who].commit(source, "signed\n")
    code = of(source, people[other].public)
    for ask in (lambda: code.resolve("main"), lambda: code.ensure(commit)):
        with pytest.raises(SignatureError, match=f"the commit {commit} is signed by a key that the spec does not name"):
            ask()


def test_no_signature_is_refused(people: dict[str, Signer], source: Path) -> None:
    """Commit or tag, light or annotated."""
    commit = makebox.git(source, "rev-parse", "HEAD")
    makebox.git(source, "tag", "light")
    makebox.git(source, "tag", "-a", "-m", "x", "annotated")
    for ref, more in {
        "main": "",
        "HEAD": "",
        commit: "",
        "light": "",
        "annotated": "; the tag annotated has no sig",
    }.items():
        with pytest.raises(SignatureError, match=f"the commit {commit} has no signature{more}"):
            of(source, people["ann"].public, ref=ref).resolve(ref)


@pytest.mark.parametrize("who", ["ann", "cat"])
def test_a_changed_commit_is_refused(people: dict[str, Signer], source: Path, who: str) -> None:
    """The signature of one commit in another."""
    people[who].commit(source, "signed\n")
    raw = makebox.git(source, "cat-file", "commit", "HEAD").replace("\n\nsigned", "\n\nforged")
    (source / "forged").write_text(raw + "\n")
    forged = makebox.git(source, "hash-object", "-t", "commit", "-w", "forged")
    makebox.git(source, "update-ref", "refs/heads/forged", forged)
    with pytest.raises(SignatureError, match=f"the commit {forged} has a bad signature"):
        of(source, people[who].public, ref="forged").resolve("forged")


@pytest.mark.parametrize("who", ["ann", "cat"])
@pytest.mark.parametrize("ref", ["v1", "refs/tags/v1"])
def test_a_signed_tag_vouches_for_its_commit(people: dict[str, Signer], source: Path, who: str, ref: str) -> None:
    """The commit itself is not signed. What was fetched once is enough later, and a new machine fetches the tag."""
    people[who].tag(source, "v1")
    code = of(source, people[who].public, ref=ref)
    pin = code.resolve(ref)
    assert pin == attrs.evolve(code, offline=True).ensure(pin.commit)
    fresh = attrs.evolve(code, path=code.path.with_name("fresh.git"))
    assert pin == fresh.ensure(pin.commit)
    plain = of(source, ref=ref)  # fetched the commit without its tag
    again = attrs.evolve(code, path=code.path.with_name("again.git"))
    attrs.evolve(plain, path=again.path).ensure(pin.commit)
    with pytest.raises(SignatureError):
        attrs.evolve(again, offline=True).ensure(pin.commit)
    assert pin == again.ensure(pin.commit)


def test_a_tag_vouches_for_nothing_else(people: dict[str, Signer], source: Path) -> None:
    """Not under another name, not for another commit, not by another key."""
    ann, bob = people["ann"], people["bob"]
    ann.tag(source, "v1")
    tag = makebox.git(source, "rev-parse", "v1")
    makebox.git(source, "update-ref", "refs/tags/v2", tag)
    with pytest.raises(SignatureError, match=f"the tag object {tag} is that of another tag, 'v1'"):
        of(source, ann.public, ref="v2").resolve("v2")
    old = makebox.git(source, "rev-parse", "HEAD")
    makebox.commit(source, {"a": "two\n"})
    bob.tag(source, "v1", force=True)
    with pytest.raises(SignatureError, match="the tag v1 is signed by a key that the spec does not name"):
        of(source, ann.public, ref="v1").resolve("v1")
    assert of(source, bob.public, ref="v1").resolve("v1")
    ann.tag(source, "v1", force=True)
    with refused(SignatureError, "signature-wrong", commit=old) as caught:
        of(source, bob.public, ref="v1").ensure(old)
    assert f"the commit {old} has no signature" in caught.value.message


def test_the_users_own_trust_has_no_say(
    people: dict[str, Signer], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an allowed signer of the user's git, nor the user's ring of gpg, nor a program that the user set."""
    signers = tmp_path / "signers"
    signers.write_text(f"ann@example.org {people['ann'].public}\n")
    (tmp_path / "yes").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 0\n")
    (tmp_path / "yes").chmod(0o755)
    (tmp_path / "config").write_text(
        f"[gpg]\n\tprogram = {tmp_path}/yes\n"
        f'[gpg "ssh"]\n\tallowedSignersFile = {signers}\n\tprogram = {tmp_path}/yes\n'
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("GNUPGHOME", people["cat"].env["GNUPGHOME"])
    for who, other in (("ann", "bob"), ("cat", "dan"), ("cat", "ann")):
        people[who].commit(source, f"{who} {other}\n")
        with refused(SignatureError, "signature-wrong"):
            of(source, people[other].public).resolve("main")
    assert not (tmp_path / "ran").exists()


def test_an_expired_key_is_called_so(source: Path, tmp_path: Path) -> None:
    """It was good when it signed."""
    past = tmp_path / "gpg-in-the-past"
    past.write_text('#!/bin/sh\nexec gpg --faked-system-time 20200101T120000! "$@"\n')
    past.chmod(0o755)
    with makekeys.short_folder() as home:
        try:
            eve = makekeys.gpg("eve", Path(home), program=str(past), expires="1d")
            commit = eve.commit(source, "signed\n")
        finally:
            run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)
    with pytest.raises(SignatureError, match=f"the commit {commit} is signed by a key that has expired"):
        of(source, eve.public).resolve("main")


def test_a_key_that_gpg_does_not_take(source: Path) -> None:
    """It looked like one."""
    with refused(GitError, "bad-public-key"):
        of(source, "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nnonsense\n-----END PGP PUBLIC KEY BLOCK-----\n").resolve(
            "main"
        )


# --- the spec


def write_spec(folder: Path, source: Path, keys: str, url: str | None = None) -> Path:
    spec = folder / "kimbox.yaml"
    spec.write_text(
        "kimbox: 1\nname: tiny\nbase: [_defaults/debian.yaml]\nrepositories:\n"
        f"  code: {{url: {url or f'file://{source}'}, verify: {{keys: {keys}}}}}\n"
    )
    return spec


def test_keys_come_from_the_spec_and_from_files(people: dict[str, Signer], world: Path, source: Path) -> None:
    """An ssh key as text, a .pub file with several, an armored file; each once, without comments."""
    work = world / "work"
    (work / "keys").mkdir()
    (work / "keys/ssh.pub").write_text(f"# of the team\n{people['ann'].public}\n\n{people['bob'].public}\n")
    (work / "keys/cat.asc").write_text(people["cat"].public)
    spec = write_spec(work, source, f'["{people["ann"].public}", keys/ssh.pub, ./keys/cat.asc]')
    ann, bob, cat = (people[name].public for name in ("ann", "bob", "cat"))
    expected = (*(" ".join(key.split()[:2]) for key in (ann, bob)), cat.strip() + "\n")
    assert expected == load_box(spec).repositories[0].keys


def test_bad_keys_are_faults_of_the_spec(people: dict[str, Signer], world: Path, source: Path) -> None:
    """At their place, and a private key is never repeated."""
    work = world / "work"
    (work / "private").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n-----END OPENSSH PRIVATE KEY-----\n")
    (work / "empty").write_text("# nothing\n")
    (work / "half.asc").write_text(people["cat"].public[:200])
    (work / "binary").write_bytes(b"\xff\xfe\0")
    (work / "fifo").mkdir()
    ann = people["ann"].public
    for keys, (fault, text) in {
        "[]": ("empty-value", "`verify.keys` is empty"),
        "[private]": ("private-key-in-spec", "`private` contains a private key"),
        "[empty]": ("bad-public-key", "`empty` contains no public key"),
        "[half.asc]": ("bad-public-key", "`half.asc` is not exactly one armored public key of gpg"),
        "[binary]": ("bad-public-key", "`binary` cannot be read as a file of public keys"),
        "[fifo]": ("bad-public-key", "`fifo` cannot be read as a file of public keys"),
        "[missing.pub]": ("file-not-found", "file of keys `missing.pub` not found"),
        "[../up.pub]": ("outside-spec-folder", "is outside of the folder of the spec"),
        "[/etc/passwd]": ("bad-path", "is an absolute path"),
        "[kimbox.yaml]": ("bad-public-key", "`kimbox.yaml` is not a supported public key"),
        "['ssh-dss AAAA']": ("bad-public-key", "is not a supported public key"),
        "['ssh-ed25519 AAAA']": ("bad-public-key", "this is not a supported public key"),
        f"['{ann.replace('ssh-ed25519', 'ssh-rsa', 1)}']": ("bad-public-key", "this is not a supported public key"),
        f"['cert-authority {ann}']": ("bad-public-key", "is not a supported public key"),
        "[3]": ("wrong-type", "must be text"),
    }.items():
        with pytest.raises(SpecError) as wrong:
            load_box(write_spec(work, source, keys))
        assert [fault] == [problem.code for problem in wrong.value.problems], keys
        assert text in wrong.value.message, keys
        assert "kimbox.yaml:5:" in wrong.value.message
        assert "hunter2" not in wrong.value.message
    with pytest.raises(SpecError, match="a folder has no signature"):
        load_box(write_spec(work, source, f"['{ann}']", url="./keys/.."))
    spec = write_spec(work, source, "[]")
    spec.write_text(spec.read_text().replace("verify: {keys: []}", "verify: {}"))
    with pytest.raises(SpecError, match="has no `keys`"):
        load_box(spec)


def test_the_verbs_refuse_what_is_not_signed(
    kimbox: Kimbox, people: dict[str, Signer], world: Path, source: Path
) -> None:
    """lock writes nothing, up takes nothing, --check ends with 3; a new key in the spec is asked for at once."""
    work = world / "work"
    ann, bob = people["ann"], people["bob"]
    write_spec(work, source, f"['{ann.public}']")
    code, _, err = kimbox("lock")
    assert (3, True, False) == (code, "has no signature" in err, (work / "kimbox.lock").exists())
    ann.commit(source, "signed\n")
    assert 0 == kimbox("lock")[0]
    assert 0 == kimbox("lock", "--check", "--remote")[0]
    write_spec(work, source, f"['{bob.public}']")
    text = (work / "kimbox.lock").read_text()
    code, _, err = kimbox("up", "--offline")
    assert (3, True) == (code, "does not name" in err)
    (work / "kimbox.lock").write_text(text.replace(load_digest(text), load_box(work / "kimbox.yaml").digest))
    for more in ([], ["--remote"]):
        code, out, _ = kimbox("lock", "--check", "--json", *more)
        assert 3 == code
        assert "does not name" in clirun.error(out, "lock")["problems"][0]["message"]


def test_a_check_cannot_know_of_tags_that_were_not_fetched(
    kimbox: Kimbox, people: dict[str, Signer], world: Path, source: Path
) -> None:
    """The mirror may have the commit from a spec that wanted no signature: a note, and --remote asks."""
    spec = write_spec(world / "work", source, f"['{people['ann'].public}']")
    spec.write_text(spec.read_text().replace("verify:", "ref: v1, verify:"))
    people["ann"].tag(source, "v1")
    assert 0 == kimbox("lock")[0]
    shutil.rmtree(paths.mirrors_dir())
    of(source, ref="v1").resolve("v1")
    code, out, _ = kimbox("lock", "--check")
    assert (0, True) == (code, "has no signature" in out and "--remote asks for a signed tag" in out)
    assert 0 == kimbox("lock", "--check", "--remote")[0]
    assert (0, False) == ((done := kimbox("lock", "--check"))[0], "note" in done[1])


def load_digest(text: str) -> str:
    return next(line.split()[1] for line in text.splitlines() if line.startswith("spec:"))


def test_a_name_in_a_key_is_no_word_of_gpg() -> None:
    """A user id with another separator of lines than gpg's own adds no status."""
    said = "[GNUPG:] GOODSIG 0123456789ABCDEF a\u2028[GNUPG:] VALIDSIG 0123\n"
    assert "is signed by a key that the spec does not name" == signature._gpg_flaw(0, said)
    assert None is signature._gpg_flaw(0, said.replace("\u2028", "\n"))

"""Choosing, fetching and keeping packages, with a real apt and archives that a real gpg has signed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import attrs
import clirun
import makearchive
import pytest
from clirun import Kimbox
from refused import refused
from webfolder import serving

from kimbox.errors import ImageError
from kimbox.image.inputs.recipe import requested
from kimbox.lock.apt import archive, cache, keys
from kimbox.lock.apt import sources as apt
from kimbox.lock.apt.archive import Archive
from kimbox.lock.apt.choose import choose
from kimbox.lock.apt.packages import LockedPackage, LockedPackages
from kimbox.lock.apt.sources import Source
from kimbox.log import log
from kimbox.project import pins
from kimbox.settings import settings
from kimbox.spec.model import PackageImage

kimbox, world = clirun.kimbox, clirun.world  # fixtures

pytestmark = pytest.mark.skipif(not makearchive.usable(), reason="no apt, dpkg-deb or gpg here")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive to copy: its key takes a while."""
    return makearchive.base(tmp_path_factory.mktemp("template") / "there").folder


@pytest.fixture
def there(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> makearchive.Archive:
    """An archive whose key is the distribution's."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(settings, "quiet", True)
    made = makearchive.Archive(Path(shutil.copytree(template, tmp_path / "there", ignore=NO_SOCKETS)))
    monkeypatch.setitem(archive.KEYRINGS, "debian", str(made.keyring))
    monkeypatch.setattr(archive, "FRESH_S", 0.0)
    monkeypatch.setattr(cache, "RECENT_S", 0.0)
    return made


#: What gpg's agent leaves in its home.
NO_SOCKETS = shutil.ignore_patterns("S.*")


def image_of(there: makearchive.Archive, *names: str) -> PackageImage:
    return PackageImage("debian", "trixie", names, mirror=there.uri)


def chosen(there: makearchive.Archive, *names: str, previous: LockedPackages | None = None) -> LockedPackages:
    return choose(image_of(there), names, previous, update=None if previous else ())


def test_what_is_asked_for_comes_with_what_it_needs(there: makearchive.Archive) -> None:
    """The base of every system is in it; every package has its version, architecture and digest."""
    found = chosen(there, "tool")
    assert {"base-files", "apt", "tool", "library"} == set(found.versions)
    assert ("1:2.0-1", "all") == (found.versions["library"].version, found.versions["library"].architecture)
    assert "1.0~rc1+b2" == found.versions["tool"].version
    assert makearchive.AS_OF == found.as_of


@pytest.mark.parametrize("name", [b"caf\xc3\xa9", b"caf\xe9 x", b"back\\slash", b"50%41"])
def test_kimbox_home_in_a_folder_with_any_name(
    there: makearchive.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    """apt uses the folders of kimbox and not those of this machine."""
    monkeypatch.setenv("KIMBOX_HOME", os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    locked = chosen(there, "tool")
    assert "tool" in locked.versions
    cache.ensure(image_of(there, "tool"), locked, offline=False)
    assert all(cache.deb_of(package).exists() for package in locked.versions.values())


def test_a_kimbox_home_that_apt_cannot_use(
    there: makearchive.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the folder."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / 'quo"te'))
    with refused(ImageError, "bad-path", path=str(tmp_path / 'quo"te')):
        chosen(there, "tool")


def test_what_is_chosen_stays_until_it_is_moved(there: makearchive.Archive) -> None:
    """A newer version is not taken unasked; another request moves nothing that it need not move."""
    old = chosen(there, "tool")
    there.add("library", "1:3.0-1")
    there.add("other", "5")
    there.publish()
    assert old is choose(image_of(there), ["tool"], old)
    more = choose(image_of(there), ["tool", "other"], old)
    assert ("1:2.0-1", "5") == (more.versions["library"].version, more.versions["other"].version)
    assert "1:2.0-1" == choose(image_of(there), ["tool"], old, update=["tool"]).versions["library"].version
    assert "1:3.0-1" == choose(image_of(there), ["tool"], old, update=["library"]).versions["library"].version
    assert "1:3.0-1" == choose(image_of(there), ["tool"], old, update=["packages"]).versions["library"].version
    assert "1:3.0-1" == choose(image_of(there), ["tool"], more, update=None).versions["library"].version


def without(locked: LockedPackages, name: str) -> LockedPackages:
    """A lock from which the line of one package was deleted."""
    tree = locked.as_tree()
    del tree["versions"][name]
    return LockedPackages.from_tree(tree)


@pytest.mark.parametrize("name", ["tool", "library"])
def test_a_package_that_was_removed_from_the_lock_comes_back(there: makearchive.Archive, name: str) -> None:
    """A requested package and a dependency. The digest in the lock shows that one is missing, and in which version."""
    old = chosen(there, "tool")
    edited = without(old, name)
    assert edited.fault(["tool"])
    assert old.fault(["tool"]) is None
    restored = choose(image_of(there), ["tool"], edited)
    assert old.as_tree() == restored.as_tree()


def test_a_removed_package_comes_from_an_archive_of_the_past(
    there: makearchive.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its former version; without such an archive in the newest one, with a warning."""
    old = chosen(there, "tool")
    shutil.copytree(tmp_path / "there/archive", tmp_path / "past/20260101T000000Z")
    next((tmp_path / "there/archive/pool").glob("library*")).unlink()
    there.add("library", "1:3.0-1")
    there.publish()
    warnings: list[str] = []
    monkeypatch.setattr(log, "warn", warnings.append)
    newer = choose(image_of(there), ["tool"], without(old, "library"))
    assert ("1:3.0-1", None) == (newer.versions["library"].version, newer.fault(["tool"]))
    assert "no archive has all" in warnings[0]
    monkeypatch.setenv(cache.SNAPSHOT_SETTING, f"file:{tmp_path}/past/{{time}}")
    assert old.as_tree() == choose(image_of(there), ["tool"], without(old, "library")).as_tree()


def test_a_lock_of_an_older_kimbox(there: makearchive.Archive) -> None:
    """It has no digest: it gets one, and a requested package that it lacks is chosen."""
    old = attrs.evolve(chosen(there, "tool"), chosen_digest=None)
    assert "digest" not in old.as_tree()
    assert (None, old.digest) == (old.fault(["tool"]), choose(image_of(there), ["tool"], old).chosen_digest)
    fewer = without(old, "tool")
    assert "the lock lacks packages that the image asks for: tool" == fewer.fault(["tool"])
    assert old.versions == choose(image_of(there), ["tool"], fewer).versions


@pytest.mark.parametrize("name", ["tool", "library"])
def test_every_verb_notices_an_edited_lock(
    there: makearchive.Archive, kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`lock --check`, `build` and `up` refuse a lock that lacks a package. `lock`, as the hint says, restores it."""
    monkeypatch.setattr(pins, "choose", choose)
    for part in requested(image_of(there)):
        there.add(part)
    there.publish()
    path = Path("kimbox.lock")
    with serving(there.folder / "archive") as port:
        Path("kimbox.yaml").write_text(
            f"kimbox: 1\nname: tried\nimage: {{suite: trixie, mirror: 'http://127.0.0.1:{port}', packages: [tool]}}\n"
        )
        assert 0 == kimbox("lock")[0]
        whole = path.read_text()
        path.write_text(re.sub(rf"^    {name}: .*\n", "", whole, flags=re.MULTILINE))
        assert path.read_text() != whole
        for arguments in (["lock", "--check"], ["build"], ["up"], ["up", "--locked"]):
            code, _, err = kimbox(*arguments)
            assert (3, True) == (code, "`kimbox lock` brings it up to date" in err), err
            assert "without --locked" not in err
        code, out, _ = kimbox("lock")
        assert (0, True) == (code, f"package {name}: new, " in out)
    assert whole == path.read_text()
    assert 0 == kimbox("lock", "--check")[0]


def test_no_network_is_asked_for_what_is_chosen(there: makearchive.Archive, tmp_path: Path) -> None:
    """With the archive gone, the lock is enough; for another request it is not."""
    old = chosen(there, "tool")
    shutil.rmtree(tmp_path / "there/archive")
    assert old is choose(image_of(there), ["tool"], old, offline=True)
    with refused(ImageError, "offline"):
        choose(image_of(there), ["other"], old, offline=True)


def test_a_package_that_is_not_there_is_named(there: makearchive.Archive) -> None:
    """In apt's words, with where it was looked for."""
    with pytest.raises(ImageError, match="Unable to locate package lammpsx") as caught:
        chosen(there, "lammpsx")
    assert there.uri in str(caught.value.hint)


@pytest.mark.parametrize("signed", [True, False])
def test_nobody_else_can_offer_packages(
    there: makearchive.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signed: bool
) -> None:
    """An archive without a signature, or with one by another key, is refused."""
    if signed:
        monkeypatch.setitem(archive.KEYRINGS, "debian", str(tmp_path / "none.gpg"))
    there.publish(signed=signed)
    with refused(ImageError, "archive-unreachable"):
        chosen(there, "tool")


@pytest.mark.parametrize("form", ["file", "text", "fingerprint"])
def test_a_source_with_a_key_of_its_own(
    there: makearchive.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Only the key that Signed-By names is accepted for it, in each of its forms."""
    fingerprint = there.gpg("--with-colons", "--show-keys", there.keyring).split("\nfpr:::::::::")[1][:40]
    text = keys.signed_by(str(there.keyring), "x:1")
    if form != "fingerprint":
        monkeypatch.setitem(archive.KEYRINGS, "debian", str(tmp_path / "none.gpg"))
    value = {"file": str(there.keyring), "text": text, "fingerprint": fingerprint}[form]
    source = Source(there.uri, "trixie", ("main",), keys.signed_by(value, "x:1"), (("Check-Valid-Until", "no"),))
    monkeypatch.setattr(apt, "sources", lambda *_: [source])
    locked = chosen(there, "tool")
    cache.ensure(image_of(there), locked)
    assert ((), {}) == (locked.sources, locked.keys)  # a box does not reach a file of this host
    other = makearchive.Archive(tmp_path / "other")
    other.folder.mkdir()
    other.make_key()
    wrong = "F" * 40 if form == "fingerprint" else keys.signed_by(str(other.keyring), "x:1")
    monkeypatch.setattr(apt, "sources", lambda *_: [attrs.evolve(source, signed_by=wrong)])
    with refused(ImageError, "archive-unreachable") as caught:
        chosen(there, "tool")
    assert "Signed-By" in str(caught.value.hint)


def test_sources_that_only_this_host_reaches(there: makearchive.Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are left out of the lock, with a warning that names them. Other sources stay, with their keys."""
    said: list[str] = []
    monkeypatch.setattr(log, "warn", said.append)
    chosen(there, "tool")
    assert [True] == [there.uri in text and "mirror:" in text for text in said]
    key = keys.signed_by(str(there.keyring), "x:1")
    both = [Source(there.uri, "trixie", ("main",)), Source("http://m.example.org/debian", "trixie", ("main",), key)]
    monkeypatch.setattr(apt, "sources", lambda *_: both)
    monkeypatch.setattr(Archive, "refresh", lambda *_: None)
    monkeypatch.setattr(Archive, "as_of", lambda _: makearchive.AS_OF)
    monkeypatch.setattr(Archive, "choose", lambda *_, **__: {"tool": LockedPackage("1", "all", "0" * 64)})
    locked = chosen(there, "tool")
    (name,) = locked.keys
    assert (f"deb [signed-by=/etc/apt/keyrings/{name}] http://m.example.org/debian trixie main",) == locked.sources
    assert locked == LockedPackages.from_tree(locked.as_tree())


def test_an_index_that_was_changed_is_refused(there: makearchive.Archive, tmp_path: Path) -> None:
    """The signature covers the digest of the index, which names that of every file."""
    index = tmp_path / "there/archive/dists/trixie/main/binary-amd64/Packages"
    index.write_text(index.read_text().replace("Version: 1.0", "Version: 9.9"))
    with refused(ImageError, "archive-unreachable"):
        chosen(there, "tool")


def test_the_cache_is_filled_once(there: makearchive.Archive, tmp_path: Path) -> None:
    """Every .deb by its sha256; then no archive is needed."""
    locked = chosen(there, "tool")
    cache.ensure(image_of(there), locked)
    files = {p.name for p in (tmp_path / "home/packages").rglob("*.deb")}
    assert {f"{package.sha256}.deb" for package in locked.versions.values()} == files
    shutil.rmtree(tmp_path / "there/archive")
    cache.ensure(image_of(there), locked)
    cache.ensure(image_of(there), locked, offline=True)


def test_a_damaged_file_is_fetched_again(
    there: makearchive.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by its digest, said, and replaced; offline it is an error that names it."""
    said: list[str] = []
    monkeypatch.setattr(log, "warn", said.append)
    locked = chosen(there, "tool")
    cache.ensure(image_of(there), locked)
    file = cache.deb_of(locked.versions["library"])
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"x")
    cache.ensure(image_of(there), locked)
    assert whole == file.read_bytes()
    assert "damaged" in said[0]
    file.write_bytes(b"")
    with pytest.raises(ImageError, match=r"not available: library 1:2\.0-1; looked in the cache") as caught:
        cache.ensure(image_of(there), locked, offline=True)
    assert "without --offline" in str(caught.value.hint)


def test_a_file_with_another_content_is_refused(there: makearchive.Archive, tmp_path: Path) -> None:
    """The archive serves something else under the name that its index has."""
    locked = chosen(there, "tool")
    served = next((tmp_path / "there/archive/pool").glob("library*"))
    served.write_bytes(served.read_bytes()[:-1] + b"x")
    with refused(ImageError, "package-not-found") as caught:
        cache.ensure(image_of(there), locked)
    assert "library" in caught.value.fields["packages"].split()
    assert not cache.deb_of(locked.versions["library"]).exists()


def test_the_same_version_of_another_build_is_not_taken(there: makearchive.Archive) -> None:
    """What counts is the digest."""
    locked = chosen(there, "tool")
    other = LockedPackage("1:2.0-1", "all", "0" * 64)
    wrong = attrs.evolve(locked, versions={**locked.versions, "library": other})
    with refused(ImageError, "package-not-found", packages="library"):
        cache.ensure(image_of(there), wrong)


def test_what_is_gone_comes_from_an_archive_of_the_past(
    there: makearchive.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that was replaced is named, with every place; the setting adds one, asked for the lock's own time."""
    locked = chosen(there, "tool")
    shutil.copytree(tmp_path / "there/archive", tmp_path / "past/20260101T000000Z")
    next((tmp_path / "there/archive/pool").glob("library*")).unlink()
    there.add("library", "1:3.0-1")
    there.publish()
    with refused(ImageError, "package-not-found", packages="library") as caught:
        cache.ensure(image_of(there), locked)
    assert re.search(rf"home/packages; {re.escape(there.uri)} trixie$", str(caught.value))
    assert cache.SNAPSHOT_SETTING in str(caught.value.hint)
    monkeypatch.setenv(cache.SNAPSHOT_SETTING, f"file:{tmp_path}/past/{{time}}")
    cache.ensure(image_of(there), locked)


def test_credentials_stay_out_of_the_lock_and_of_messages(
    there: makearchive.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in the URI of a source; apt gets them, in a file that nobody else reads."""
    source = Source("http://ann:secret@127.0.0.1:1/debian", "trixie", ("main",))
    monkeypatch.setattr(apt, "sources", lambda *_: [source])
    monkeypatch.setattr(archive, "access_options", lambda: ['Acquire::Retries "0";'])
    said: list[str] = []
    monkeypatch.setattr(log, "now", said.append)
    with pytest.raises(ImageError) as caught:
        choose(image_of(there), ["tool"], None)
    assert "secret" not in f"{caught.value}{caught.value.hint}{said}"
    files = [p for p in Archive("debian", (source,)).folder.rglob("*") if p.is_file() and b"secret" in p.read_bytes()]
    assert files
    assert {0o600} == {p.stat().st_mode & 0o777 for p in files}


def test_the_repository_of_a_build_has_just_these(there: makearchive.Archive, tmp_path: Path) -> None:
    """apt reads it, checks each file against its digest, and knows no other package."""
    locked = chosen(there, "tool")
    cache.ensure(image_of(there), locked)
    only = {name: locked.versions[name] for name in ("tool", "library")}
    cache.repository(only, "trixie", tmp_path / "repository")
    index = (tmp_path / "repository/Packages").read_text()
    assert ["library", "tool"] == re.findall(r"^Package: (.*)$", index, re.MULTILINE)
    assert "Filename: ./tool.deb" in index
    assert "pool/" not in index


def test_recommended_packages_on_request(there: makearchive.Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """`recommends: true` installs them, and theirs. Without it, those of the same source package are named, once."""
    notes: list[str] = []
    monkeypatch.setattr(log, "info", notes.append)
    there.add("daemon", Source="suite", Recommends="client, viewer | editor (>= 0.1), extra, tool")
    there.add("client", Source="suite (1.0)", Recommends="completion")
    there.add("viewer", Source="suite")
    there.add("editor", Source="suite")
    there.add("extra")
    there.add("completion")
    there.publish()
    image = image_of(there, "daemon", "tool", "editor")
    plain = choose(image, image.packages, None)
    assert {"daemon", "tool", "library", "editor", "base-files", "apt"} == set(plain.versions)
    said = [note for note in notes if note.startswith("note: ")]
    assert ["note: daemon recommends client,"] == [note.partition(" which")[0] for note in said]
    assert plain is choose(image, image.packages, plain)
    full = choose(attrs.evolve(image, recommends=True), image.packages, plain)
    assert {"client", "completion", "extra"} == set(full.versions) - set(plain.versions)
    assert said == [note for note in notes if note.startswith("note: ")]

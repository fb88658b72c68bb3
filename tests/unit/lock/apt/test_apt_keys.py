"""Keys of apt sources: keyrings in files, keys in the text, fingerprints; never a secret key."""

from __future__ import annotations

from pathlib import Path

import pytest
from refused import refused

from kimbox import run
from kimbox.errors import ImageError
from kimbox.lock.apt import keys

GENERATE = "%no-protection\nKey-Type: EDDSA\nKey-Curve: ed25519\nName-Real: {}\nExpire-Date: 0\n%commit\n"

pytestmark = pytest.mark.skipif(not run.which("gpg"), reason="no gpg here")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of gpg with two keys, and the keyrings one.gpg, two.asc, both.gpg and secret.gpg."""
    home = tmp_path_factory.mktemp("gnupg")
    for name in ("one", "two"):
        run.run(["gpg", "--homedir", home, "--batch", "--quiet", "--gen-key", "-"], input=GENERATE.format(name))
    for file, words in {
        "one.gpg": ["--export", "one"], "two.asc": ["--armor", "--export", "two"], "both.gpg": ["--export"],
        "secret.gpg": ["--export-secret-keys", "one"], "secret.asc": ["--armor", "--export-secret-keys", "one"],
    }.items():  # fmt: skip
        run.run(["gpg", "--homedir", home, "--batch", "--output", home / file, *words])
    run.run(["gpgconf", "--homedir", home, "--kill", "all"])
    return home


def users(text: str, folder: Path) -> set[str]:
    """The names of the keys in an armored block, as gpg reads it."""
    (folder / "x.asc").write_text(text)
    argv = ["gpg", "--homedir", folder, "--batch", "--with-colons", "--show-keys", folder / "x.asc"]
    done = run.run(argv)
    return {line.split(":")[9] for line in done.stdout.splitlines() if line.startswith("uid")}


def test_keyrings(home: Path, tmp_path: Path) -> None:
    """gpg reads the block that kimbox writes, of one keyring or of several, binary or armored."""
    tmp_path.chmod(0o700)
    one, two = home / "one.gpg", home / "two.asc"
    for value, expected in (
        (f"{one}", {"one"}), (f" {one}\n  {two}", {"one", "two"}), (f"{one},{two}", {"one", "two"}),
        (f"{home}/both.gpg", {"one", "two"}),
    ):  # fmt: skip
        text = keys.signed_by(value, "x:1")
        assert keys.is_block(text)
        assert expected == users(text, tmp_path)
    exported = run.run(["gpg", "--homedir", home, "--batch", "--armor", "--export", "two"]).stdout
    assert exported == keys.signed_by(str(two), "x:1")


def test_a_key_in_the_text(home: Path, tmp_path: Path) -> None:
    """With ` .` in place of empty lines, as in a file `.sources`; another armor around the same key is the same key."""
    tmp_path.chmod(0o700)
    text = (home / "two.asc").read_text()
    value = "\n".join(f" {line or '.'}" for line in text.splitlines())
    assert {"two"} == users(keys.signed_by(value, "x:1"), tmp_path)
    header = text.replace("BLOCK-----\n", "BLOCK-----\nComment: x\n", 1)
    assert keys.signed_by(value, "x:1") == keys.signed_by(header, "x:1")


def test_values_without_a_key() -> None:
    """The distribution's keyrings are accepted anyway; fingerprints are passed on to apt."""
    assert "" == keys.signed_by("", "x:1")
    assert "" == keys.signed_by("/usr/share/keyrings/debian-archive-keyring.gpg", "x:1")
    assert "" == keys.signed_by("nonsense", "x:1")
    fingerprints = "A" * 40 + ", " + "b" * 40 + "!"
    assert "A" * 40 + " " + "b" * 40 + "!" == keys.signed_by(fingerprints, "x:1")


def test_keys_of_the_distribution_are_added(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a suite that the entry of the source does not have."""
    tmp_path.chmod(0o700)
    monkeypatch.setitem(keys.KEYRINGS, "debian", str(home / "one.gpg"))
    text = keys.signed_by(str(home / "two.asc"), "x:1")
    assert {"one", "two"} == users(keys.with_distribution(text, "debian"), tmp_path)
    assert "A" * 40 == keys.with_distribution("A" * 40, "debian")
    with refused(ImageError, "file-too-large", limit="keys"):
        keys.armor(b"\x99\0\1a" * 40_000)
    monkeypatch.setitem(keys.KEYRINGS, "debian", str(home / "missing"))
    assert text == keys.with_distribution(text, "debian")


@pytest.mark.parametrize("name", ["secret.gpg", "secret.asc"])
def test_secret_keys(home: Path, name: str) -> None:
    """They are refused, because the keys become part of the lock."""
    with refused(ImageError, "bad-public-key"):
        keys.signed_by(str(home / name), "x:1")
    joined = (home / "one.gpg").read_bytes() + (home / "secret.gpg").read_bytes()
    assert not keys.is_public_keyring(joined)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"hello", b"\x99", b"\x99\xff\xff", b"\x99\0\1", b"\x9a\0", b"\xc6\xe0", b"\x9b\0", b"\xb4\0",
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQ", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n*\n" + keys._END,
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n" + keys._END, b"\x99\0\1a" * 100_000,
    ],
)  # fmt: skip
def test_a_file_that_is_not_a_keyring(tmp_path: Path, data: bytes) -> None:
    """It is refused, and named."""
    (tmp_path / "x.gpg").write_bytes(data)
    with pytest.raises(ImageError) as caught:
        keys.signed_by(str(tmp_path / "x.gpg"), "y.sources:7")
    assert caught.value.code in ("bad-public-key", "file-too-large")
    assert str(tmp_path / "x.gpg") in caught.value.message
    assert "y.sources:7" in caught.value.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and a folder are errors that name them."""
    with refused(ImageError, "file-not-found", path=f"{tmp_path}/x.gpg"):
        keys.signed_by(f"{tmp_path}/x.gpg", "x:1")
    with refused(ImageError, "not-a-regular-file", path=str(tmp_path)):
        keys.signed_by(str(tmp_path), "x:1")

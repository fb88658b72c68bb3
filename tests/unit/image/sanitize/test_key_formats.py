"""Every known form of a private key is detected, as real programs write it; other files are not taken for a key."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from kimbox import run
from kimbox.image.sanitize import key_formats, pkcs12
from kimbox.image.sanitize.key_formats import Kind, Search

MIB = 1 << 20


def kind_of(data: bytes, piece_bytes: int = MIB) -> Kind | None:
    """The kind of a file with this content, read in pieces of this size."""
    pieces = (data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes))
    return key_formats.kind_of_content(len(data), pieces)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(run.which(program) is None, reason=f"this machine has no {program}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key and a certificate of openssl."""
    folder = tmp_path_factory.mktemp("keys")
    subject = ["-subj", "/CN=x", "-days", "2", "-out", folder / "cert.pem"]
    run.run(["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-keyout", folder / "key.pem", *subject])
    return folder


# --- PEM


@needs("openssl")
@pytest.mark.parametrize(
    "command",
    [
        "genpkey -algorithm ed25519",
        "genpkey -algorithm rsa -pkeyopt rsa_keygen_bits:1024",
        "genpkey -algorithm ed25519 -aes-128-cbc -pass pass:x",
        "genrsa -traditional -aes128 -passout pass:x 1024",
        "ecparam -name prime256v1 -genkey",
        "dsaparam -genkey 1024",
    ],
)
def test_pem_of_openssl(command: str) -> None:
    """PKCS#8 and the older formats, with a password and without."""
    assert Kind.PEM == kind_of(run.run(["openssl", *command.split()]).stdout.encode())


@needs("openssl")
def test_pem_inside_other_text(made: Path) -> None:
    """In the middle of a file, with any line end, in JSON, indented in YAML, in a comment, in a C source."""
    pem = (made / "key.pem").read_text()
    lines = pem.splitlines()
    for text in (
        "x" * 100_000 + pem,
        pem.replace("\n", "\r\n"),
        pem.replace("\n", "\r"),
        json.dumps({"private_key": pem}),
        "".join(f"    {line}\n" for line in lines),
        "".join(f"# {line}\n" for line in lines),
        "".join(f'  "{line}\\n"\n' for line in lines),
        pem.replace("KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n", 1),
        "\n".join([lines[0], *(lines[1][at : at + 10] for at in range(0, 60, 10)), lines[2]]),
    ):
        assert Kind.PEM == kind_of(text.encode()), text[-400:]


@needs("openssl")
def test_pem_across_pieces(made: Path) -> None:
    """A key is detected at every boundary of pieces, and with pieces of every size."""
    pem = (made / "key.pem").read_bytes()
    data = b"y" * 5000 + pem + b"z" * 5000
    for cut in range(4990, 5000 + len(pem) + 10):
        search = Search()
        assert Kind.PEM in (search.feed(data[:cut]), search.feed(data[cut:]), search.end()), cut
    for size in (1, 7, 64, 4096, 4097):
        assert Kind.PEM == kind_of(data, size)


@needs("openssl")
def test_pem_without_a_private_key(made: Path) -> None:
    """Certificates, public keys, the label alone, an example in a document, a label without base64."""
    public = run.run(["openssl", "pkey", "-in", made / "key.pem", "-pubout"]).stdout.encode()
    for data in (
        (made / "cert.pem").read_bytes(),
        public,
        b"-----BEGIN PRIVATE KEY-----",
        b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN RSA PRIVATE KEY-----\nMIIE...\n-----END RSA PRIVATE KEY-----\n",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\0" + b"A" * 100,
        b"PRIVATE KEY\n" + b"A" * 100,
        b"-----BEGIN PUBLIC KEY-----\n" + b"A" * 100,
        b"-----BEGIN PRIVATE KEY-----\n" + b"A: b\n" * 40 + b"A" * 100,
        b"",
    ):
        assert kind_of(data) is None, data


@pytest.mark.parametrize("name", ["ssh", "ssh-keygen", "openssl", "gpg", "dpkg", "python3", "git"])
def test_programs_with_labels_hold_no_key(name: str) -> None:
    """Programs contain the labels that they print or parse."""
    path = run.which(name)
    if path is None:
        pytest.skip(f"this machine has no {name}")
    assert kind_of(Path(path).resolve().read_bytes()) is None


def test_libcrypto_with_labels_holds_no_key() -> None:
    """OpenSSL's library contains the labels, too."""
    libraries = [path for path in Path("/usr/lib").glob("*/libcrypto.so*") if path.is_file()]
    if not libraries:
        pytest.skip("this machine has no libcrypto")
    data = libraries[0].read_bytes()
    assert b"PRIVATE KEY" in data
    assert kind_of(data) is None


# --- other forms of a key


@needs("ssh-keygen")
@pytest.mark.parametrize("words", ["-t ed25519", "-t rsa -b 2048", "-t ecdsa", "-t ed25519 -N secret"])
def test_keys_of_openssh(tmp_path: Path, words: str) -> None:
    """Every type, with a password and without. The public key is not a finding."""
    empty = [] if "-N" in words else ["-N", ""]
    run.run(["ssh-keygen", "-q", *words.split(), *empty, "-f", tmp_path / "key"])
    assert Kind.OPENSSH == kind_of((tmp_path / "key").read_bytes())
    assert kind_of((tmp_path / "key.pub").read_bytes()) is None


@needs("ssh-keygen")
def test_pem_of_openssh(tmp_path: Path) -> None:
    """The format of older versions of ssh-keygen."""
    run.run(["ssh-keygen", "-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f", tmp_path / "key"])
    assert Kind.PEM == kind_of((tmp_path / "key").read_bytes())


@needs("gpg")
def test_keys_of_gnupg(tmp_path: Path) -> None:
    """The files of its agent, and exported keys, in ASCII armour and binary. Public keys are not a finding."""
    home = tmp_path / "g"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback"]
    run.run([*gpg, "--quick-gen-key", "somebody@example.org", "ed25519", "cert,sign", "never"])
    (key,) = (home / "private-keys-v1.d").iterdir()
    assert Kind.GNUPG == kind_of(key.read_bytes())
    run.run([*gpg, "--output", tmp_path / "secret", "--export-secret-keys"])
    run.run([*gpg, "--output", tmp_path / "secret.asc", "--armor", "--export-secret-keys"])
    run.run([*gpg, "--output", tmp_path / "public", "--export"])
    run.run(["gpgconf", "--homedir", home, "--kill", "all"])
    assert Kind.OPENPGP == kind_of((tmp_path / "secret").read_bytes())
    assert Kind.OPENPGP == kind_of((tmp_path / "secret.asc").read_bytes())
    assert kind_of((tmp_path / "public").read_bytes()) is None
    assert kind_of((home / "pubring.kbx").read_bytes()) is None


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n", Kind.PUTTY),
        (b"== ed25519v1-secret: type0 ==\0\0\0" + bytes(64), Kind.TOR),
        (b"\0\0\0\x0bssh-ed25519\0\0\0\x40" + bytes(64), Kind.DROPBEAR),
        (b"\0\0\0\x07ssh-rsa\0\0\0\x03" + bytes(64), Kind.DROPBEAR),
        (b"\0\0\0\x13ecdsa-sha2-nistp256\0\0", Kind.DROPBEAR),
        (b"(21:protected-private-key(3:rsa", Kind.GNUPG),
        (b"(10:public-key(3:rsa", None),
    ],
)
def test_formats_with_a_magic_number(data: bytes, kind: Kind | None) -> None:
    """A file with the first bytes of a format is detected."""
    assert kind == kind_of(data)


# --- stores


@needs("openssl")
@pytest.mark.parametrize("options", ["", "-keypbe NONE -certpbe NONE", "-nomac", "-keypbe NONE -certpbe NONE -nomac"])
def test_pkcs12_with_a_key(made: Path, options: str) -> None:
    """A store with a key is detected, encrypted or not, complete or cut off."""
    command = ["openssl", "pkcs12", "-export", "-inkey", made / "key.pem", "-in", made / "cert.pem"]
    run.run([*command, *options.split(), "-passout", "pass:x", "-out", made / "both.p12"])
    data = (made / "both.p12").read_bytes()
    assert Kind.PKCS12 == kind_of(data)
    assert [Kind.PKCS12] * 3 == [kind_of(data[:-1]), kind_of(data + b"x"), kind_of(data[:-1], 100)]


@needs("openssl")
def test_pkcs12_of_certificates_alone(made: Path) -> None:
    """A store of unencrypted certificates holds no key. Encrypted ones may be a key."""
    command = ["openssl", "pkcs12", "-export", "-nokeys", "-in", made / "cert.pem", "-passout", "pass:x"]
    run.run([*command, "-certpbe", "NONE", "-out", made / "plain.p12"])
    run.run([*command, "-out", made / "closed.p12"])
    assert Kind.CERTIFICATES == kind_of((made / "plain.p12").read_bytes())
    assert Kind.CERTIFICATES == kind_of((made / "plain.p12").read_bytes(), 100)
    assert Kind.PKCS12 == kind_of((made / "closed.p12").read_bytes())


def text(value: str) -> bytes:
    """A string in Java's encoding."""
    return struct.pack(">H", len(value)) + value.encode()


def java(*kinds: int, magic: int = 0xFEEDFEED, version: int = 2) -> bytes:
    """A Java store with entries of these kinds: 1 a private key, 2 a certificate, 3 a secret key (JCEKS)."""
    body = struct.pack(">III", magic, version, len(kinds))
    for number, kind in enumerate(kinds):
        body += struct.pack(">I", kind) + text(f"alias{number}") + bytes(8)
        body += (text("X.509") if version == 2 else b"") + struct.pack(">I", 300) + bytes(300)
    return body + hashlib.sha1(body, usedforsecurity=False).digest()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("magic", [0xFEEDFEED, 0xCECECECE])
def test_java_stores(magic: int, version: int) -> None:
    """Certificates are harmless. A key among them, or a store that is cut off, counts as a key."""
    trusted = java(2, 2, 2, magic=magic, version=version)
    assert Kind.CERTIFICATES == kind_of(trusted)
    assert Kind.CERTIFICATES == kind_of(trusted, 100)
    assert Kind.JAVA == kind_of(java(2, 1, magic=magic, version=version))
    assert Kind.JAVA == kind_of(java(2, 3, magic=magic, version=version))
    assert Kind.JAVA == kind_of(trusted[:-100])
    assert kind_of(java(2, magic=magic, version=9)) is None


def test_a_store_that_is_too_large_counts_as_a_key() -> None:
    """kimbox does not read it to its end."""

    def pieces() -> Iterator[bytes]:
        yield java(2)
        raise AssertionError("more than the first piece was read")

    assert Kind.JAVA == key_formats.kind_of_content(key_formats.MAX_STORE_BYTES + 1, pieces())


# --- bounds


def test_memory_does_not_grow_with_the_number_of_labels() -> None:
    """A file of labels without keys: the search holds no more than its window."""
    search = Search()
    for _ in range(64):
        assert search.feed(b"-----BEGIN PRIVATE KEY-----\nA:\n" * 512) is None
        assert len(search._held) <= key_formats.WINDOW_BYTES + key_formats._LABEL_BYTES


def test_damaged_stores_raise_no_error() -> None:
    """With wrong lengths anywhere, the result is a kind or None."""
    numbers = random.Random(7)  # noqa: S311 - repeatable, and no secret
    pfx = bytes.fromhex("3081f00201033081ea06092a864886f70d010701a081dc0481d93081d6") + bytes(214)
    for data in (java(2, 1, 2), pfx, b"\x95\x03\x98\x03" + bytes(6) + b"\x01" + bytes(1000)):
        for length in range(200):
            kind_of(data[:length])
            pkcs12.is_pkcs12(data[:length])
        for _ in range(2000):
            changed = bytearray(data)
            for _ in range(numbers.randrange(1, 4)):
                changed[numbers.randrange(len(changed))] = numbers.randrange(256)
            kind_of(bytes(changed))
            pkcs12.holds_key(bytes(changed))
            key_formats.kind_of_head(bytes(changed))

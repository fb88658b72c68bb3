"""Makes signed archives of tiny packages, for a real apt."""

from __future__ import annotations

import hashlib
import os
from email.utils import formatdate
from pathlib import Path

import attrs

from kimbox import run
from kimbox.lock.apt.packages import LockedPackage

#: Date of the archives, in Unix seconds, as Release files and locks write it.
MADE_S = 1767225600
AS_OF = "2026-01-01T00:00:00Z"

_KEY = "%no-protection\nKey-Type: EDDSA\nKey-Curve: ed25519\nName-Real: Archive\nExpire-Date: 0\n%commit\n"


def usable() -> bool:
    """Whether this host has the required programs."""
    return all(run.which(program) for program in ("apt-get", "apt-cache", "dpkg-deb", "gpg"))


@attrs.frozen
class Archive:
    """A package archive in a folder, with the component `main` of one suite for amd64."""

    folder: Path
    suite: str = "trixie"
    label: str = "Debian"

    @property
    def uri(self) -> str:
        return f"file:{self.folder}/archive"

    @property
    def keyring(self) -> Path:
        return self.folder / "archive.gpg"

    def gpg(self, *args: str | Path, input: str | None = None) -> str:
        home = self.folder / "gnupg"
        home.mkdir(mode=0o700, exist_ok=True)
        return run.run(["gpg", "--homedir", home, "--batch", "--yes", "--quiet", *args], input=input).stdout

    def make_key(self) -> None:
        """Makes the key that signs the archive, and its keyring."""
        self.gpg("--generate-key", "-", input=_KEY)
        self.gpg("--output", self.keyring, "--export")

    def add(self, name: str, version: str = "1.0", **fields: str) -> LockedPackage:
        """Adds a package without a program. `fields` are those of deb-control(5), with underscores."""
        tree = self.folder / "tree" / f"{name}-{version.replace(':', '_')}"
        (tree / "DEBIAN").mkdir(parents=True)
        pairs = {"Package": name, "Version": version, "Architecture": "all", "Maintainer": "A <a@example.org>"}
        pairs |= {key.replace("_", "-"): value for key, value in fields.items()} | {"Description": name}
        (tree / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in pairs.items()))
        (tree / f"usr/share/{name}").mkdir(parents=True)
        (tree / f"usr/share/{name}/version").write_text(version)
        pool = self.folder / "archive/pool"
        pool.mkdir(parents=True, exist_ok=True)
        file = pool / f"{name}_{version.split(':')[-1]}_all.deb"
        run.run(["dpkg-deb", "--root-owner-group", "--build", tree, file])
        return LockedPackage(version, "all", hashlib.sha256(file.read_bytes()).hexdigest())

    def publish(self, *, signed: bool = True) -> None:
        """Writes the index of all packages in the pool."""
        index = self.folder / f"archive/dists/{self.suite}/main/binary-amd64/Packages"
        index.parent.mkdir(parents=True, exist_ok=True)
        stanzas = []
        for file in sorted((self.folder / "archive/pool").glob("*.deb")):
            data = file.read_bytes()
            control = run.run(["dpkg-deb", "--field", file]).stdout
            location = f"Filename: pool/{file.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
            stanzas.append(control + location)
        text = "\n".join(stanzas)
        index.write_text(text)
        entry = f"{hashlib.sha256(text.encode()).hexdigest()} {len(text.encode())} main/binary-amd64/Packages"
        release = index.parents[2] / "InRelease"
        plain = self.folder / "Release"
        plain.write_text(
            f"Origin: Debian\nLabel: {self.label}\nSuite: {self.suite}\nCodename: {self.suite}\n"
            f"Date: {formatdate(MADE_S, usegmt=True)}\nArchitectures: amd64 all\nComponents: main\nSHA256:\n {entry}\n"
        )
        if not signed:
            release.unlink(missing_ok=True)
            release.with_name("Release").write_bytes(plain.read_bytes())
            return
        if not self.keyring.exists():
            self.make_key()
        self.gpg("--output", release, "--clearsign", plain)


def base(folder: Path) -> Archive:
    """Returns an archive with the packages of every system, and with `tool`, which depends on `library`."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = Archive(Path(os.path.realpath(folder)))
    archive.add("base-files", Essential="yes", Priority="required")
    archive.add("apt", Priority="important")
    archive.add("library", "1:2.0-1")
    archive.add("tool", "1.0~rc1+b2", Depends="library (>= 1)")
    archive.publish()
    return archive

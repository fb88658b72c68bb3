"""Asks the archives of a distribution, through an apt with folders of its own: what is there, and its .deb files.

apt checks signatures, chooses versions and fetches, with the machine's own keys, proxies and credentials; nothing of
what is installed on this machine takes part. One folder for each set of sources keeps the lists between runs.
"""

from __future__ import annotations

import calendar
import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from email.utils import parsedate
from pathlib import Path

import attrs

from kimbox import paths, run
from kimbox.errors import ImageError
from kimbox.files import locked, write_atomic
from kimbox.lock.apt.packages import LockedPackage
from kimbox.lock.apt.sources import Source, access_options
from kimbox.log import log

#: Debian's name for what boxes run on.
ARCHITECTURE = "amd64"

#: Lists that were fetched within this many seconds are new enough to choose from.
FRESH_S = 3600.0

#: What every system holds: mmdebstrap(1) calls this variant `minbase`.
BASE_PATTERNS = ("?essential", "?priority(required)", "apt")

#: How long to wait for another kimbox that asks the same archives.
BUSY_WAIT_S = 600.0

#: Keys of the distributions, where their packages put them; those of /etc/apt/trusted.gpg.d count as well.
KEYRINGS = {
    "debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}

_SKELETON = (
    "etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d", "etc/keys",
    "state/lists/partial", "cache/archives/partial", "incoming",
)  # fmt: skip

#: A line of `apt-get --print-uris`: the URI, the name of the file (escaped), its size, its digest.
_URI_LINE = re.compile(
    r"'[^']*' (?P<name>[^_ ]+)_(?P<version>[^_ ]+)_(?P<arch>[^_ ]+)\.deb \d+ SHA256:(?P<sha>[0-9a-f]{64})"
)

_FIELD = re.compile(r"[A-Za-z0-9-]+: ")
_DATE = re.compile(r"^Date: (.*)$", re.MULTILINE)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")


@attrs.frozen
class Found:
    """A .deb that the archives have: its control fields, as they stand in their index."""

    package: LockedPackage
    stanza: str


@attrs.frozen
class Archive:
    """The archives behind some sources. `is_snapshot`: of the past, so that they may be past their Valid-Until."""

    distribution: str
    sources: tuple[Source, ...]
    is_snapshot: bool = False

    @property
    def where(self) -> str:
        """How messages name it."""
        return ", ".join(sorted({f"{bare(source.uri)} {source.suite}" for source in self.sources}))

    @property
    def folder(self) -> Path:
        """Its lists, and what is on its way."""
        parts = json.dumps([self.distribution, [source.line() for source in self.sources], self.is_snapshot])
        return paths.archives_dir() / hashlib.sha256(parts.encode()).hexdigest()[:16]

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Holds its lock, with the folders and the configuration in place."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        busy = f"another kimbox has been asking {self.where} for too long"
        with locked(self.folder / "lock", wait_s=BUSY_WAIT_S, busy=busy):
            for name in _SKELETON:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            (self.folder / "state/status").touch()
            self._trust()
            write_atomic(self.folder / "etc/sources.list", "".join(f"{s.line()}\n" for s in self.sources), mode=0o600)
            write_atomic(self.folder / "etc/apt.conf", "\n".join(self._options()) + "\n", mode=0o600)
            yield

    def refresh(self, max_age_s: float = FRESH_S) -> None:
        """Fetches the lists unless they are younger. Raises ImageError if an archive cannot be reached or trusted."""
        stamp = self.folder / "state/fetched"
        if stamp.exists() and 0 <= time.time() - stamp.stat().st_mtime < max_age_s:
            return
        with log.step(f"asking what packages there are ({len(self.sources)} archives)"):
            try:
                self._stream(["apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any"])
            except run.CommandError as error:
                if self.is_snapshot and any((self.folder / "state/lists").glob("*Release")):
                    return  # not every suite has updates, or had any then
                raise ImageError(
                    f"the package lists of {self.where} cannot be fetched:\n{bare(error.tail)}",
                    hint="the network, a proxy or the archive is at fault; what is locked and cached needs none",
                ) from None
        stamp.touch()

    def choose(self, names: Iterable[str], keep: Mapping[str, LockedPackage]) -> dict[str, LockedPackage]:
        """What `names`, and the base of every system, come to: by apt, from the lists that are there.

        Versions in `keep` are preferred to newer ones where the archives still have them. Raises ImageError in apt's
        words if there is no such package, or no choice that fits.
        """
        wishes = [f"Package: {name}\nPin: version {old.version}\nPin-Priority: 1001\n" for name, old in keep.items()]
        write_atomic(self.folder / "etc/preferences", "\n".join(wishes))
        argv = ["apt-get", "install", "--print-uris", "-qq", "-y", "--", *BASE_PATTERNS, *sorted(set(names))]
        done = run.run(argv, check=False, env=self._env())
        if not done.ok:
            said = "\n".join(line.removeprefix("E: ") for line in done.stderr.splitlines() if line.startswith("E: "))
            raise ImageError(
                f"the packages of the image cannot be chosen:\n{said or run.tail(done.stderr)}",
                hint=f"image: packages: in the spec names them; looked in {self.where}",
            )
        found = {}
        for line in done.stdout.split("\n"):
            if match := _URI_LINE.fullmatch(line):
                version = match["version"].replace("%3a", ":").replace("%7e", "~").replace("%2b", "+")
                found[match["name"]] = LockedPackage(version, match["arch"], match["sha"])
            elif line.startswith("'"):
                raise ImageError(f"apt answered with a line that kimbox does not know: {bare(line)[:200]}")
        if not found:
            raise ImageError(f"{self.where} has no package at all", hint="is the suite right?")
        return found

    def find(self, wanted: Mapping[str, LockedPackage]) -> dict[str, Found]:
        """Which of these the archives have just so, by name: the same version and digest."""
        if not wanted:
            return {}
        asked = [f"{name}={package.version}" for name, package in wanted.items()]
        done = run.run(["apt-cache", "show", "--no-all-versions", "--", *asked], check=False, env=self._env())
        found = {}
        for stanza in done.stdout.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in stanza.split("\n") if _FIELD.match(line))
            name = fields.get("Package", "")
            if name in wanted and fields.get("SHA256") == wanted[name].sha256:
                found[name] = Found(wanted[name], stanza.strip("\n"))
        return found

    def fetch(self, found: Mapping[str, Found]) -> Iterator[tuple[str, Path]]:
        """Fetches these .deb files; gives each with its name. They lie in a folder that is emptied by the next call.

        Raises ImageError if one cannot be had. What was fetched before an interruption is not fetched again.
        """
        incoming = self.folder / "incoming"
        argv = ["apt-get", "download", "-q", "--", *(f"{n}={f.package.version}" for n, f in sorted(found.items()))]
        try:
            self._stream(argv, cwd=incoming)
        except run.CommandError as error:
            raise ImageError(
                f"packages cannot be fetched from {self.where}:\n{bare(error.tail)}",
                hint="what has been fetched so far is kept: run the same command again",
            ) from None
        names = {(n, f.package.version.replace(":", "%3a"), f.package.architecture): n for n, f in found.items()}
        for file in sorted(incoming.iterdir()):
            name, version, architecture = (*file.name.removesuffix(".deb").split("_"), "", "")[:3]
            if (known := names.get((name, version, architecture))) is not None:
                yield known, file
            else:
                file.unlink()

    def as_of(self) -> str:
        """When the newest of the Release files was made: ISO 8601, UTC."""
        dates = [0]
        for file in (self.folder / "state/lists").glob("*Release"):
            head = file.open(encoding="utf-8", errors="replace").read(1 << 16)
            if (match := _DATE.search(head)) and (parsed := parsedate(match[1])):
                dates.append(calendar.timegm(parsed))
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(dates)))

    def _trust(self) -> None:
        """Which keys count: the machine's own, and those of the distribution."""
        keys = self.folder / "etc/keys"
        files = [*Path("/etc/apt/trusted.gpg.d").glob("*"), Path(KEYRINGS[self.distribution])]
        wanted = {file.name: file for file in files if file.suffix in (".gpg", ".asc") and file.is_file()}
        for link in keys.iterdir():
            if link.name not in wanted:
                link.unlink()
        for name, file in wanted.items():
            if not (keys / name).is_symlink():
                (keys / name).symlink_to(file)

    def _options(self) -> list[str]:
        """apt.conf(5): own folders for everything but keys and credentials."""
        folder = json.dumps(os.fspath(self.folder))[1:-1]
        return [
            f'Dir::Etc "{folder}/etc"; Dir::Etc::sourcelist "{folder}/etc/sources.list"; Dir::Etc::main "/dev/null";',
            f'Dir::Etc::parts "{folder}/etc/apt.conf.d"; Dir::Etc::preferences "{folder}/etc/preferences";',
            f'Dir::Etc::preferencesparts "{folder}/etc/preferences.d";',
            f'Dir::Etc::sourceparts "{folder}/etc/sources.list.d"; Dir::Etc::trusted "/dev/null";',
            f'Dir::Etc::trustedparts "{folder}/etc/keys";',
            'Dir::Etc::netrc "/etc/apt/auth.conf"; Dir::Etc::netrcparts "/etc/apt/auth.conf.d";',
            f'Dir::State "{folder}/state"; Dir::State::status "{folder}/state/status"; Dir::Cache "{folder}/cache";',
            f'APT::Architecture "{ARCHITECTURE}"; APT::Architectures "{ARCHITECTURE}";',
            'APT::Install-Recommends "false"; APT::Get::AllowUnauthenticated "false"; APT::Sandbox::User "root";',
            'Acquire::Languages "none"; Acquire::ForceHash "SHA256";',
            *(['Acquire::Check-Valid-Until "false";'] if self.is_snapshot else []),
            *access_options(),
        ]

    def _env(self) -> dict[str, str]:
        return {"APT_CONFIG": os.fspath(self.folder / "etc/apt.conf")}

    def _stream(self, argv: list[str], cwd: Path | None = None) -> None:
        run.stream(argv, on_line=lambda line: log.now(bare(line)), env=self._env(), cwd=cwd)


def bare(text: str) -> str:
    """A text without the user names and passwords of its URIs."""
    return _CREDENTIALS.sub("", text)

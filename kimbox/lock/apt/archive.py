"""Uses apt to read a distribution's archives: package lists, versions, .deb files.

apt checks signatures, chooses versions and downloads, with this machine's keys, proxies and credentials. It has its own
folders, so the packages installed on this machine have no influence. There is a folder for each set of sources, which
keeps the package lists between runs.
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

from kimbox import paths, run, utctime
from kimbox.errors import ImageError
from kimbox.files import locked, write_atomic
from kimbox.lock.apt import explain
from kimbox.lock.apt.keys import KEYRINGS
from kimbox.lock.apt.packages import LockedPackage
from kimbox.lock.apt.sources import Source, access_options, bare
from kimbox.log import log

#: Debian architecture of all boxes.
ARCHITECTURE = "amd64"

#: Package lists younger than this, in seconds, are used without fetching them again.
FRESH_S = 3600.0

#: apt patterns of the packages that every system has: the variant `minbase` of mmdebstrap(1).
BASE_PATTERNS = ("?essential", "?priority(required)", "apt")

#: How long to wait for another kimbox that uses the same archives, in seconds.
BUSY_WAIT_S = 600.0

_SKELETON = (
    "etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d", "etc/keys",
    "state/lists/partial", "cache/archives/partial", "incoming",
)  # fmt: skip

#: A line of `apt-get --print-uris`: URI, file name (escaped), size, digest.
_URI_LINE = re.compile(
    r"'[^']*' (?P<name>[^_ ]+)_(?P<version>[^_ ]+)_(?P<arch>[^_ ]+)\.deb \d+ SHA256:(?P<sha>[0-9a-f]{64})"
)

#: The keyring of apt-key(8), which apt still reads.
_OLD_KEYRING = Path("/etc/apt/trusted.gpg")

_FIELD = re.compile(r"[A-Za-z0-9-]+: ")
#: The name of each alternative in a relationship between packages (deb-control(5)), without version and architecture.
_NAME = re.compile(r"(?:^|\|)\s*([a-z0-9][a-z0-9+.-]*)")
_DATE = re.compile(r"^Date: (.*)$", re.MULTILINE)
#: Unix time of the year 10000, from which on a date has no form in ISO 8601.
_YEAR_10000_S = 253_402_300_800

#: apt's messages about a signature, and hints for these and all other failures.
_UNSIGNED = re.compile(
    r"NO_PUBKEY|public key is not available|is not signed|signatures? (?:was|were|couldn't)|GPG error"
)
_KEY_HINT = (
    "kimbox accepts the keys of the distribution, of /etc/apt/trusted.gpg.d, and of Signed-By in the entry of this "
    "archive in /etc/apt; if `apt-get update` fails too, add the key there"
)
_NETWORK_HINT = "check the network, the proxy and the archive; packages that are locked and cached need none"


@attrs.frozen
class IndexEntry:
    """A package in an archive's index. `stanza` is its control fields, without the empty line after them."""

    package: LockedPackage
    stanza: str


@attrs.frozen
class Archive:
    """The archives of some sources. `is_snapshot`: they are of the past, so an expired Valid-Until is accepted."""

    distribution: str
    sources: tuple[Source, ...]
    is_snapshot: bool = False

    @property
    def where(self) -> str:
        """URIs and suites, for messages."""
        return ", ".join(sorted({f"{bare(source.uri)} {source.suite}" for source in self.sources}))

    @property
    def folder(self) -> Path:
        """The folder with its package lists and incomplete downloads."""
        lines = [s.stanza(self.distribution) if s.signed_by or s.options else s.line() for s in self.sources]
        parts = json.dumps([self.distribution, lines, self.is_snapshot])
        return paths.archives_dir() / hashlib.sha256(parts.encode()).hexdigest()[:16]

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Holds the lock of `folder`, and writes apt's configuration. All other methods need it.

        Raises StateError (`busy`) if another kimbox holds the lock for longer than BUSY_WAIT_S.
        """
        if '"' in str(self.folder):
            raise ImageError(
                f"apt cannot use folders below {paths.home()}, because the path contains a double quote",
                code="bad-path",
                hint="set KIMBOX_HOME to another folder",
                fields={"path": str(paths.home())},
            )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        busy = f"another kimbox has used {self.where} for more than {BUSY_WAIT_S:.0f} s"
        with locked(self.folder / "lock", wait_s=BUSY_WAIT_S, busy=busy):
            for name in _SKELETON:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            (self.folder / "state/status").touch()
            self._trust()
            stanzas = "\n".join(source.stanza(self.distribution) for source in self.sources)
            write_atomic(self.folder / "etc/sources.list.d/kimbox.sources", stanzas, mode=0o600)
            (self.folder / "etc/sources.list").unlink(missing_ok=True)  # of an older kimbox
            write_atomic(self.folder / "etc/apt.conf", "\n".join(self._options()) + "\n", mode=0o600)
            yield

    def refresh(self, max_age_s: float = FRESH_S) -> None:
        """Fetches the package lists if they are older than `max_age_s`, in seconds.

        Raises ImageError (`archive-unreachable`) if an archive cannot be reached, or its signature is not valid.
        """
        stamp = self.folder / "state/fetched"
        if stamp.exists() and 0 <= time.time() - stamp.stat().st_mtime < max_age_s:
            return
        with log.step(f"fetching package lists ({len(self.sources)} archives)"):
            try:
                self._stream(["apt-get", *self._folders(), "update", "-q", "-o", "APT::Update::Error-Mode=any"])
            except run.CommandError as error:
                if self.is_snapshot and any((self.folder / "state/lists").glob("*Release")):
                    return  # at that time, not every suite had an updates or security suite
                raise ImageError(
                    f"the package lists of {self.where} cannot be fetched:\n{bare(error.tail)}",
                    code="archive-unreachable",
                    hint=_KEY_HINT if _UNSIGNED.search(error.tail) else _NETWORK_HINT,
                    fields={"archive": self.where},
                ) from None
        stamp.touch()

    def choose(
        self, names: Iterable[str], keep: Mapping[str, LockedPackage], *, recommends: bool = False
    ) -> dict[str, LockedPackage]:
        """The packages `names`, those of BASE_PATTERNS, and all dependencies. apt chooses them from the package lists.

        A version in `keep` is preferred to a newer one if the archives still have it. `recommends`: recommended
        packages are dependencies too. Raises ImageError (`package-not-found`), with apt's messages, if there is no such
        package or no choice without conflicts.
        """
        pins = [f"Package: {name}\nPin: version {old.version}\nPin-Priority: 1001\n" for name, old in keep.items()]
        write_atomic(self.folder / "etc/preferences", "\n".join(pins))
        options = ["-o", f"APT::Install-Recommends={'true' if recommends else 'false'}"]
        argv = ["apt-get", *self._folders(), "install", "--print-uris", "-qq", "-y", *options]
        argv += ["--", *BASE_PATTERNS, *sorted(set(names))]
        done = run.run(argv, check=False, env=self._env())
        if not done.ok:
            raise self._no_choice(argv, done.stderr)
        chosen = {}
        for line in done.stdout.split("\n"):
            if match := _URI_LINE.fullmatch(line):
                version = match["version"].replace("%3a", ":").replace("%7e", "~").replace("%2b", "+")
                chosen[match["name"]] = LockedPackage(version, match["arch"], match["sha"])
            elif line.startswith("'"):
                raise ImageError(
                    f"unexpected output of apt-get: {bare(line)[:200]}",
                    code="unexpected-output",
                    hint="report it with the version of apt; kimbox needs the sha256 of every package",
                )
        if not chosen:
            raise ImageError(
                f"{self.where} has no package at all",
                code="package-not-found",
                hint="check image: suite: in the spec",
                fields={"archive": self.where},
            )
        return chosen

    def _no_choice(self, argv: list[str], stderr: str) -> ImageError:
        """The error for packages that apt cannot choose. Its field `packages` has the names that do not exist."""
        errors = [line.removeprefix("E: ") for line in stderr.splitlines() if line.startswith("E: ")]
        hint = f"check image: packages: in the spec; looked in {self.where}"
        similar: dict[str, str] = {}
        if missing := explain.missing_packages(stderr):
            known = run.run(["apt-cache", *self._folders(), "pkgnames"], check=False, env=self._env()).stdout.split()
            similar = {f"similar.{name}": right for name in missing if (right := explain.similar_package(name, known))}
        else:
            simulated = [word for word in argv if word not in ("--print-uris", "-qq")]
            simulated.insert(2, "--simulate")
            errors += explain.conflicts(run.run(simulated, check=False, env=self._env()).stdout)
        return ImageError(
            "the packages of the image cannot be chosen:\n" + ("\n".join(errors) or run.tail(stderr)),
            code="package-not-found",
            hint=hint,
            fields={"archive": self.where, "packages": " ".join(missing), **similar},
        )

    def find(self, packages: Mapping[str, LockedPackage]) -> dict[str, IndexEntry]:
        """The index entries of those packages that the archives have, by name. Version and digest must be the same."""
        entries = {}
        for stanza, fields in self._shown(f"{name}={package.version}" for name, package in packages.items()):
            name = fields.get("Package", "")
            if name in packages and fields.get("SHA256") == packages[name].sha256:
                entries[name] = IndexEntry(packages[name], stanza.strip("\n"))
        return entries

    def left_out(self, names: Iterable[str], chosen: Mapping[str, LockedPackage]) -> dict[str, list[str]]:
        """The recommended packages that are not chosen and that come from the same source package, by package.

        Such a package is often the other part of one program: docker.io recommends docker-cli.
        """
        sources: dict[str, str] = {}
        recommended: dict[str, list[str]] = {}
        for _, fields in self._shown(f"{name}={chosen[name].version}" for name in sorted(set(names)) if name in chosen):
            name = fields.get("Package", "")
            sources[name] = _source_of(fields)
            groups = [_NAME.findall(group) for group in fields.get("Recommends", "").split(",")]
            recommended[name] = [other for group in groups if chosen.keys().isdisjoint(group) for other in group]
        others = sorted({other for found in recommended.values() for other in found})
        of_others = {fields.get("Package", ""): _source_of(fields) for _, fields in self._shown(others)}
        same = {n: [o for o in found if of_others.get(o) == sources[n]] for n, found in recommended.items()}
        return {name: found for name, found in same.items() if found}

    def _shown(self, queries: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
        """The index entries of these packages: the text, and the fields that have one line."""
        if not (names := list(queries)):
            return
        done = run.run(
            ["apt-cache", *self._folders(), "show", "--no-all-versions", "--", *names], check=False, env=self._env()
        )
        for stanza in done.stdout.split("\n\n"):
            yield stanza, dict(line.split(": ", 1) for line in stanza.split("\n") if _FIELD.match(line))

    def fetch(self, entries: Mapping[str, IndexEntry]) -> Iterator[tuple[str, Path]]:
        """Downloads .deb files. Yields the name and the file of each package, not verified. The caller moves the files.

        Raises ImageError (`archive-unreachable`) if a download fails. Files of an interrupted call are kept, and used
        by the next call.
        """
        incoming = self.folder / "incoming"
        argv = ["apt-get", *self._folders(), "download", "-q", "--"]
        argv += [f"{name}={entry.package.version}" for name, entry in sorted(entries.items())]
        try:
            self._stream(argv, cwd=incoming)
        except run.CommandError as error:
            raise ImageError(
                f"packages cannot be fetched from {self.where}:\n{bare(error.tail)}",
                code="archive-unreachable",
                hint="run the same command again; the packages downloaded so far are kept",
                fields={"archive": self.where},
            ) from None
        expected = {
            f"{name}_{entry.package.version.replace(':', '%3a')}_{entry.package.architecture}.deb": name
            for name, entry in entries.items()
        }
        for file in sorted(incoming.iterdir()):
            if file.name in expected:
                yield expected[file.name], file
            else:
                file.unlink()

    def as_of(self) -> str:
        """The date of the newest Release file: ISO 8601, UTC. A date that is not valid is ignored."""
        dates = [0]
        for file in (self.folder / "state/lists").glob("*Release"):
            with file.open(encoding="utf-8", errors="replace") as text:
                head = text.read(1 << 16)
            if (match := _DATE.search(head)) and (parsed := parsedate(match[1])):
                with contextlib.suppress(ValueError, OverflowError):
                    date_s = calendar.timegm(parsed)
                    dates += [date_s] if date_s < _YEAR_10000_S else []
        return utctime.text(max(dates))

    def _trust(self) -> None:
        """Links the accepted keys into the folder: those of this machine, and those of the distribution."""
        keys = self.folder / "etc/keys"
        accepted = accepted_keys(self.distribution)
        for link in keys.iterdir():
            if link.name not in accepted:
                link.unlink()
        for name, file in accepted.items():
            if not (keys / name).is_symlink():
                (keys / name).symlink_to(file)

    def _folders(self) -> list[str]:
        """Options of apt that select the folders below `folder`. A path in apt.conf(5) could not have a `"`."""
        etc, state = self.folder / "etc", self.folder / "state"
        folders = {
            "Dir::Etc": etc,
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": etc / "sources.list.d",
            "Dir::Etc::preferences": etc / "preferences",
            "Dir::Etc::preferencesparts": etc / "preferences.d",
            "Dir::Etc::trustedparts": etc / "keys",
            "Dir::State": state,
            "Dir::State::status": state / "status",
            "Dir::Cache": self.folder / "cache",
        }
        return [f"-o{name}={path}" for name, path in folders.items()]

    def _options(self) -> list[str]:
        """Lines of apt.conf(5): none of this machine's settings apply, except its credentials and its proxies."""
        return [
            'Dir::Etc::main "/dev/null"; Dir::Etc::parts "/dev/null"; Dir::Etc::trusted "/dev/null";',
            'Dir::Etc::netrc "/etc/apt/auth.conf"; Dir::Etc::netrcparts "/etc/apt/auth.conf.d";',
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


def accepted_keys(distribution: str) -> dict[str, Path]:
    """The key files that may sign the archives of a distribution, by file name."""
    files = [*Path("/etc/apt/trusted.gpg.d").glob("*"), Path(KEYRINGS[distribution]), _OLD_KEYRING]
    return {file.name: file for file in files if file.suffix in (".gpg", ".asc") and file.is_file()}


def _source_of(fields: Mapping[str, str]) -> str:
    """The name of the source package of a binary package. The field is missing if both have the same name."""
    return fields.get("Source", fields.get("Package", "")).partition(" ")[0]

"""Finds the apt repositories of a distribution: those of this machine's own apt configuration.

kimbox has no built-in list of mirrors. `apt-get indextargets` lists the repositories of this machine. For another suite
of the same distribution, the suite names are replaced, which also finds the security and updates repositories. Keys and
checks of dates come from the entries of apt's files, as apt reads them.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from kimbox import run
from kimbox.errors import ImageError
from kimbox.lock.apt import entries, keys

#: Separator of the fields in the output of apt-get. No URL or suite contains it.
_SEPARATOR = "\t"
_FIELDS = ("REPO_URI", "RELEASE", "CODENAME", "COMPONENT", "ORIGIN", "SOURCESENTRY")

#: apt settings for reaching mirrors: proxies, certificates, timeouts, checks of dates.
_ACCESS = (
    "Acquire::http", "Acquire::https", "Acquire::ftp", "Acquire::Retries", "Acquire::ForceIPv4", "Acquire::ForceIPv6",
    "Acquire::Check-Valid-Until", "Acquire::Check-Date", "Acquire::Max-FutureTime",
)  # fmt: skip

#: Options of an entry that apply to its Release file (sources.list(5)), and their values. Trusted and the options
#: that allow archives without a valid signature are left out.
_OPTIONS = {
    "Check-Valid-Until", "Valid-Until-Min", "Valid-Until-Max", "Check-Date", "Date-Max-Future", "InRelease-Path",
    "By-Hash",
}  # fmt: skip
_VALUE = re.compile(r"[A-Za-z0-9._/-]{1,200}")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")

#: Components that are used from the mirror in a spec.
COMPONENTS = {"debian": ("main",), "ubuntu": ("main", "universe")}


@attrs.frozen(order=True)
class Source:
    """An apt repository: its URI, a suite, and components of the suite."""

    uri: str
    suite: str
    components: tuple[str, ...]
    #: The keys that must have signed it, as `keys.signed_by` returns them; empty for the keys that are always accepted.
    signed_by: str = ""
    #: Names and values of other options, sorted.
    options: tuple[tuple[str, str], ...] = ()
    #: Whether the keys of the distribution may have signed it, too: `signed_by` is that of another suite.
    is_other_suite: bool = False

    def line(self) -> str:
        """The line in sources.list(5)."""
        return f"deb {self.uri} {self.suite} {' '.join(self.components)}"

    def stanza(self, distribution: str) -> str:
        """The stanza in deb822 style, with all options."""
        fields = {"Types": "deb", "URIs": self.uri, "Suites": self.suite, "Components": " ".join(self.components)}
        fields |= dict(self.options)
        if keys.is_block(self.signed_by):
            block = keys.with_distribution(self.signed_by, distribution) if self.is_other_suite else self.signed_by
            fields["Signed-By"] = "".join(f"\n {line or '.'}" for line in block.splitlines())
        elif self.signed_by:
            fields["Signed-By"] = self.signed_by
        return "".join(f"{name}: {value}\n" for name, value in fields.items())


@attrs.frozen
class Target:
    """A repository that this machine uses: `source` as configured, codename and origin from its Release file."""

    source: Source
    codename: str
    origin: str
    #: The entry in apt's files, `FILE:NUMBER`.
    entry: str = ""


def parse_targets(text: str) -> list[Target]:
    """Parses the output of `apt-get indextargets`, and joins the components of each suite."""
    targets: dict[tuple[str, str, str, str], list[str]] = {}
    where: dict[tuple[str, str, str, str], str] = {}
    for line in text.split("\n"):
        fields = line.split(_SEPARATOR)
        if len(fields) == len(_FIELDS):
            uri, suite, codename, component, origin, entry = fields
            target = (uri.rstrip("/"), suite, codename, origin)
            where.setdefault(target, entry)
            components = targets.setdefault(target, [])
            if component not in components:
                components.append(component)
    return [
        Target(Source(target[0], target[1], tuple(parts)), target[2], target[3], where[target])
        for target, parts in targets.items()
    ]


def with_options(target: Target, *, is_other_suite: bool) -> Target:
    """The target with the options of its entry. `is_other_suite`: it will be used for another suite than the entry.

    Raises ImageError if a key that the entry names cannot be read.
    """
    found = entries.options_of(target.entry)
    signed_by = keys.signed_by(found.get("signed-by", ""), target.entry)
    values = {name: found.get(name.lower(), "") for name in sorted(_OPTIONS)}
    options = tuple((name, value) for name, value in values.items() if _VALUE.fullmatch(value))
    is_other_suite &= bool(signed_by)
    source = attrs.evolve(target.source, signed_by=signed_by, options=options, is_other_suite=is_other_suite)
    return attrs.evolve(target, source=source)


def for_suite(targets: list[Target], distribution: str, suite: str, own_suite: str) -> list[Source]:
    """This machine's sources of a distribution, for another suite: `bookworm-updates` becomes `trixie-updates`.

    `own_suite` is the code name of this machine's release. A target matches by its suite, else by its code name
    (`stable`). The suite is tried first, because Ubuntu has the same code name for all pockets.
    """
    sources = set()
    for target in targets:
        for name in (target.source.suite, target.codename):
            base, dash, pocket = name.partition("-")
            if base == own_suite:
                break
        is_usable = target.origin.lower() == distribution and not target.source.uri.startswith("cdrom:")
        if is_usable and base == own_suite and pocket in ("", "updates", "security"):
            sources.add(attrs.evolve(target.source, suite=suite + dash + pocket))
    return sorted(sources)


def os_release(text: str) -> tuple[str, str]:
    """Distribution and code name from the text of os-release(5)."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return values.get("ID", "").strip('"'), values.get("VERSION_CODENAME", "").strip('"')


def sources(distribution: str, suite: str, mirror: str | None) -> list[Source]:
    """The sources to build a suite from: the mirror of the spec, or those of this machine's apt configuration.

    If this machine's apt uses the same mirror, its keys and options apply to the mirror of the spec, too. Raises
    ImageError (`archive-not-configured`) if there is no mirror and this machine's apt has no fitting repository, and
    the errors of `keys.signed_by`.
    """
    template = _SEPARATOR.join(f"$({name})" for name in _FIELDS)
    done = run.run(["apt-get", "indextargets", "--format", template, "Created-By: Packages"], check=False)
    targets = parse_targets(done.stdout)
    if mirror:
        source = Source(mirror.rstrip("/"), suite, COMPONENTS[distribution])
        known = next((target for target in targets if target.source.uri == source.uri), None)
        if known:
            found = with_options(known, is_other_suite=known.source.suite != suite).source
            source = attrs.evolve(found, suite=source.suite, components=source.components)
        return [source]
    _, own_suite = os_release(Path("/etc/os-release").read_text())
    is_other_suite = suite != own_suite
    usable = [target for target in targets if target.origin.lower() == distribution]
    usable = [with_options(target, is_other_suite=is_other_suite) for target in usable]
    own_sources = for_suite(usable, distribution, suite, own_suite)
    if not own_sources:
        raise ImageError(
            f"this machine's apt configuration has no {distribution} repository that {suite} could come from",
            code="archive-not-configured",
            hint="name one under image: mirror: in the spec, or run `apt-get update`",
            fields={"distribution": distribution, "suite": suite},
        )
    return own_sources


def access_options() -> list[str]:
    """This machine's apt settings for reaching mirrors, as lines of apt.conf(5)."""
    dump = run.run(["apt-config", "dump", *_ACCESS], check=False).stdout
    return [line for line in dump.splitlines() if '""' not in line]


def bare(text: str) -> str:
    """Removes user names and passwords from the URIs in a text."""
    return _CREDENTIALS.sub("", text)

"""Where a distribution's packages come from: the machine's own apt configuration, asked of apt itself.

No mirror is known to kimbox. apt-get indextargets(8) tells what this machine uses; for another suite of the same
distribution the suite names are exchanged, which keeps the security and updates repositories beside the main one.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from kimbox import run
from kimbox.errors import ImageError

#: Separates the fields in the answer of apt-get; no URL or suite contains it.
_SEPARATOR = "\t"
_FIELDS = ("REPO_URI", "RELEASE", "CODENAME", "COMPONENT", "ORIGIN")

#: apt settings that decide how this machine reaches its mirrors: proxies, certificates, time limits.
_ACCESS = ("Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::ForceIPv4", "Acquire::ForceIPv6")

#: Components taken from a mirror that a spec names.
COMPONENTS = {"debian": ("main",), "ubuntu": ("main", "universe")}


@attrs.frozen(order=True)
class Source:
    """One apt repository: its URI, one suite of it, and components of that."""

    uri: str
    suite: str
    components: tuple[str, ...]

    def line(self) -> str:
        """As in sources.list(5)."""
        return f"deb {self.uri} {self.suite} {' '.join(self.components)}"


@attrs.frozen
class Target:
    """A repository as this machine uses it: `source` as written, and what its Release file says of itself."""

    source: Source
    codename: str
    origin: str


def parse_targets(text: str) -> list[Target]:
    """The answer of `apt-get indextargets`, the components of a suite joined."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for line in text.split("\n"):
        fields = line.split(_SEPARATOR)
        if len(fields) == len(_FIELDS):
            uri, suite, codename, component, origin = fields
            components = found.setdefault((uri.rstrip("/"), suite, codename, origin), [])
            if component not in components:
                components.append(component)
    return [
        Target(Source(uri, suite, tuple(parts)), name, origin) for (uri, suite, name, origin), parts in found.items()
    ]


def for_suite(targets: list[Target], distribution: str, suite: str, own_suite: str) -> list[Source]:
    """This machine's sources of a distribution, turned to another suite: own `bookworm-updates` -> `trixie-updates`.

    A suite written as `stable` counts by its code name. (Ubuntu gives one code name to every pocket: it comes second.)
    """
    wanted = set()
    for target in targets:
        for name in (target.source.suite, target.codename):
            base, dash, pocket = name.partition("-")
            if base == own_suite:
                break
        is_ours = target.origin.lower() == distribution and not target.source.uri.startswith("cdrom:")
        if is_ours and base == own_suite and pocket in ("", "updates", "security"):
            wanted.add(Source(target.source.uri, suite + dash + pocket, target.source.components))
    return sorted(wanted)


def os_release(text: str) -> tuple[str, str]:
    """Distribution and code name from the text of os-release(5)."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return values.get("ID", "").strip('"'), values.get("VERSION_CODENAME", "").strip('"')


def sources(distribution: str, suite: str, mirror: str | None) -> list[Source]:
    """The sources to build a suite from. Raises ImageError if this machine's apt knows none and no mirror is given."""
    if mirror:
        return [Source(mirror.rstrip("/"), suite, COMPONENTS[distribution])]
    template = _SEPARATOR.join(f"$({name})" for name in _FIELDS)
    answer = run.run(["apt-get", "indextargets", "--format", template, "Created-By: Packages"], check=False)
    _, own_suite = os_release(Path("/etc/os-release").read_text())
    found = for_suite(parse_targets(answer.stdout), distribution, suite, own_suite)
    if not found:
        raise ImageError(
            f"this machine's apt configuration has no {distribution} repository that {suite} could come from",
            hint="name one under image: mirror: in the spec, or run `apt-get update`",
        )
    return found


def access_options() -> list[str]:
    """This machine's apt settings for reaching mirrors, as apt.conf(5) lines."""
    dump = run.run(["apt-config", "dump", *_ACCESS], check=False).stdout
    return [line for line in dump.splitlines() if '""' not in line]

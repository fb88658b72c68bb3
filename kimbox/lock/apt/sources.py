"""Finds the apt repositories of a distribution: those of this machine's own apt configuration.

kimbox has no built-in list of mirrors. `apt-get indextargets` lists the repositories of this machine. For another suite
of the same distribution, the suite names are replaced, which also finds the security and updates repositories.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from kimbox import run
from kimbox.errors import ImageError

#: Separator of the fields in the output of apt-get. No URL or suite contains it.
_SEPARATOR = "\t"
_FIELDS = ("REPO_URI", "RELEASE", "CODENAME", "COMPONENT", "ORIGIN")

#: apt settings for reaching mirrors: proxies, certificates, timeouts.
_ACCESS = ("Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::ForceIPv4", "Acquire::ForceIPv6")

#: Components that are used from the mirror in a spec.
COMPONENTS = {"debian": ("main",), "ubuntu": ("main", "universe")}


@attrs.frozen(order=True)
class Source:
    """An apt repository: its URI, a suite, and components of the suite."""

    uri: str
    suite: str
    components: tuple[str, ...]

    def line(self) -> str:
        """The line in sources.list(5)."""
        return f"deb {self.uri} {self.suite} {' '.join(self.components)}"


@attrs.frozen
class Target:
    """A repository that this machine uses: `source` as configured, codename and origin from its Release file."""

    source: Source
    codename: str
    origin: str


def parse_targets(text: str) -> list[Target]:
    """Parses the output of `apt-get indextargets`, and joins the components of each suite."""
    targets: dict[tuple[str, str, str, str], list[str]] = {}
    for line in text.split("\n"):
        fields = line.split(_SEPARATOR)
        if len(fields) == len(_FIELDS):
            uri, suite, codename, component, origin = fields
            components = targets.setdefault((uri.rstrip("/"), suite, codename, origin), [])
            if component not in components:
                components.append(component)
    return [
        Target(Source(uri, suite, tuple(parts)), name, origin) for (uri, suite, name, origin), parts in targets.items()
    ]


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
            sources.add(Source(target.source.uri, suite + dash + pocket, target.source.components))
    return sorted(sources)


def os_release(text: str) -> tuple[str, str]:
    """Distribution and code name from the text of os-release(5)."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return values.get("ID", "").strip('"'), values.get("VERSION_CODENAME", "").strip('"')


def sources(distribution: str, suite: str, mirror: str | None) -> list[Source]:
    """The sources to build a suite from: the mirror of the spec, or those of this machine's apt configuration.

    Raises ImageError (`archive-not-configured`) if there is no mirror and this machine's apt has no fitting repository.
    """
    if mirror:
        return [Source(mirror.rstrip("/"), suite, COMPONENTS[distribution])]
    template = _SEPARATOR.join(f"$({name})" for name in _FIELDS)
    done = run.run(["apt-get", "indextargets", "--format", template, "Created-By: Packages"], check=False)
    _, own_suite = os_release(Path("/etc/os-release").read_text())
    own_sources = for_suite(parse_targets(done.stdout), distribution, suite, own_suite)
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

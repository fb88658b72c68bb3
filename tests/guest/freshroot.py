"""Builds a minimal Debian root with the apt and pip configuration of this host, and runs scripts in it.

Scripts run after pivot_root in a mount and pid namespace of their own (see enter-root). They use the network of this
host. This requires root, or sudo.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from urllib.parse import unquote

import attrs

from kimbox import run

#: Packages in the root, in addition to those that apt requires.
PACKAGES = ["python3", "sudo", "git", "ca-certificates"]

#: The account that runs the scripts: an ordinary user with sudo, without a range of subordinate ids.
USER = "worker"

#: Its user and group id: the first that useradd assigns.
USER_ID = 1000

#: The release of the root if this host runs Debian. On another distribution it is the release of the host.
DEBIAN_RELEASE = "bookworm"

#: PATH of a new login, in the form of env(1).
SYSTEM_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Variables with which this host reaches the network, and with the certificates that it trusts.
NETWORK_ENV = re.compile(r"PIP_(?!CONFIG_FILE$).+|(https?|ftp|no)_proxy|(HTTPS?|NO)_PROXY|SSL_CERT_FILE|.*_CA_BUNDLE")

#: Settings of apt of the same kind.
_APT_NETWORK = re.compile(r'Acquire::(?:https?|ftp|Retries)\b.* "[^"]+";')

#: Mirrors on the disk of this host.
_ON_DISK = re.compile(r"(?:(?:mirror\+)?file|copy):/*(/.*)")


@attrs.define
class FreshRoot:
    """The root folder, and the folders and variables of this host that the network requires."""

    folder: Path
    #: Prefix of a command that runs as root.
    sudo: list[str]
    #: Folders of this host that its configuration names: package archives on disk.
    folders: set[Path] = attrs.field(factory=set)
    env: dict[str, str] = attrs.field(factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / "root"

    def build(self, log: IO[str]) -> None:
        """Creates the root and copies the configuration of apt, pip and name resolution into it."""
        self.env = {name: value for name, value in os.environ.items() if NETWORK_ENV.fullmatch(name)}
        self._bootstrap(log)
        self._carry_in_pip()
        trusted = [v for k, v in self.env.items() if k == "SSL_CERT_FILE" or k.endswith("_CA_BUNDLE")]
        for name in ["/etc/resolv.conf", "/etc/hosts", *trusted]:
            self._put(Path(name), Path(name).read_text())

    def run(self, job: str, *, log: IO[str], timeout_s: int, folders: Mapping[Path, str]) -> list[str]:
        """Runs the bash script `job` as USER in the root and returns its lines. `folders`: paths here and in the root.

        Raises CommandError if it fails, exceeds the timeout, or leaves a process behind.
        """
        settings = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self.env.items())
        self._put(Path("/job"), f"set -euo pipefail\n{settings}{job}")
        enter = Path(__file__).parent / "enter-root"
        binds = [*map(str, sorted(self.folders)), *(f"{f}={target}" for f, target in folders.items())]
        lines: list[str] = []
        argv = [*self.sudo, "env", "-i", SYSTEM_PATH, "LANG=C.UTF-8", "CI=true"]
        argv += ["timeout", "--signal=KILL", str(timeout_s)]
        argv += ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        argv += [str(enter), str(self.path), USER, "/job", *binds]
        run.stream(argv, on_line=lines.append, log=log)
        return lines

    def remove(self) -> None:
        """Removes the root. It contains no mounts, because the namespaces with the mounts no longer exist."""
        run.run([*self.sudo, "rm", "-rf", "--one-file-system", "--", self.path])

    def give_to_user(self, folder: Path) -> None:
        """Makes USER the owner of a folder. git refuses a folder of another owner."""
        run.run([*self.sudo, "chown", "-R", f"{USER_ID}:{USER_ID}", folder])

    def _bootstrap(self, log: IO[str]) -> None:
        suite, sources = _sources()
        self.folders |= {Path(m[1]) for line in sources if (m := _ON_DISK.match(line.split()[1]))}
        keys = self.folder / "keys"
        keys.mkdir()
        for key in _keyrings():
            (keys / key.name).write_bytes(key.read_bytes())
        network = [line for line in run.run(["apt-config", "dump"]).stdout.splitlines() if _APT_NETWORK.fullmatch(line)]
        add_user = f"useradd --create-home --shell /bin/bash --uid {USER_ID} {USER}"
        # mmdebstrap mounts in a namespace of its own, so that no mount remains if it is killed.
        argv = [*self.sudo, "unshare", "--mount", "mmdebstrap", "--mode=root", "--variant=minbase"]
        argv += [f"--include={','.join(PACKAGES)}", f"--keyring={keys}", *(f"--aptopt={line}" for line in network)]
        argv += [f'--customize-hook=chroot "$1" {add_user}']
        argv += ['--customize-hook=rm -f "$1/etc/subuid" "$1/etc/subgid"']
        argv += [f'--customize-hook=echo "{USER} ALL=(ALL) NOPASSWD: ALL" >"$1/etc/sudoers.d/{USER}"']
        argv += [f'--customize-hook=cp {keys}/* "$1/etc/apt/trusted.gpg.d/"']
        run.stream([*argv, suite, str(self.path), *sources], on_line=lambda _: None, log=log)

    def _carry_in_pip(self) -> None:
        """Copies the settings of this host's pip into the root, and the files and folders that they name."""
        sections: defaultdict[str, list[str]] = defaultdict(list)
        values = [v for k, v in self.env.items() if k.startswith("PIP_")]
        listed = run.run([sys.executable, "-m", "pip", "config", "list"]).stdout
        for line in listed.splitlines():
            name, _, quoted = line.partition("=")
            section, _, key = name.partition(".")
            if section != ":env:":
                values.append(str(ast.literal_eval(quoted)))
                sections[section].append(f"{key} = " + "\n  ".join(values[-1].split()))
        text = "".join(f"[{s}]\n" + "\n".join(lines) + "\n" for s, lines in sections.items())
        self._put(Path("/etc/pip.conf"), text)
        for word in {w for value in values for w in value.split()}:
            named = Path(unquote(word.removeprefix("file://")))
            if named.is_absolute() and named.is_dir():
                # The pages of an index on disk name files with a path that contains `..`.
                self.folders.add(named.parent if named.name == "simple" else named)
            elif named.is_absolute() and named.is_file():
                self._put(named, named.read_text())

    def _put(self, path: Path, text: str) -> None:
        target = self.path / path.relative_to("/")
        run.run([*self.sudo, "mkdir", "-p", target.parent])
        run.run([*self.sudo, "tee", target], input=text)


def _os_release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    return {k: v.strip("\"'") for k, _, v in (line.partition("=") for line in lines)}


def _sources() -> tuple[str, list[str]]:
    """Returns the release of the root, and the lines of its sources.list, from the sources of this host."""
    host = _os_release()
    codename = host["VERSION_CODENAME"]
    target = DEBIAN_RELEASE if host["ID"] == "debian" else codename
    form = "$(CREATED_BY) $(REPO_URI) $(RELEASE) $(COMPONENT)"
    components: defaultdict[str, list[str]] = defaultdict(list)
    for line in run.run(["apt-get", "indextargets", "--format", form]).stdout.splitlines():
        kind, uri, release, component = line.split()
        if kind == "Packages" and re.match(rf"{codename}\b", release):
            components[f"deb {uri} {release.replace(codename, target, 1)}"].append(component)
    return target, [f"{source} {' '.join(sorted(set(parts)))}" for source, parts in components.items()]


def _keyrings() -> set[Path]:
    """Returns every keyring that the apt of this host trusts for some source."""
    lists = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    text = "\n".join(f.read_text() for f in lists if f.is_file())
    named = {Path(p) for p in re.findall(r"signed-by\s*[:=]\s*(/[^\s,\]]+)", text, re.IGNORECASE)}
    named |= set(Path("/usr/share/keyrings").glob("debian-archive-keyring.*"))
    named |= {f for f in Path("/etc/apt/trusted.gpg.d").glob("*") if f.suffix in {".gpg", ".asc"}}
    return {f for f in named if f.is_file()}

"""Access to a host that the author of a repository chose, not the spec: its submodule is on another host.

git gets none of the user's credentials there: no helper, no ~/.netrc, no cookie, header, client certificate or ticket.
It also gets no address of this machine or of a private network, unless the repository itself is in one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import attrs

from kimbox.files import write_atomic
from kimbox.lock.git import reasons
from kimbox.lock.git.command import Answer, GitError, git, redact
from kimbox.spec import urls
from kimbox.temporary import temporary_folder

#: Settings of the user that git keeps for such a host: the way there, and the certificates that are trusted. In small
#: letters, as `git config --list` prints them.
KEPT = frozenset({
    "http.proxy", "http.proxyauthmethod", "http.proxysslcainfo", "http.sslbackend", "http.sslcainfo", "http.sslcapath",
    "http.sslverify", "http.sslversion", "http.version",
})  # fmt: skip

#: Those of them that are paths, in which git replaces `~`.
PATHS = frozenset({"http.proxysslcainfo", "http.sslcainfo", "http.sslcapath"})

#: Variables that would give git the configuration of the user, or a client certificate.
UNSET = (
    "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_COUNT", "GIT_SSL_CERT", "GIT_SSL_KEY", "GIT_SSL_CERT_TYPE",
    "GIT_SSL_KEY_TYPE", "GIT_SSL_CERT_PASSWORD_PROTECTED",
)  # fmt: skip

#: Addresses that the resolver of some proxies gives in place of the real ones (RFC 2544). No service has them.
STAND_INS = ipaddress.ip_network("198.18.0.0/15")

#: Default port of each scheme that git may use for such a host.
PORTS = {"https": 443, "http": 80, "git": 9418}

#: What git reports when a server sends it to another URL.
_REDIRECTED = re.compile(r"redirecting to (\S+)")

#: What git reports when a server asks for credentials, or refuses to answer without them.
_REFUSED = re.compile(r"could not read username|authentication failed|returned error: 40[13]", re.IGNORECASE)

_HINT = "name that repository in the spec, at its own path, and pin a commit without the submodule"


@attrs.frozen
class Access:
    """What git gets for one command: variables, and names of variables that are removed."""

    env: Mapping[str, str]
    unset: tuple[str, ...] = UNSET


@contextlib.contextmanager
def access(url: str, named_by: str) -> Iterator[Access]:
    """What git gets for a URL that a repository on the host `named_by` names. Raises GitError for an inner address."""
    real = _instead_of(url)
    settings = _kept_settings(real)
    addresses = () if real != url or _has_proxy(url, settings) else _checked_addresses(url, named_by)
    settings["http.emptyauth"] = "false"  # no Kerberos ticket
    if addresses:  # curl connects to what was checked, whatever the name resolves to a moment later
        host, port = _host_and_port(url)
        settings["http.curloptresolve"] = f"{host}:{port}:{','.join(addresses)}"
    with temporary_folder("kimbox-home-") as home:  # git reads ~/.gitconfig there, and curl ~/.netrc
        write_atomic(home / ".gitconfig", _config_file(settings, url, real), mode=0o600)  # a proxy may have a password
        yield Access({"GIT_CONFIG_NOSYSTEM": "1", "GIT_ASKPASS": "", "HOME": str(home), "XDG_CONFIG_HOME": str(home)})


def check_redirect(answer: Answer, url: str, named_by: str) -> None:
    """Raises GitError if the server has sent git to an inner address: nothing of that repository may be used."""
    for target in _REDIRECTED.findall(answer.stderr):
        try:
            host = urls.host_of(target)
        except ValueError:  # the server chose it
            raise GitError(
                f"{redact(url)} redirects to {redact(target)[:200]}", code="bad-submodule", hint=_HINT
            ) from None
        if host and host != urls.host_of(url) and not _has_proxy(target, _kept_settings(target)):
            _checked_addresses(target, named_by)


def hint_for(reason: str, named_by: str) -> str | None:
    """What helps if a transfer has failed. git has no credentials that the user could check."""
    if _REFUSED.search(reason):
        return f"git has none of your credentials for another host than {named_by}, which is in the spec; {_HINT}"
    return reasons.hint_for(reason)


def _kept_settings(url: str) -> dict[str, str]:
    """The settings of the user for a URL that KEPT has, by key."""
    listed = git(["config", "--null", "--get-urlmatch", "http", url], check=False)
    settings = {}
    for entry in listed.stdout.decode(errors="surrogateescape").split("\0"):
        key, _, value = entry.partition("\n")
        if key in KEPT:
            settings[key] = os.path.expanduser(value) if key in PATHS else value  # noqa: PTH111 - the text of a setting
    return settings


def _instead_of(url: str) -> str:
    """The URL that `insteadOf` in the user's configuration gives, if git reaches it without the user's credentials."""
    real = git(["ls-remote", "--get-url", "--", url], check=False).text
    parts = urlsplit(real)
    return real if parts.scheme in PORTS and "@" not in parts.netloc else url


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _config_file(settings: Mapping[str, str], url: str, real: str) -> bytes:
    """A configuration file of git (git-config(1)) with settings of the section `http`, and `real` in place of `url`."""
    lines = [
        "[http]",
        *(f"\t{key.removeprefix('http.')} = {_quoted(value)}" for key, value in sorted(settings.items())),
    ]
    if real != url:
        lines += [f"[url {_quoted(real)}]", f"\tinsteadOf = {_quoted(url)}"]
    return "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")


def _has_proxy(url: str, settings: Mapping[str, str]) -> bool:
    """Whether git reaches a URL through a proxy, which resolves the name."""
    import urllib.request

    if "http.proxy" in settings:
        return bool(settings["http.proxy"])
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    host = parts.hostname or ""
    return bool(proxies.get(parts.scheme) or proxies.get("all")) and not urllib.request.proxy_bypass(host)


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or PORTS.get(parts.scheme, 443)


def _checked_addresses(url: str, named_by: str) -> tuple[str, ...]:
    """The addresses of the host of a URL, none if its name is not known. Raises GitError for inner addresses."""
    host, port = _host_and_port(url)
    addresses = _addresses(host, port)
    inner = [address for address in addresses if _is_inner(address)]
    if not inner and not urls.is_inside_network(host):
        return addresses
    around = _addresses(named_by, PORTS["https"])
    if around and all(map(_is_inner, around)):  # the author is in this network, too
        return addresses
    where = f" ({inner[0]})" if inner and inner[0] != host else ""
    raise GitError(
        f"{redact(url)} is on this machine or in a private network{where}, and the repository around it is not",
        code="bad-submodule",
        hint=_HINT,
    )


def _addresses(host: str, port: int) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found))


def _is_inner(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None) or ip
    return not mapped.is_global and not (mapped.version == 4 and mapped in STAND_INS)

"""Signatures of commits and tags, checked against the keys that a spec names and nothing else.

The user's own trust has no say: git gets no configuration but ours, ssh-keygen a list of signers made for the occasion,
gpg a home folder of its own that holds just these keys.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs

from kimbox.lock.git.command import GitError, git
from kimbox.run import require, run, tail
from kimbox.spec.signing import is_gpg

#: Whoever signs with a key of the spec is called so.
PRINCIPAL = "kimbox"

#: What gpg does by itself otherwise: start an agent, ask key servers.
_GPG_CONF = "batch\nno-tty\nno-autostart\nno-auto-key-retrieve\nno-auto-key-locate\ndisable-dirmngr\n"

_IMPORT_TIMEOUT_S = 60

#: What gpg says of a signature that is none of our keys', or no good; the first that is there counts.
_GPG_FLAWS = {
    "BADSIG": "bears a bad signature: it was made for another content",
    "REVKEYSIG": "is signed by a key that has been revoked",
    "EXPKEYSIG": "is signed by a key that has expired",
    "EXPSIG": "bears a signature that has expired",
    "ERRSIG": "is signed by a key that the spec does not name",
}

_HEADS = {"-----BEGIN SSH SIGNATURE-----": "ssh", "-----BEGIN PGP SIGNATURE-----": "gpg",
          "-----BEGIN PGP MESSAGE-----": "gpg"}  # fmt: skip

_GPGSIG = re.compile(rb"^gpgsig (.*)$", re.MULTILINE)
_TAG = re.compile(rb"^tag (.*)$", re.MULTILINE)
_ARMOR = re.compile(rb"^-----BEGIN [A-Z ]+-----$", re.MULTILINE)
_GOOD_SSH = re.compile(r'Good "git" signature with \S+ key (\S+)')


@attrs.frozen
class Verifier:
    """Checks objects of one repository. Answers are None for a good signature, else what is wrong, in words."""

    git_dir: Path
    #: The options and the environment that git runs with.
    options: tuple[str, ...]
    env: dict[str, str]

    def commit(self, commit: str) -> str | None:
        """A commit, by its own signature."""
        raw = self._raw("commit", commit)
        head, _, _ = raw.partition(b"\n\n")
        signed = _GPGSIG.search(head)
        return self._flaw("commit", commit, signed[1].decode(errors="replace") if signed else "")

    def tag(self, tag: str, commit: str, ref: str) -> str | None:
        """An annotated tag, which must have the name `ref` and lead to `commit`: no other may vouch for it."""
        raw = self._raw("tag", tag)
        head, _, body = raw.partition(b"\n\n")
        named = _TAG.search(head)
        name = named[1].decode(errors="replace") if named else ""
        if name != ref.removeprefix("refs/tags/"):
            return f"the tag object {tag} is that of another tag, {name!r}"
        at = git(["rev-parse", "--verify", "--end-of-options", f"{tag}^{{commit}}"], git_dir=self.git_dir).text
        if at != commit:
            return f"the tag {name} leads to {at}"
        heads = _ARMOR.findall(body)
        return self._flaw("tag", tag, heads[-1].decode() if heads else "", f"the tag {name}")

    def _flaw(self, kind: str, name: str, head: str, called: str = "") -> str | None:
        called = called or f"the commit {name}"
        if not head:
            return f"{called} bears no signature"
        form = _HEADS.get(head.strip())
        if form is None:
            return f"{called} bears a signature that is neither of ssh nor of gpg"
        args = [*self.options, f"verify-{kind}", "--raw", name]
        answer = git(args, git_dir=self.git_dir, env=self.env, check=False)
        flaw = (_ssh_flaw if form == "ssh" else _gpg_flaw)(answer.code, answer.stderr)
        return f"{called} {flaw}" if flaw else None

    def _raw(self, kind: str, name: str) -> bytes:
        return git(["cat-file", kind, name], git_dir=self.git_dir).stdout


@contextlib.contextmanager
def verifier(git_dir: Path, keys: tuple[str, ...]) -> Iterator[Verifier]:
    """A verifier for the repository `git_dir` that knows these keys, as long as the context lasts."""
    ssh_keygen = require("ssh-keygen", "it checks signatures")
    with tempfile.TemporaryDirectory(prefix="kimbox-keys-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        signers = [f'{PRINCIPAL} namespaces="git" {key}\n' for key in keys if not is_gpg(key)]
        (folder / "signers").write_text("".join(signers))
        env = {
            "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_COUNT": "0", "GNUPGHOME": place,
        }  # fmt: skip
        gpg = "/bin/false"
        if any(map(is_gpg, keys)):
            gpg = require("gpg", "it checks signatures")
            _import(folder, [key for key in keys if is_gpg(key)])
        settings = {
            "gpg.program": gpg,
            "gpg.openpgp.program": gpg,
            "gpg.x509.program": "/bin/false",
            "gpg.ssh.program": ssh_keygen,
            "gpg.ssh.allowedSignersFile": str(folder / "signers"),
            "gpg.minTrustLevel": "undefined",
            "log.showSignature": "false",
        }
        options = tuple(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
        yield Verifier(git_dir, options, env)


def _import(folder: Path, keys: list[str]) -> None:
    """Puts keys of gpg into a home folder of their own. Raises GitError for what gpg does not take."""
    (folder / "gpg.conf").write_text(_GPG_CONF)
    for key in keys:
        done = run(
            ["gpg", "--homedir", folder, "--quiet", "--import"], input=key, check=False, timeout_s=_IMPORT_TIMEOUT_S
        )
        if not done.ok:
            raise GitError(f"gpg does not take a public key of the spec:\n{tail(done.stderr, 3)}")


def _ssh_flaw(code: int, said: str) -> str | None:
    """What is wrong with a signature of ssh, by the words of ssh-keygen."""
    if code == 0 and f'Good "git" signature for {PRINCIPAL} with ' in said:
        return None
    if match := _GOOD_SSH.search(said):
        return f"is signed by a key that the spec does not name ({match[1]})"
    return "bears a bad signature: it was made for another content"


def _gpg_flaw(code: int, said: str) -> str | None:
    """What is wrong with a signature of gpg, by its status lines."""
    words = {line.split(" ")[1]: line for line in said.split("\n") if line.startswith("[GNUPG:] ")}
    for word, flaw in _GPG_FLAWS.items():
        if word in words:
            key = words[word].split(" ")[2:3] if word != "BADSIG" else []
            return flaw + (f" ({key[0]})" if key else "")
    if code == 0 and "GOODSIG" in words and "VALIDSIG" in words:
        return None
    return "is signed by a key that the spec does not name"

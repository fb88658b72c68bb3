"""Checks signatures of commits and tags against the keys that a spec names, and no others.

The user's own keys and trust settings have no effect: git gets only the configuration of this module, ssh-keygen a
temporary list of signers, and gpg a temporary home folder with these keys alone.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import attrs

from kimbox.lock.git.command import GitError, git
from kimbox.run import require, run, tail
from kimbox.spec.signing import is_gpg
from kimbox.temporary import temporary_folder

#: Name of every signer in the list that ssh-keygen gets (ssh-keygen(1), ALLOWED SIGNERS).
PRINCIPAL = "kimbox"

#: Options of gpg: it starts no agent, and contacts no key server.
_GPG_CONF = "batch\nno-tty\nno-autostart\nno-auto-key-retrieve\nno-auto-key-locate\ndisable-dirmngr\n"

_IMPORT_TIMEOUT_S = 60

#: gpg's status words for a signature that is not accepted, and what is wrong. The first word found decides.
_GPG_FLAWS = {
    "BADSIG": "has a bad signature: it was made for other content",
    "REVKEYSIG": "is signed by a key that has been revoked",
    "EXPKEYSIG": "is signed by a key that has expired",
    "EXPSIG": "has a signature that has expired",
    "ERRSIG": "is signed by a key that the spec does not name",
}

_HEADS = {"-----BEGIN SSH SIGNATURE-----": "ssh", "-----BEGIN PGP SIGNATURE-----": "gpg",
          "-----BEGIN PGP MESSAGE-----": "gpg"}  # fmt: skip

_GPGSIG = re.compile(rb"^gpgsig (.*)$", re.MULTILINE)
_TAG = re.compile(rb"^tag (.*)$", re.MULTILINE)
_ARMOR = re.compile(rb"^-----BEGIN [A-Z ]+-----$", re.MULTILINE)
_GOOD_SSH = re.compile(r'Good "git" signature with \S+ key (\S+)')


@attrs.frozen
class Flaw:
    """Why a commit or tag does not count as signed."""

    text: str
    #: Whether it has no signature at all.
    is_missing: bool = False


@attrs.frozen
class Verifier:
    """Checks objects of one repository. The methods return None for a good signature, else what is wrong with it."""

    git_dir: Path
    #: The options and the environment of git.
    options: tuple[str, ...]
    env: dict[str, str]

    def commit(self, commit: str) -> Flaw | None:
        """Checks the signature of a commit."""
        raw = self._raw("commit", commit)
        head, _, _ = raw.partition(b"\n\n")
        signature = _GPGSIG.search(head)
        armor = signature[1].decode(errors="replace") if signature else ""
        return self._flaw("commit", commit, armor, f"the commit {commit}")

    def tag(self, tag: str, commit: str, ref: str) -> Flaw | None:
        """Checks an annotated tag: its name (`ref`), its target (`commit`) and its signature."""
        raw = self._raw("tag", tag)
        head, _, body = raw.partition(b"\n\n")
        name_line = _TAG.search(head)
        name = name_line[1].decode(errors="replace") if name_line else ""
        if name != ref.removeprefix("refs/tags/"):
            return Flaw(f"the tag object {tag} is that of another tag, {name!r}")
        target = git(["rev-parse", "--verify", "--end-of-options", f"{tag}^{{commit}}"], git_dir=self.git_dir).text
        if target != commit:
            return Flaw(f"the tag {name} points to {target}")
        armors = _ARMOR.findall(body)
        return self._flaw("tag", tag, armors[-1].decode() if armors else "", f"the tag {name}")

    def _flaw(self, kind: str, object_id: str, armor: str, subject: str) -> Flaw | None:
        """Checks the signature of an object. `armor` is the first line of the signature, `subject` is for messages."""
        if not armor:
            return Flaw(f"{subject} has no signature", is_missing=True)
        form = _HEADS.get(armor.strip())
        if form is None:
            return Flaw(f"{subject} has a signature that is made neither by ssh nor by gpg")
        args = [*self.options, f"verify-{kind}", "--raw", object_id]
        answer = git(args, git_dir=self.git_dir, env=self.env, check=False)
        flaw = (_ssh_flaw if form == "ssh" else _gpg_flaw)(answer.code, answer.stderr)
        return Flaw(f"{subject} {flaw}") if flaw else None

    def _raw(self, kind: str, name: str) -> bytes:
        return git(["cat-file", kind, name], git_dir=self.git_dir).stdout


@contextlib.contextmanager
def verifier(git_dir: Path, keys: tuple[str, ...]) -> Iterator[Verifier]:
    """A verifier for the repository `git_dir` that accepts these keys. It works inside the block only."""
    ssh_keygen = require("ssh-keygen", "kimbox checks signatures with it")
    with temporary_folder("kimbox-keys-") as folder:
        signers = [f'{PRINCIPAL} namespaces="git" {key}\n' for key in keys if not is_gpg(key)]
        (folder / "signers").write_text("".join(signers))
        env = {
            "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_COUNT": "0",
            "GNUPGHOME": str(folder),
        }  # fmt: skip
        gpg = "/bin/false"
        if any(map(is_gpg, keys)):
            gpg = require("gpg", "kimbox checks signatures with it")
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
    """Imports gpg keys into the home folder `folder`. Raises GitError (`bad-public-key`) if gpg refuses one."""
    (folder / "gpg.conf").write_text(_GPG_CONF)
    for key in keys:
        done = run(
            ["gpg", "--homedir", folder, "--quiet", "--import"], input=key, check=False, timeout_s=_IMPORT_TIMEOUT_S
        )
        if not done.ok:
            raise GitError(
                f"gpg does not accept a public key of the spec:\n{tail(done.stderr)}",
                code="bad-public-key",
                hint="check the keys under `verify` in the spec, with `gpg --show-keys FILE`",
            )


def _ssh_flaw(exit_code: int, stderr: str) -> str | None:
    """What is wrong with an ssh signature, by the output of ssh-keygen; None if it is good."""
    if exit_code == 0 and f'Good "git" signature for {PRINCIPAL} with ' in stderr:
        return None
    if match := _GOOD_SSH.search(stderr):
        return f"is signed by a key that the spec does not name ({match[1]})"
    return "has a bad signature: it was made for other content"


def _gpg_flaw(exit_code: int, stderr: str) -> str | None:
    """What is wrong with a gpg signature, by gpg's status lines; None if it is good."""
    status = {line.split(" ")[1]: line for line in stderr.split("\n") if line.startswith("[GNUPG:] ")}
    for word, flaw in _GPG_FLAWS.items():
        if word in status:
            key = status[word].split(" ")[2:3] if word != "BADSIG" else []
            return flaw + (f" ({key[0]})" if key else "")
    if exit_code == 0 and "GOODSIG" in status and "VALIDSIG" in status:
        return None
    return "is signed by a key that the spec does not name"

"""Makes keys and signed commits for tests, with real ssh-keygen, gpg and git."""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs
import makebox

from kimbox.run import run


@attrs.frozen
class Signer:
    """A person with a key. `public` is the key as a spec contains it."""

    public: str
    #: Options with which git signs with the key.
    options: tuple[str, ...]
    env: dict[str, str]

    def sign(self, repository: Path, *args: str) -> str:
        """Runs git in a repository as this person and returns HEAD."""
        env = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"} | self.env
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        run(["git", *identity, *self.options, *args], cwd=repository, env=env, die_with_parent=False)
        return makebox.git(repository, "rev-parse", "HEAD")

    def commit(self, repository: Path, text: str) -> str:
        """Makes a signed commit and returns it."""
        (repository / "a").write_text(text)
        return self.sign(repository, "commit", "-q", "-a", "-S", "-m", "signed")

    def tag(self, repository: Path, name: str, *, force: bool = False) -> None:
        """Makes a signed tag at HEAD."""
        self.sign(repository, "tag", *(["-f"] if force else []), "-s", "-m", "signed", name)


def ssh(folder: Path, name: str, kind: str = "ed25519") -> Signer:
    """Makes a signer with an ssh key."""
    key = folder / name
    run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", f"{name}@example.org", "-f", key])
    options = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={key}")
    return Signer(key.with_suffix(".pub").read_text().strip(), options, {})


def gpg(name: str, home: Path, *, program: str = "gpg", expires: str = "never") -> Signer:
    """Makes a signer with a key of gpg. `home` needs a short path, because gpg's agent listens on a socket in it."""
    home.mkdir(mode=0o700, exist_ok=True)
    base = [program, "--homedir", home, "--batch", "--quiet", "--passphrase", ""]
    run([*base, "--quick-generate-key", f"{name} <{name}@example.org>", "ed25519", "sign", expires])
    public = run([*base, "--armor", "--export", f"{name}@example.org"]).stdout
    options = ("-c", f"user.signingKey={name}@example.org", "-c", f"gpg.program={program}")
    return Signer(public, options, {"GNUPGHOME": str(home)})


def short_folder() -> tempfile.TemporaryDirectory[str]:
    """Makes a temporary folder with a short path."""
    return tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp", ignore_cleanup_errors=True)

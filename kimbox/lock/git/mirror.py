"""Bare git mirrors on the host: where refs become commits, and bundles for the guest come from.

A mirror holds, under refs/kimbox/<commit>, every commit that was ever resolved or locked, so that nothing a lock names
is dropped. Such a ref is written only after a whole fetch: it is the proof that the commit and its history are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.files import locked, remove_tree, sync_folder
from kimbox.lock.git import signature
from kimbox.lock.git.command import Answer, GitError, GoneError, SignatureError, git, redact, show_progress
from kimbox.lock.git.folder import commit_folder
from kimbox.lock.git.refs import COMMIT, Offered, check_ref, check_url, full_name
from kimbox.log import log
from kimbox.run import tail
from kimbox.spec.model import Repository

#: The ref under which a bundle holds its one commit.
PIN_REF = "refs/kimbox/pin"

#: Asking a server for its refs takes no longer.
ASK_TIMEOUT_S = 120

#: The longest a fetch or a bundle may take.
TRANSFER_TIMEOUT_S = 3600

#: A fetch brings one pack, and it is no larger: more is no source code, or is meant to fill the disk.
MAX_PACK_BYTES = 8 << 30

#: How long to wait for another kimbox that works on the same mirror.
BUSY_WAIT_S = 600

#: Where a fetch puts its commit before it gets a ref of its own.
_INCOMING = "refs/kimbox/incoming"

_SEPARATOR = re.compile(r"[/:]")
_NOT_IN_A_SLUG = re.compile(r"[^A-Za-z0-9._-]")


@attrs.frozen
class Pin:
    """A commit and its tree, both as 40 hex digits."""

    commit: str
    tree: str
    #: The full name (refs/tags/v1) of the ref that led there just now, if it was one.
    ref: str | None = attrs.field(default=None, eq=False)


@attrs.frozen
class Mirror:
    """The mirror of one repository. Nothing is made on disk before it is needed."""

    name: str
    url: str
    is_folder: bool
    #: The bare repository.
    path: Path
    #: Whether no server may be asked: what the mirror lacks is an error.
    offline: bool = False
    #: Public keys of which one must have signed each commit that is resolved or ensured, or the tag `ref` at it.
    keys: tuple[str, ...] = ()
    ref: str = ""

    @classmethod
    def of(cls, repository: Repository, *, offline: bool = False) -> Mirror:
        """The mirror that belongs to a repository of a spec; one mirror for each URL or folder."""
        digest = hashlib.sha256(repository.url.encode()).hexdigest()[:16]
        path = paths.mirrors_dir() / f"{slug(repository.url)}-{digest}.git"
        keys = () if repository.is_folder else repository.keys
        return cls(repository.name, repository.url, repository.is_folder, path, offline, keys, repository.ref)

    @property
    def where(self) -> str:
        """How messages name the repository."""
        return f"repository {self.name} ({redact(self.url)})"

    def resolve(self, ref: str) -> Pin:
        """The commit that `ref` (branch, tag, HEAD or 40-hex commit) means just now; it is in the mirror afterwards.

        For a folder: the commit of what it holds now, whatever `ref` is.
        """
        if self.is_folder:
            with self._opened():
                return Pin(*commit_folder(self.name, Path(self.url), self.path))
        if COMMIT.fullmatch(ref):
            return self.ensure(ref)
        check_url(self.name, self.url)
        check_ref(self.name, self.url, ref)
        with self._opened():
            asked = self._remote(["ls-remote", "--", self.url, "HEAD", "refs/heads/*", "refs/tags/*"], ASK_TIMEOUT_S)
            full, target = full_name(self.name, self.url, ref, Offered.parse(asked.stdout.decode(errors="replace")))
            return self._trusted(attrs.evolve(self._pin(target) or self._fetch(full, ref), ref=full))

    def resolve_work_tree(self) -> Pin:
        """`resolve` for a folder that may also be a work tree of git: what it holds now, committed or not."""
        with self._opened():
            return Pin(*commit_folder(self.name, Path(self.url), self.path, is_work_tree=True))

    def present(self) -> Pin:
        """The pin that a folder would get just now; the mirror is left as it is."""
        with tempfile.TemporaryDirectory(prefix="kimbox-folder-") as place:
            apart = attrs.evolve(self, path=Path(place) / "folder.git")
            with apart._opened():  # what the mirror has is not stored anew
                (apart.path / "objects/info").mkdir(exist_ok=True)
                (apart.path / "objects/info/alternates").write_text(f"{self.path / 'objects'}\n")
            return apart.resolve("HEAD")

    def ensure(self, commit: str) -> Pin:
        """Makes sure that the mirror holds a commit in full. Raises GitError naming it if the world has it no more."""
        if not COMMIT.fullmatch(commit):
            raise GitError(f"{self.where}: {commit!r} is no commit of 40 hex digits")
        with self._opened():
            if pin := self._pin(commit):
                return self._trusted(pin)
            if self.is_folder:
                raise GitError(
                    f"{self.where}: this machine's mirror lacks commit {commit}, and a folder keeps no history",
                    hint=f"take its present content with `kimbox lock --update {self.name}`",
                )
            check_url(self.name, self.url)
            if self.offline:
                raise GitError(
                    f"{self.where}: this machine's mirror lacks commit {commit}, and --offline asks no server",
                    hint="without --offline it is fetched",
                )
            return self._trusted(self._fetch_commit(commit))

    def holds(self, commit: str) -> bool:
        """Whether the mirror holds a commit in full; asks no network."""
        return self.held(commit) is not None

    def held(self, commit: str) -> Pin | None:
        """A commit that the mirror holds in full, with its tree; None if it does not. Asks no network."""
        return self._pin(commit) if self.path.is_dir() else None

    def check_signature(self, commit: str) -> None:
        """Raises GitError unless a commit that the mirror holds is signed as it must be. Asks no network for a commit.

        Where the commit is not, a tag of the name `ref` that leads to it may be; one that is not here yet is fetched.
        """
        if not self.keys:
            return
        with signature.verifier(self.path, self.keys) as verify:
            flaws = [verify.commit(commit)]
            if flaws[0] is None:
                return
            for tag in self._tags(commit):
                if (flaw := verify.tag(tag, commit, self.ref)) is None:
                    return
                flaws.append(flaw)
        raise SignatureError(
            f"{self.where}: {'; '.join(flaw for flaw in flaws if flaw)}; the spec wants a signature by "
            + ("its key" if len(self.keys) == 1 else f"one of its {len(self.keys)} keys"),
            hint="ask whoever publishes it; the keys stand in the spec under `verify`",
        )

    def _tags(self, commit: str) -> list[str]:
        """Annotated tags at a commit that are in the mirror, fetched there if there are none."""
        names = f"refs/kimbox-tags/{commit}"
        listing = ["for-each-ref", "--format=%(objectname)", f"{names}/"]
        found = git(listing, git_dir=self.path).text.split()
        if found or self.offline or not self._may_be_tag:
            return found
        short = self.ref.removeprefix("refs/tags/")
        with contextlib.suppress(GitError):
            self._transfer([f"+refs/tags/{short}:{_INCOMING}"])
            tag = git(["rev-parse", "--verify", "--end-of-options", _INCOMING], git_dir=self.path).text
            is_tag = git(["cat-file", "-t", tag], git_dir=self.path).text == "tag"
            if is_tag and self._commit_at(tag) == commit:
                git(["update-ref", "--no-deref", f"{names}/{tag}", tag], git_dir=self.path)
        git(["update-ref", "-d", _INCOMING], git_dir=self.path, check=False)
        return git(listing, git_dir=self.path).text.split()

    def knows_tags(self, commit: str) -> bool:
        """Whether no server can add to what is known of signed tags at a commit."""
        return not self._may_be_tag or bool(self._tags(commit))

    @property
    def _may_be_tag(self) -> bool:
        return not COMMIT.fullmatch(self.ref) and self.ref != "HEAD" and not self.ref.startswith("refs/heads/")

    def _trusted(self, pin: Pin) -> Pin:
        self.check_signature(pin.commit)
        return pin

    def size_bytes(self) -> int:
        """Roughly how much a bundle of everything in the mirror would weigh."""
        return sum(f.stat().st_size for f in (self.path / "objects").rglob("*") if f.is_file())

    def _pin(self, commit: str) -> Pin | None:
        asked = git(
            ["rev-parse", "--verify", "--quiet", "--end-of-options", f"refs/kimbox/{commit}^{{tree}}"],
            git_dir=self.path,
            check=False,
        )
        return Pin(commit, asked.text) if asked.code == 0 and COMMIT.fullmatch(asked.text) else None

    def _keep(self, commit: str) -> Pin:
        git(["update-ref", "--no-deref", f"refs/kimbox/{commit}", commit], git_dir=self.path)
        pin = self._pin(commit)
        if pin is None:
            raise GitError(f"{self.where}: {commit} is in the mirror, but has no tree", hint=f"remove {self.path}")
        return pin

    def _fetch(self, full: str, ref: str) -> Pin:
        """Fetches one ref and keeps the commit it leads to (the one fetched, should the branch have moved just now)."""
        self._transfer([f"+{full}:{_INCOMING}"])
        commit = self._commit_at(_INCOMING)
        git(["update-ref", "-d", _INCOMING], git_dir=self.path)
        if commit is None:
            raise GitError(f"{self.where}: {ref} leads to no commit", hint="a tag may point to a file or a tree")
        return self._keep(commit)

    def _fetch_commit(self, commit: str) -> Pin:
        """Fetches one commit: by its name where the server allows that, else with all branches and tags."""
        with contextlib.suppress(GitError):
            self._transfer([f"+{commit}:{_INCOMING}"])
            git(["update-ref", "-d", _INCOMING], git_dir=self.path)
        if self._commit_at(commit) is None:
            self._transfer(["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"], prune=True)
        if self._commit_at(commit) != commit:
            raise GoneError(
                f"{self.where} no longer has the commit {commit}",
                hint="its branch was force-pushed or deleted, or the URL leads to another repository now; "
                f"take a new commit with `kimbox lock --update {self.name}`",
            )
        return self._keep(commit)

    def _commit_at(self, ref: str) -> str | None:
        asked = git(
            ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"],
            git_dir=self.path,
            check=False,
        )
        return asked.text if asked.code == 0 else None

    def _transfer(self, refspecs: list[str], *, prune: bool = False) -> None:
        args = ["fetch", "--progress", "--no-tags", "--no-write-fetch-head", "--force"]
        self._remote([*args, *(["--prune"] if prune else []), "--", self.url, *refspecs], TRANSFER_TIMEOUT_S)

    def _remote(self, args: list[str], timeout_s: float) -> Answer:
        if self.offline:
            raise GitError(
                f"{self.where} has to be asked, and --offline asks no server", hint="do it without --offline"
            )
        log.now(f"{self.name}: asking {redact(self.url)}")
        try:
            return git(
                args, git_dir=self.path, timeout_s=timeout_s, on_progress=show_progress, file_bytes=MAX_PACK_BYTES
            )
        except GitError as error:
            if "File too large" in error.said:
                hint = "a commit of its own, or a repository without its large files, may be smaller"
                raise GitError(f"{self.where} is larger than {MAX_PACK_BYTES >> 20} MiB", hint=hint) from None
            reason = tail(error.said, 5) or error.message
            raise GitError(f"{self.where} cannot be read:\n{reason}", hint=_why(reason), said=error.said) from None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        """Holds the mirror's lock; makes the mirror if there is none, and clears what a killed git left behind."""
        lock = self.path.with_suffix(".lock")
        with locked(lock, wait_s=BUSY_WAIT_S, busy=f"another kimbox has been busy with {self.where} for too long"):
            if not all((self.path / part).exists() for part in ("HEAD", "config", "objects", "refs")):
                _create(self.path)
            _sweep(self.path)
            yield


def slug(url: str) -> str:
    """What the name of a mirror starts with: the last part of its URL, as a file name."""
    last = _SEPARATOR.split(url.rstrip("/"))[-1].removesuffix(".git")
    return _NOT_IN_A_SLUG.sub("-", last).lstrip(".-")[:40] or "repository"


def write_bundle(mirror: Mirror, commit: str, path: Path) -> None:
    """Writes a git bundle with exactly the history of `commit`, under refs/kimbox/pin, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with mirror._opened():
        if mirror._pin(commit) is None:
            raise GitError(f"{mirror.where}: the mirror does not hold commit {commit}")
        git(["update-ref", "--no-deref", PIN_REF, commit], git_dir=mirror.path)
        try:
            git(
                ["bundle", "create", "--quiet", temporary, PIN_REF],
                git_dir=mirror.path,
                timeout_s=TRANSFER_TIMEOUT_S,
            )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            git(["update-ref", "-d", PIN_REF], git_dir=mirror.path, check=False)


def sweep_mirrors() -> None:
    """Removes what an interrupted creation of a mirror left; for `prune`."""
    if paths.mirrors_dir().is_dir():
        for folder in paths.mirrors_dir().glob(".new-*"):
            remove_tree(folder)


def _create(path: Path) -> None:
    """Makes an empty bare repository at `path`, in one rename; the caller holds the lock of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".new-{path.name}-"
    for leftover in path.parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # its git may just be ending; `prune` takes what stays
            remove_tree(leftover)
    remove_tree(path)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    try:
        git(["init", "--quiet", "--bare", "--template=", temporary])
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def _sweep(path: Path) -> None:
    """Removes git's own lock files and half-written packs: we hold the mirror's lock, so nobody can be using them."""
    stale = [*path.glob("*.lock"), *(path / "refs").rglob("*.lock")]
    stale += [*path.glob("objects/pack/tmp_*"), *path.glob("objects/pack/*.lock")]
    for file in stale:
        with contextlib.suppress(OSError):
            file.unlink()


def _why(reason: str) -> str | None:
    """What to do about the common failures of a transfer."""
    low = reason.lower()
    if "could not read username" in low or "authentication failed" in low or "permission denied" in low:
        return "try `git ls-remote` on it: kimbox uses the same credentials and configuration, but never asks"
    if "could not resolve host" in low or "could not connect" in low or "timed out" in low:
        return "the network, a proxy or the server is at fault; what is already locked needs no network"
    if "host key verification failed" in low:
        return "connect once with ssh by hand, to learn and check the server's key"
    if "not found" in low or "does not exist" in low or "does not appear to be a git repository" in low:
        return "check the URL"
    return None


__all__ = ["PIN_REF", "GitError", "Mirror", "Pin", "sweep_mirrors", "write_bundle"]

"""Bare git mirrors on the host. They resolve refs to commits, and keep these commits.

A mirror holds every resolved or locked commit under refs/kimbox/<commit>, so that git never deletes it. Such a ref is
written only after a complete fetch: if it exists, the mirror has the commit and its whole history.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.files import locked, remove_tree
from kimbox.lock.git import bare, foreign, signature
from kimbox.lock.git.command import Answer, GitError, GoneError, SignatureError, git, redact, show_progress
from kimbox.lock.git.folder import commit_folder
from kimbox.lock.git.reasons import hint_for, is_shallow, reason_of
from kimbox.lock.git.refs import COMMIT, Offered, check_ref, check_url, full_name
from kimbox.log import log
from kimbox.spec.model import Repository
from kimbox.temporary import temporary_folder

#: Timeout of `git ls-remote`, in seconds.
ASK_TIMEOUT_S = 120

#: Timeout of a fetch, and of making a bundle, in seconds.
TRANSFER_TIMEOUT_S = 3600

#: Maximum size of the pack that a fetch writes, in bytes. A hostile server could fill the disk otherwise.
MAX_PACK_BYTES = 8 << 30

#: How long to wait for another kimbox that uses the same mirror, in seconds.
BUSY_WAIT_S = 600

#: The ref that a fetch writes, before the commit gets its own ref.
_INCOMING = "refs/kimbox/incoming"


@attrs.frozen
class Pin:
    """A commit and its tree, each as 40 hex digits."""

    commit: str
    tree: str
    #: Full name (such as refs/tags/v1) of the ref that was resolved to this commit; None for a commit or a folder.
    ref: str | None = attrs.field(default=None, eq=False)


@attrs.frozen
class Mirror:
    """The mirror of one repository. The first method that needs it creates it on disk."""

    name: str
    url: str
    is_folder: bool
    #: The bare repository.
    path: Path
    #: Whether servers must not be contacted. What the mirror lacks is an error then.
    offline: bool = False
    #: Public keys. If there are any, one of them must have signed each resolved commit, or the tag `ref` that names it.
    keys: tuple[str, ...] = ()
    ref: str = ""
    #: For a submodule on another host: the host of the repository of the spec (see `foreign`). Else empty.
    named_by: str = attrs.field(default="", eq=False)

    @classmethod
    def of(cls, repository: Repository, *, offline: bool = False) -> Mirror:
        """The mirror of a repository in a spec. Repositories with the same URL or folder share a mirror."""
        digest = hashlib.sha256(os.fsencode(repository.url)).hexdigest()[:16]
        path = paths.mirrors_dir() / f"{bare.slug(repository.url)}-{digest}.git"
        keys = () if repository.is_folder else repository.keys
        return cls(repository.name, repository.url, repository.is_folder, path, offline, keys, repository.ref)

    @property
    def where(self) -> str:
        """The repository's name and URL, for error messages."""
        return f"repository {self.name} ({redact(self.url)})"

    def resolve(self, ref: str) -> Pin:
        """Resolves `ref` (branch, tag, HEAD or 40-hex commit) to a commit, and fetches it into the mirror.

        For a folder: commits its current content; `ref` is ignored. Raises GitError, for example `ref-not-found` or
        `repository-unreachable`.
        """
        if self.is_folder:
            with self.opened():
                return Pin(*commit_folder(self.name, Path(self.url), self.path))
        if COMMIT.fullmatch(ref):
            return self.ensure(ref)
        check_url(self.name, self.url)
        check_ref(self.name, self.url, ref)
        with self.opened():
            full, target = full_name(self.name, self.url, ref, self.offered(ref))
            return self._verified(attrs.evolve(self._pin(target) or self._fetch(full, ref), ref=full))

    def offered(self, ref: str = "HEAD") -> Offered:
        """The branches and tags of the server, and `ref` if it is the full name of another ref (refs/pull/1/head)."""
        patterns = ["HEAD", "refs/heads/*", "refs/tags/*", *([ref] if ref.startswith("refs/") else [])]
        asked = self._remote(["ls-remote", "--", self.url, *patterns], ASK_TIMEOUT_S)
        offered = Offered.parse(asked.stdout.decode(errors="replace"))
        if offered.is_sha256:
            raise GitError(
                f"{self.where} has SHA-256 commits, and kimbox supports SHA-1 repositories only",
                code="unsupported-repository",
                hint="use a repository that was made with --object-format=sha1",
                fields={"repository": self.name},
            )
        return offered

    def resolve_work_tree(self) -> Pin:
        """`resolve` for a folder that may be a git work tree: its current files, committed or not."""
        with self.opened():
            return Pin(*commit_folder(self.name, Path(self.url), self.path, is_work_tree=True))

    def present(self) -> Pin:
        """The pin that a folder would get now. Does not change the mirror."""
        with temporary_folder("kimbox-folder-") as temporary:
            scratch = attrs.evolve(self, path=temporary / "folder.git")
            with scratch.opened():  # objects that the mirror has are used from there, not copied
                (scratch.path / "objects/info").mkdir(exist_ok=True)
                (scratch.path / "objects/info/alternates").write_bytes(os.fsencode(self.path / "objects") + b"\n")
            return scratch.resolve("HEAD")

    def ensure(self, commit: str) -> Pin:
        """Makes sure that the mirror has a commit and its history; fetches them if necessary.

        Raises GitError: `commit-not-found` if neither the mirror nor the server has the commit, `offline` if a fetch
        is necessary but not allowed.
        """
        if not COMMIT.fullmatch(commit):
            raise GitError(f"{self.where}: {commit!r} is not a commit of 40 hex digits", code="bad-ref")
        with self.opened():
            if pin := self._pin(commit):
                return self._verified(pin)
            if self.is_folder:
                raise GitError(
                    f"{self.where}: this machine's mirror lacks commit {commit}, and a folder keeps no history",
                    code="commit-not-found",
                    hint=f"pin its current content with `kimbox lock --update {self.name}`",
                    fields={"repository": self.name, "commit": commit},
                )
            check_url(self.name, self.url)
            if self.offline:
                raise GitError(
                    f"{self.where}: this machine's mirror lacks commit {commit}, and --offline asks no server",
                    code="offline",
                    hint="run the command without --offline to fetch it",
                    fields={"repository": self.name, "commit": commit},
                )
            return self._verified(self._fetch_commit(commit))

    def holds(self, commit: str) -> bool:
        """Whether the mirror has a commit and its history. Uses no network."""
        return self.held(commit) is not None

    def held(self, commit: str) -> Pin | None:
        """A commit of the mirror, with its tree; None if the mirror lacks it or its history. Uses no network."""
        if not self.path.is_dir():
            return None
        if not bare.is_checked(self.path):
            with self.opened():
                pass
        return self._pin(commit)

    def repair(self, commit: str) -> None:
        """Fetches a commit of a damaged mirror again, with its history. Raises GitError if that is not possible."""
        with self.opened():
            git(["update-ref", "-d", f"refs/kimbox/{commit}"], git_dir=self.path)
            log.warn(f"{self.where}: this machine's mirror is damaged; fetching the commit {commit} again")
            self._fetch_commit(commit, refetch=True)

    def is_whole(self, commit: str) -> bool:
        """Whether the mirror has every object of a commit and its history. Reads all of them."""
        args = ["rev-list", "--objects", "--quiet", commit, "--"]
        return git(args, git_dir=self.path, check=False, timeout_s=TRANSFER_TIMEOUT_S).code == 0

    def check_signature(self, commit: str) -> None:
        """Raises SignatureError unless a commit of the mirror is signed by one of `keys`.

        If the commit is not, the annotated tag `ref` may be signed instead. A tag that the mirror lacks is fetched.
        """
        if not self.keys:
            return
        with signature.verifier(self.path, self.keys) as verify:
            flaw = verify.commit(commit)
            if flaw is None:
                return
            flaws = [flaw]
            for tag in self._tags(commit):
                flaw = verify.tag(tag, commit, self.ref)
                if flaw is None:
                    return
                flaws.append(flaw)
        raise SignatureError(
            f"{self.where}: {'; '.join(flaw.text for flaw in flaws)}; the spec requires a signature by "
            + ("its key" if len(self.keys) == 1 else f"one of its {len(self.keys)} keys"),
            code="signature-missing" if all(flaw.is_missing for flaw in flaws) else "signature-wrong",
            hint="ask the publisher for a signed commit or tag; the keys are in the spec, under `verify`",
            fields={"repository": self.name, "commit": commit},
        )

    def _tags(self, commit: str) -> list[str]:
        """Annotated tags in the mirror that point to a commit. If there are none, the tag `ref` is fetched."""
        names = f"refs/kimbox-tags/{commit}"
        listing = ["for-each-ref", "--format=%(objectname)", f"{names}/"]
        tags = git(listing, git_dir=self.path).text.split()
        if tags or self.offline or not self._may_be_tag:
            return tags
        short = self.ref.removeprefix("refs/tags/")
        with contextlib.suppress(GitError):
            self.fetch([f"+refs/tags/{short}:{_INCOMING}"])
            tag = git(["rev-parse", "--verify", "--end-of-options", _INCOMING], git_dir=self.path).text
            is_tag = git(["cat-file", "-t", tag], git_dir=self.path).text == "tag"
            if is_tag and self._commit_at(tag) == commit:
                git(["update-ref", "--no-deref", f"{names}/{tag}", tag], git_dir=self.path)
        git(["update-ref", "-d", _INCOMING], git_dir=self.path, check=False)
        return git(listing, git_dir=self.path).text.split()

    def knows_tags(self, commit: str) -> bool:
        """Whether the mirror has every tag that could vouch for a commit, so that asking the server is useless."""
        return not self._may_be_tag or bool(self._tags(commit))

    @property
    def _may_be_tag(self) -> bool:
        return not COMMIT.fullmatch(self.ref) and self.ref != "HEAD" and not self.ref.startswith("refs/heads/")

    def _verified(self, pin: Pin) -> Pin:
        self.check_signature(pin.commit)
        return pin

    def size_bytes(self) -> int:
        """Approximate size of a bundle of everything in the mirror, in bytes."""
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
            raise GitError(
                f"{self.where}: {commit} is in the mirror, but its tree is missing",
                code="mirror-damaged",
                hint=f"remove {self.path}; the next command fetches it again",
            )
        return pin

    def _fetch(self, full: str, ref: str) -> Pin:
        """Fetches one ref and keeps its commit. If the branch moved since `ls-remote`, that is the newer commit."""
        self.fetch([f"+{full}:{_INCOMING}"])
        commit = self._commit_at(_INCOMING)
        git(["update-ref", "-d", _INCOMING], git_dir=self.path)
        if commit is None:
            raise GitError(
                f"{self.where}: {ref} does not point to a commit",
                code="ref-not-found",
                hint="a tag can also point to a file or a tree; use another ref in the spec",
                fields={"repository": self.name, "ref": ref},
            )
        return self._keep(commit)

    def _fetch_commit(self, commit: str, *, refetch: bool = False) -> Pin:
        """Fetches one commit: by its id if the server allows that, else by fetching all branches and tags.

        That the mirror has the commit object proves nothing: after a failed or shallow fetch it lacks the history.
        """
        try:
            self.fetch([f"+{commit}:{_INCOMING}"], refetch=refetch)
        except GitError as error:
            if error.code != "repository-unreachable" or "fsck error" in error.stderr:
                raise
        is_whole = self._commit_at(_INCOMING) == commit
        git(["update-ref", "-d", _INCOMING], git_dir=self.path)
        if not is_whole:
            self.fetch(["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"], prune=True, refetch=refetch)
            is_whole = bare.has_history(self.path, [commit, "--not", "--branches", "--tags"])
        if not is_whole:
            raise GoneError(
                f"{self.where} no longer has the commit {commit}",
                code="commit-not-found",
                hint="its branch was force-pushed or deleted, or the URL now belongs to another repository; "
                f"pin a new commit with `kimbox lock --update {self.name}`",
                fields={"repository": self.name, "commit": commit},
            )
        return self._keep(commit)

    def _commit_at(self, ref: str) -> str | None:
        asked = git(
            ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"],
            git_dir=self.path,
            check=False,
        )
        return asked.text if asked.code == 0 else None

    def fetch(self, refspecs: list[str], *, prune: bool = False, refetch: bool = False) -> None:
        """Fetches refs into the mirror. The caller has it `opened`.

        Raises GitError, for example `repository-unreachable`, or `shallow-repository` if the server lacks a part of the
        history: git reports that on stderr only, and writes no ref.
        """
        args = ["fetch", "--progress", "--no-tags", "--no-write-fetch-head", "--force"]
        args += [option for option, is_set in (("--prune", prune), ("--refetch", refetch)) if is_set]
        answer = self._remote([*args, "--", self.url, *refspecs], TRANSFER_TIMEOUT_S)
        if is_shallow(answer.stderr):
            folder = self.url.removeprefix("file://") if self.url.startswith("file:") else "CLONE"
            raise GitError(
                f"{self.where} is a shallow clone: it has only a part of its history, and a box gets all of it",
                code="shallow-repository",
                hint=f"complete it with `git -C {folder} fetch --unshallow`, or name the repository that it was cloned "
                "from (in CI: fetch-depth 0)",
                fields={"repository": self.name},
            )

    def _remote(self, args: list[str], timeout_s: float) -> Answer:
        if self.offline:
            raise GitError(
                f"{self.where} must be contacted, and --offline asks no server",
                code="offline",
                hint="run the command without --offline",
                fields={"repository": self.name},
            )
        log.now(f"{self.name}: contacting {redact(self.url)}")
        try:
            return self._contact(args, timeout_s)
        except GitError as error:
            if error.code == "bad-submodule":
                raise
            if "File too large" in error.stderr:  # strerror(EFBIG), in git's message
                raise GitError(
                    f"{self.where} is larger than {MAX_PACK_BYTES >> 20} MiB",
                    code="repository-too-large",
                    hint="pin a commit (40 hex digits) instead of a branch, or a repository without large files",
                    fields={"repository": self.name},
                ) from None
            reason = reason_of(error.stderr) or error.message
            raise GitError(
                f"{self.where} cannot be read:\n{reason}",
                code=error.code if error.code in ("timeout", "repository-too-large") else "repository-unreachable",
                hint=foreign.hint_for(reason, self.named_by) if self.named_by else hint_for(reason),
                fields={"repository": self.name},
                stderr=error.stderr,
            ) from None

    def _contact(self, args: list[str], timeout_s: float) -> Answer:
        run = functools.partial(
            git, args, git_dir=self.path, timeout_s=timeout_s, on_progress=show_progress, file_bytes=MAX_PACK_BYTES
        )
        if not self.named_by:
            return run()
        is_new = not any(self.path.glob("objects/pack/*.pack"))
        with foreign.access(self.url, self.named_by) as access:
            answer = run(env=access.env, unset=access.unset)
        try:
            foreign.check_redirect(answer, self.url, self.named_by)
        except GitError:
            if is_new:  # git would not ask the server again for a commit whose objects are there
                remove_tree(self.path)
            raise
        return answer

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Holds the mirror's lock. Creates the mirror if it is missing, and removes files that a killed git left."""
        busy = f"another kimbox has been busy with {self.where} for more than {BUSY_WAIT_S:g} s"
        with locked(bare.lock_file(self.path), wait_s=BUSY_WAIT_S, busy=busy):
            bare.prepare(self.path)
            yield

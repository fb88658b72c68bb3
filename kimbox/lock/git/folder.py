"""Commits a plain folder. The commit id depends on the content of the folder only.

Files are stored byte for byte: no filter, line-end conversion, attribute or ignore rule of the user applies. Only the
folder's own .gitignore files exclude files. Author, date and message are constant.

A git work tree can be committed too: its tracked files, as they are on disk, and its untracked files that are not
ignored. Its .git is left out, and with it the history and the filters. A submodule becomes plain files.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from pathlib import Path

from kimbox.lock.git.command import GitError, git
from kimbox.lock.git.reasons import reason_of
from kimbox.log import log

#: Maximum number of files, and maximum size of all files in bytes. A folder is for scripts and small data; more belongs
#: in a git repository or in an image.
MAX_FILES = 20_000
MAX_BYTES = 512 << 20

#: Message, author and date of every such commit. They are constant, so that equal content gives the same commit id.
_MESSAGE = b"The content of a folder, committed by kimbox.\n"
_IDENTITY = {
    "GIT_AUTHOR_NAME": "kimbox",
    "GIT_AUTHOR_EMAIL": "kimbox@localhost",
    "GIT_AUTHOR_DATE": "@0 +0000",
    "GIT_COMMITTER_NAME": "kimbox",
    "GIT_COMMITTER_EMAIL": "kimbox@localhost",
    "GIT_COMMITTER_DATE": "@0 +0000",
}

#: Disables the user's git configuration, which could change content (filters, autocrlf, excludes, signing).
OWN_CONFIG = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_COUNT": "0"}


def commit_folder(name: str, folder: Path, git_dir: Path, *, is_work_tree: bool = False) -> tuple[str, str]:
    """Commits the content of `folder` into the bare repository `git_dir`, under refs/kimbox/<commit>.

    With `is_work_tree`, the folder may be a git work tree. Returns the ids of commit and tree. The caller holds the
    lock of `git_dir`. Raises GitError: `file-not-found`, `file-unreadable`, `folder-content` if it holds what
    cannot be committed (nothing, a device, a link that leads out), `repository-too-large`.
    """
    where = f"repository {name} (folder {folder})"
    if not folder.is_dir():
        raise GitError(
            f"{where}: there is no such folder",
            code="file-not-found",
            hint="create it, or correct its path",
            fields={"repository": name, "path": str(folder)},
        )
    index = git_dir / "kimbox.index"
    env = {**OWN_CONFIG, "GIT_INDEX_FILE": str(index)}
    index.unlink(missing_ok=True)
    try:
        if is_work_tree and (folder / ".git").exists():
            files = _bounded(where, _work_files(where, folder))
        else:
            try:
                _check_kinds(where, folder, git_dir)
            except RecursionError:
                raise _content_error(where, "its folders are nested too deeply") from None
            files = _bounded(where, _files(folder, git_dir))
        entries = _store(where, folder, files, git_dir)
        git(["update-index", "-z", "--index-info"], git_dir=git_dir, env=env, stdin=entries)
        tree = git(["write-tree"], git_dir=git_dir, env=env).text
    except OSError as error:
        raise GitError(
            f"{where} cannot be read: {error}",
            code="file-unreadable",
            hint="check the permissions of its files",
            fields={"repository": name, "path": str(folder)},
        ) from None
    finally:
        index.unlink(missing_ok=True)
    commit = git(
        ["-c", "commit.gpgSign=false", "-c", "i18n.commitEncoding=UTF-8", "commit-tree", tree],
        git_dir=git_dir,
        env={**OWN_CONFIG, **_IDENTITY},
        stdin=_MESSAGE,
    ).text
    git(["update-ref", "--no-deref", f"refs/kimbox/{commit}", commit], git_dir=git_dir, env=OWN_CONFIG)
    return commit, tree


def _content_error(where: str, problem: str, hint: str | None = None) -> GitError:
    return GitError(f"{where}: {problem}", code="folder-content", hint=hint)


def _check_kinds(where: str, folder: Path, git_dir: Path) -> None:
    """Raises GitError if the folder holds what git would silently leave out: a .git, a device, socket or FIFO.

    Only the folder's own .gitignore files may leave something out without an error.
    """
    repositories: list[Path] = []
    special: list[Path] = []
    unreadable: list[Path] = []

    def note(error: OSError) -> None:
        unreadable.append(Path(os.fsdecode(error.filename)))

    for parent, folders, names in os.walk(folder, onerror=note):
        for entry in [*folders, *names]:
            path = Path(parent) / entry
            mode = path.lstat().st_mode
            if entry.lower() == ".git":
                repositories.append(path)
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                special.append(path)
        folders[:] = [entry for entry in folders if entry.lower() != ".git"]
    # Of a .git its folder counts: a .gitignore with the line `.git` does not make the files beside it plain files.
    ignored = _ignored(folder, git_dir, [*special, *unreadable, *(path.parent for path in repositories)])
    for path in repositories:
        if path.parent not in ignored:
            command = f"git -C {shlex.quote(str(path.parent))} remote get-url origin"
            raise _content_error(
                where,
                f"it holds {path.relative_to(folder)}, so it is or contains a git repository",
                f"give its URL and a ref instead: `{command}` prints the URL for colleagues, file://{path.parent} "
                "works on this machine only; or remove .git; or exclude the folder in .gitignore",
            )
    for path in special:
        if path not in ignored:
            problem = f"{path.relative_to(folder)} is neither a file, a folder nor a symbolic link"
            raise _content_error(where, problem, "remove it, or name it in .gitignore")
    for path in unreadable:
        if path not in ignored:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _ignored(folder: Path, git_dir: Path, paths: list[Path]) -> set[Path]:
    """Those of some paths of a folder that its own .gitignore files exclude."""
    names = {os.fsencode(path.relative_to(folder)): path for path in paths if path != folder}
    if not names:
        return set()
    answer = git(
        ["-c", "core.excludesFile=/dev/null", *_at(folder), "check-ignore", "--no-index", "--stdin", "-z"],
        git_dir=git_dir,
        env={**OWN_CONFIG, "GIT_INDEX_FILE": str(git_dir / "kimbox.empty-index")},
        stdin=b"".join(name + b"\0" for name in names),
        check=False,
    )
    if answer.code not in (0, 1):  # 1: none of them is ignored
        raise GitError(f"git check-ignore failed:\n{reason_of(answer.stderr)}", code="git-failed", stderr=answer.stderr)
    return {names[name] for name in answer.stdout.split(b"\0") if name in names}


def _files(folder: Path, git_dir: Path) -> list[bytes]:
    """Paths of all files that the folder's own .gitignore files do not exclude, relative to the folder."""
    empty = {**OWN_CONFIG, "GIT_INDEX_FILE": str(git_dir / "kimbox.empty-index")}
    listed = git(
        [*_at(folder), "ls-files", "-z", "--others", "--exclude-per-directory=.gitignore"],
        git_dir=git_dir,
        env=empty,
    )
    return [name for name in listed.stdout.split(b"\0") if name]


def _at(folder: Path) -> list[str]:
    """Options for a folder as the work tree. Started in a subfolder, git would list its files only, hence -C."""
    return [f"--work-tree={folder}", "-C", str(folder)]


def _work_files(where: str, folder: Path, prefix: bytes = b"") -> list[bytes]:
    """Paths of all files of a work tree that are not ignored, tracked or not, and those of its submodules.

    Logs how each submodule is handled. Files behind a symbolic link to a folder are left out: it may lead anywhere.
    """
    inner = folder / os.fsdecode(prefix)
    listed = git(["-C", inner, "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    files: list[bytes] = []
    for name in sorted({prefix + name.rstrip(b"/") for name in listed.stdout.split(b"\0") if name}):
        path = folder / os.fsdecode(name)
        shown = path.relative_to(folder)
        if not os.path.lexists(path) or any(folder / p != folder and (folder / p).is_symlink() for p in shown.parents):
            continue  # tracked, but deleted from the work tree
        if path.is_symlink() or not path.is_dir():
            if not (path.is_symlink() or path.is_file()):
                raise _content_error(where, f"{shown} is neither a file, a folder nor a symbolic link", "remove it")
            files.append(name)
        elif (path / ".git").exists():
            log.info(f"{where}: the current files of the submodule {shown} are used")
            files += _work_files(where, folder, name + b"/")
        else:
            log.warn(f"{where}: the submodule {shown} is not checked out, so the box will not have it")
    return files


def _bounded(where: str, files: list[bytes]) -> list[bytes]:
    """The files, sorted. Raises GitError if there are none, or more than MAX_FILES."""
    files = sorted(files)
    if not files:
        raise _content_error(where, "it holds no file", "put a file into it, or remove the repository from the spec")
    if len(files) > MAX_FILES:
        raise GitError(
            f"{where}: it holds {len(files)} files, more than the maximum of {MAX_FILES}",
            code="repository-too-large",
            hint="use a git repository",
        )
    return files


def _store(where: str, folder: Path, files: list[bytes], git_dir: Path) -> bytes:
    """Stores each file as a blob, byte for byte. Returns the input of `git update-index --index-info`."""
    modes: dict[bytes, str] = {}
    links: dict[bytes, bytes] = {}
    total = 0
    for name in files:
        path = folder / os.fsdecode(name)
        info = path.lstat()
        total += info.st_size
        if stat.S_ISLNK(info.st_mode):
            modes[name], links[name] = "120000", _link_target(where, folder, path)
        else:
            modes[name] = "100755" if info.st_mode & 0o100 else "100644"
        if b"\n" in name:
            raise _content_error(where, f"the name {os.fsdecode(name)!r} holds a line break", "rename the file")
        if total > MAX_BYTES:
            raise GitError(
                f"{where}: it holds more than {MAX_BYTES >> 20} MiB",
                code="repository-too-large",
                hint="use a git repository",
            )
    plain = [name for name in files if name not in links]
    paths = b"".join(_quoted(os.fsencode(folder) + b"/" + name) + b"\n" for name in plain)
    hashed = git(["hash-object", "-w", "--no-filters", "--stdin-paths"], git_dir=git_dir, env=OWN_CONFIG, stdin=paths)
    blobs = dict(zip(plain, hashed.stdout.split(), strict=True))
    for name, target in links.items():
        blobs[name] = git(
            ["hash-object", "-w", "--stdin"], git_dir=git_dir, env=OWN_CONFIG, stdin=target
        ).stdout.strip()
    return b"".join(modes[n].encode() + b" " + blobs[n] + b"\t" + n + b"\0" for n in files)


def _quoted(path: bytes) -> bytes:
    """A path, quoted for `git hash-object --stdin-paths`: unquoted, git would cut it at a line break or a CR."""
    return b'"' + b"".join(b"\\%03o" % byte if byte < 0x20 or byte in b'"\\' else bytes([byte]) for byte in path) + b'"'


def _link_target(where: str, folder: Path, path: Path) -> bytes:
    """The target of a symbolic link. Raises GitError if it leads out of the folder, or to itself."""
    target = path.readlink()
    shown = f"{path.relative_to(folder)} -> {target}"
    lexical = os.path.normpath(path.relative_to(folder).parent / target)
    root = folder.resolve()
    try:
        is_inside = path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):
        raise _content_error(where, f"the symbolic link {shown} leads back to itself", "remove it") from None
    if target.is_absolute() or lexical == ".." or lexical.startswith("../") or not is_inside:
        raise _content_error(
            where, f"the symbolic link {shown} leads out of the folder", "replace it by a relative link, or by the file"
        )
    return os.fsencode(target)

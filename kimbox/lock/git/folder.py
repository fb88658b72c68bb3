"""A plain folder as a repository: its files become a commit whose id depends on their content and nothing else.

Files are stored byte for byte: no filter, no line-end conversion, no attribute and no ignore rule of the user applies;
only the folder's own .gitignore files say what stays out. Author, date and message are fixed.

A git work tree is taken where somebody works on it: what it tracks, as it lies there now, and what is neither tracked
nor ignored. Its .git is not taken, so neither are its history and filters; a submodule becomes plain files.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kimbox.lock.git.command import GitError, git
from kimbox.log import log

#: A folder repository holds scripts and small data; more belongs into a git repository or an image.
MAX_FILES = 20_000
MAX_BYTES = 512 << 20

#: What every such commit says, so that equal content is an equal commit.
_MESSAGE = b"The content of a folder, committed by kimbox.\n"
_IDENTITY = {
    "GIT_AUTHOR_NAME": "kimbox",
    "GIT_AUTHOR_EMAIL": "kimbox@localhost",
    "GIT_AUTHOR_DATE": "@0 +0000",
    "GIT_COMMITTER_NAME": "kimbox",
    "GIT_COMMITTER_EMAIL": "kimbox@localhost",
    "GIT_COMMITTER_DATE": "@0 +0000",
}

#: Here the user's configuration would change content (filters, autocrlf, excludes, signing): it is left out.
_OWN_CONFIG = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_COUNT": "0"}


def commit_folder(name: str, folder: Path, git_dir: Path, *, is_work_tree: bool = False) -> tuple[str, str]:
    """Commits what `folder` holds into the bare repository `git_dir`, under refs/kimbox/<commit>.

    With `is_work_tree` the folder may be a work tree of git.

    Returns commit and tree. Raises GitError for what cannot or must not be committed. The caller holds the lock.
    """
    where = f"repository {name} (folder {folder})"
    if not folder.is_dir():
        raise GitError(f"{where}: there is no such folder")
    index = git_dir / "kimbox.index"
    env = {**_OWN_CONFIG, "GIT_INDEX_FILE": str(index)}
    index.unlink(missing_ok=True)
    try:
        if is_work_tree and (folder / ".git").exists():
            files = _bounded(where, _work_files(where, folder))
        else:
            _refuse_strange(where, folder)
            files = _bounded(where, _files(folder, git_dir))
        entries = _store(where, folder, files, git_dir)
        git(["update-index", "-z", "--index-info"], git_dir=git_dir, env=env, stdin=entries)
        tree = git(["write-tree"], git_dir=git_dir, env=env).text
    except OSError as error:
        raise GitError(f"{where} cannot be read: {error}") from None
    finally:
        index.unlink(missing_ok=True)
    commit = git(
        ["-c", "commit.gpgSign=false", "-c", "i18n.commitEncoding=UTF-8", "commit-tree", tree],
        git_dir=git_dir,
        env={**_OWN_CONFIG, **_IDENTITY},
        stdin=_MESSAGE,
    ).text
    git(["update-ref", "--no-deref", f"refs/kimbox/{commit}", commit], git_dir=git_dir, env=_OWN_CONFIG)
    return commit, tree


def _refuse_strange(where: str, folder: Path) -> None:
    """Raises GitError for what git would pass over in silence or read otherwise: .git, devices, sockets, FIFOs."""
    for parent, folders, names in os.walk(folder):
        for entry in [*folders, *names]:
            path = Path(parent) / entry
            shown = path.relative_to(folder)
            if entry.lower() == ".git":
                raise GitError(
                    f"{where}: it holds {shown}, so it is or contains a git repository",
                    hint="give its URL (file:///...) and a ref in place of the folder, or remove it",
                )
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise GitError(f"{where}: {shown} is neither a file, a folder nor a symbolic link")


def _files(folder: Path, git_dir: Path) -> list[bytes]:
    """Every file that the folder's own .gitignore files do not leave out."""
    empty = {**_OWN_CONFIG, "GIT_INDEX_FILE": str(git_dir / "kimbox.empty-index")}
    listed = git(
        [f"--work-tree={folder}", "ls-files", "-z", "--others", "--exclude-per-directory=.gitignore"],
        git_dir=git_dir,
        env=empty,
    )
    return [name for name in listed.stdout.split(b"\0") if name]


def _work_files(where: str, folder: Path, prefix: bytes = b"") -> list[bytes]:
    """Every file of a work tree that is there and not ignored, tracked or not; those of its submodules too.

    Tells of each submodule what comes of it. A link in a path is not followed: behind it may be anything.
    """
    inner = folder / os.fsdecode(prefix)
    listed = git(["-C", inner, "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    files: list[bytes] = []
    for name in sorted({prefix + name.rstrip(b"/") for name in listed.stdout.split(b"\0") if name}):
        path = folder / os.fsdecode(name)
        shown = path.relative_to(folder)
        if not os.path.lexists(path) or any(folder / p != folder and (folder / p).is_symlink() for p in shown.parents):
            continue  # deleted since
        if path.is_symlink() or not path.is_dir():
            if not (path.is_symlink() or path.is_file()):
                raise GitError(f"{where}: {shown} is neither a file, a folder nor a symbolic link")
            files.append(name)
        elif (path / ".git").exists():
            log.info(f"{where}: of the submodule {shown} its files are taken as they are")
            files += _work_files(where, folder, name + b"/")
        else:
            log.warn(f"{where}: the submodule {shown} is not checked out, and will be missing")
    return files


def _bounded(where: str, files: list[bytes]) -> list[bytes]:
    """The files, sorted. Raises GitError if they are none or too many."""
    files = sorted(files)
    if not files:
        raise GitError(f"{where}: it holds no file")
    if len(files) > MAX_FILES:
        raise GitError(f"{where}: it holds {len(files)} files; {MAX_FILES} are the most", hint="use a git repository")
    return files


def _store(where: str, folder: Path, files: list[bytes], git_dir: Path) -> bytes:
    """Stores each file as a blob, byte for byte, and returns the lines of `git update-index --index-info`."""
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
            raise GitError(f"{where}: the name {os.fsdecode(name)!r} holds a line break")
        if total > MAX_BYTES:
            raise GitError(f"{where}: it holds more than {MAX_BYTES >> 20} MiB", hint="use a git repository")
    plain = [name for name in files if name not in links]
    paths = b"".join(_quoted(os.fsencode(folder) + b"/" + name) + b"\n" for name in plain)
    hashed = git(["hash-object", "-w", "--no-filters", "--stdin-paths"], git_dir=git_dir, env=_OWN_CONFIG, stdin=paths)
    blobs = dict(zip(plain, hashed.stdout.split(), strict=True))
    for name, target in links.items():
        blobs[name] = git(
            ["hash-object", "-w", "--stdin"], git_dir=git_dir, env=_OWN_CONFIG, stdin=target
        ).stdout.strip()
    return b"".join(modes[n].encode() + b" " + blobs[n] + b"\t" + n + b"\0" for n in files)


def _quoted(path: bytes) -> bytes:
    """A path as `git hash-object --stdin-paths` takes it whole: unquoted, it ends at a line break or before a CR."""
    return b'"' + b"".join(b"\\%03o" % byte if byte < 0x20 or byte in b'"\\' else bytes([byte]) for byte in path) + b'"'


def _link_target(where: str, folder: Path, path: Path) -> bytes:
    """A symbolic link's target. Raises GitError if it leads out: in the guest it would mean another file."""
    target = path.readlink()
    shown = f"{path.relative_to(folder)} -> {target}"
    lexical = os.path.normpath(path.relative_to(folder).parent / target)
    root = folder.resolve()
    try:
        inside = path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):
        raise GitError(f"{where}: the symbolic link {shown} goes round in circles") from None
    if target.is_absolute() or lexical == ".." or lexical.startswith("../") or not inside:
        raise GitError(
            f"{where}: the symbolic link {shown} leads out of the folder", hint="make it relative, or a file"
        )
    return os.fsencode(target)

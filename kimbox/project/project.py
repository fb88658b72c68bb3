"""A project: a spec, the path of its lock, and whether a command may write the lock and contact servers."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.spec import urls
from kimbox.spec.model import Box, Repository


@attrs.frozen
class Project:
    """The spec that a command works on, and how it treats the lock."""

    box: Box
    #: Name of the box if it ships with kimbox; None if the spec is the user's own file.
    shipped: str | None = None
    #: The lock is never written: it is an error if the lock is missing or does not match the spec.
    frozen: bool = False
    #: No server is contacted: it is an error if something is missing in the mirrors, the image store or the caches.
    offline: bool = False
    #: The lock, in place of the one beside the spec.
    lock_file: Path | None = None

    @property
    def name(self) -> str:
        """The name of the box."""
        return self.box.name

    @property
    def source(self) -> Path:
        """The file of the spec."""
        return self.box.source

    @property
    def lock_path(self) -> Path:
        """The path of the lock: beside the spec. Each box of a spec with several has one: kimbox.director.lock.

        For a shipped box it is in kimbox's home, because the user may not be able to write the folder of the spec. If
        the spec is a symbolic link, the lock is beside the file that the link leads to, so that one spec has one lock,
        unless there is a lock beside the link. A lock that is a link is not replaced, but the file that it leads to.
        """
        if self.lock_file is not None:
            return self.lock_file
        if self.shipped is not None:
            return paths.locks_dir() / f"{self.name}.lock"
        suffix = f".{self.box.member}.lock" if self.box.member else ".lock"
        lock = self.source.with_suffix(suffix)
        if self.source.is_symlink() and not os.path.lexists(lock):
            lock = self.source.resolve().with_suffix(suffix)
        return lock.resolve() if lock.is_symlink() else lock

    def local_repositories(self) -> list[Repository]:
        """The repositories of this machine (`file:`) that are outside of the folder of the spec.

        Whoever wrote the spec could name a private repository of this user.
        """
        inside = os.path.realpath(self.box.source.parent)
        folders = ((repository, urls.local_folder(repository.url)) for repository in self.box.repositories)
        return [
            repository
            for repository, folder in folders
            if folder is not None and not Path(os.path.realpath(folder)).is_relative_to(inside)
        ]

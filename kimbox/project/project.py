"""A project: a spec, where its lock lies, and how far a command may go to find what spec and lock name."""

from __future__ import annotations

from pathlib import Path

import attrs

from kimbox import paths
from kimbox.spec.model import Box


@attrs.frozen
class Project:
    """The spec that a command works on, and how it treats the lock."""

    box: Box
    #: Name of the box if it ships with kimbox; None if the spec is a file of the user's.
    shipped: str | None = None
    #: The lock is used as it is and never written: a lock that is missing or disagrees with the spec is an error.
    frozen: bool = False
    #: No server is contacted: what mirrors, image store and caches lack is an error.
    offline: bool = False

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
        """The lock: beside the spec; for a shipped box, whose folder is not the user's, in kimbox's home."""
        if self.shipped is not None:
            return paths.locks_dir() / f"{self.name}.lock"
        return self.source.with_suffix(".lock")

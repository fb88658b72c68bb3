"""Every path kimbox uses, on disk and inside the wheel, is named here and nowhere else.

What belongs to the user lives below one folder (`home()`): images, machines, git mirrors. `KIMBOX_HOME` moves it.
"""

from __future__ import annotations

import os
from pathlib import Path

#: Name of the spec that a verb without an argument means, and of the lock beside it.
SPEC_NAME = "kimbox.yaml"
LOCK_NAME = "kimbox.lock"


def data_dir() -> Path:
    """The folder that holds boxes/, provisioners/, schemas/ and Vagrantfile.j2: in a wheel, or in a checkout."""
    package = Path(__file__).resolve().parent
    packed = package / "_data"
    return packed if packed.is_dir() else package.parent


def boxes_dir() -> Path:
    """Box specs that ship with kimbox."""
    return data_dir() / "boxes"


def provisioners_dir() -> Path:
    """What runs inside a guest."""
    return data_dir() / "provisioners"


def schemas_dir() -> Path:
    """JSON Schemas of every file format kimbox reads or writes."""
    return data_dir() / "schemas"


def home() -> Path:
    """Where everything of this user lives: $KIMBOX_HOME, or the platform's data folder (XDG base directories)."""
    if override := os.environ.get("KIMBOX_HOME"):
        return Path(override).absolute()
    import platformdirs

    return platformdirs.user_data_path("kimbox")


def machines_dir() -> Path:
    """One folder a machine."""
    return home() / "machines"


def images_dir() -> Path:
    """The content-addressed image store."""
    return home() / "images"


def mirrors_dir() -> Path:
    """Bare git mirrors of every repository a spec names."""
    return home() / "mirrors"


def archives_dir() -> Path:
    """The package lists of every set of apt sources that was asked."""
    return home() / "archives"


def packages_dir() -> Path:
    """The cache of .deb files, by their sha256; shared by all boxes."""
    return home() / "packages"


def locks_dir() -> Path:
    """Locks of shipped boxes, whose own folder is not the user's to write to."""
    return home() / "locks"


def boxes_file(name: str) -> Path:
    """What is known of a box that was added; `name` holds no slash."""
    return home() / "boxes" / f"{name}.json"


def downloads_dir() -> Path:
    """Images taken from a `location`, complete and in progress."""
    return home() / "downloads"


def vagrant_dir() -> Path:
    """VAGRANT_HOME of the machines that Vagrant runs: its boxes, apart from those of the user."""
    return home() / "vagrant"


def host_facts_file() -> Path:
    """What was found out about this host by trying it (acceleration)."""
    return home() / "host.json"

"""All paths that kimbox uses, on disk and inside the wheel.

The user's data (images, machines, git mirrors) is below one folder, `home()`. The environment variable KIMBOX_HOME
selects another one.
"""

from __future__ import annotations

import os
from pathlib import Path

#: File name of the spec that a command uses by default, and of its lock.
SPEC_NAME = "kimbox.yaml"
LOCK_NAME = "kimbox.lock"


def spec_file(folder: Path) -> Path | None:
    """The spec that a command in `folder` uses: that of the folder, or the nearest one above; None without one.

    The path of one above is absolute. The search ends at the root of a git work tree, below the user's home, and at the
    boundary of a file system. A spec above that neither the user, root nor the owner of `folder` owns is not used: in a
    folder such as /tmp, anyone can write one.
    """
    if os.path.lexists(folder / SPEC_NAME):
        return folder / SPEC_NAME
    try:
        here = folder.resolve(strict=True)
        start, home = here.stat(), os.path.realpath(os.path.expanduser("~"))  # noqa: PTH111 - it may be unset
        while not (here / ".git").exists() and here != here.parent and str(here) != home:
            here = here.parent
            if here.stat().st_dev != start.st_dev or str(here) == home:
                return None
            if os.path.lexists(here / SPEC_NAME):
                owner = (here / SPEC_NAME).lstat().st_uid
                is_trusted = owner in (0, os.geteuid(), start.st_uid)
                return here / SPEC_NAME if is_trusted else None
    except OSError:  # a folder above may not be readable
        pass
    return None


def data_dir() -> Path:
    """The folder with boxes/, examples/, provisioners/, schemas/ and the templates: in a wheel, or in a checkout."""
    package = Path(__file__).resolve().parent
    packed = package / "_data"
    return packed if packed.is_dir() else package.parent


def boxes_dir() -> Path:
    """The folder of the box specs that ship with kimbox."""
    return data_dir() / "boxes"


def examples_dir() -> Path:
    """The folder of the examples of jobs that ship with kimbox."""
    return data_dir() / "examples"


def provisioners_dir() -> Path:
    """The folder of the provisioners: the files that run inside a guest."""
    return data_dir() / "provisioners"


def schemas_dir() -> Path:
    """The folder of the JSON Schemas of all file formats that kimbox reads or writes."""
    return data_dir() / "schemas"


def home() -> Path:
    """The folder of this user's data: $KIMBOX_HOME, or the platform's data folder (XDG base directories)."""
    if override := os.environ.get("KIMBOX_HOME"):
        return Path(override).absolute()
    import platformdirs

    return platformdirs.user_data_path("kimbox")


def machines_dir() -> Path:
    """The folder of the machines: a subfolder for each machine."""
    return home() / "machines"


def templates_dir() -> Path:
    """The folder of the templates, from which clones start."""
    return home() / "templates"


def images_dir() -> Path:
    """The content-addressed image store."""
    return home() / "images"


def local_use_file() -> Path:
    """The file with the repositories of this machine of which the user was warned, see `project.localuse`."""
    return home() / "local.json"


def mirrors_dir() -> Path:
    """The folder of the git mirrors: a bare repository for each repository of a spec."""
    return home() / "mirrors"


def archives_dir() -> Path:
    """The folder of package lists: a subfolder for each set of apt sources."""
    return home() / "archives"


def packages_dir() -> Path:
    """The cache of .deb files. All boxes share it; a file's name is its sha256."""
    return home() / "packages"


def locks_dir() -> Path:
    """The folder of the locks of shipped boxes. The user cannot write to the folder of their specs."""
    return home() / "locks"


def boxes_file(name: str) -> Path:
    """The record of an added box. `name` contains no slash."""
    return home() / "boxes" / f"{name}.json"


def downloads_dir() -> Path:
    """The folder of images downloaded from a `location`, complete and incomplete."""
    return home() / "downloads"


def vagrant_dir() -> Path:
    """VAGRANT_HOME for machines of the driver vagrant. It keeps their boxes apart from the user's own."""
    return home() / "vagrant"


def cloud_dir() -> Path:
    """The folder in which images are prepared for a cloud, with the locks of those that publish them."""
    return home() / "cloud"


def submissions_dir() -> Path:
    """The folder of the jobs that were submitted to a pool: a subfolder for each submission."""
    return home() / "submissions"


def host_facts_file() -> Path:
    """The cached result of the acceleration test of this host."""
    return home() / "host.json"

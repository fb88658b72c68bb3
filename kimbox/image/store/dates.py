"""The date of an image's packages, from small files of the store: fast, because `list` reads it for each machine."""

from __future__ import annotations

import contextlib
import re

from kimbox import paths
from kimbox.errors import KimboxError
from kimbox.files import read_json

#: Names of the files of an image with its facts, and with the locked packages if kimbox built it.
FACTS = "image.json"
PACKAGES = "packages.json"

#: Folder with the small files of an added box, and its description, if kimbox packaged it.
BOX_FOLDER = "box"
DESCRIPTION = "kimbox.json"

#: Maximum number of images in a chain of maintained images.
MAX_CHAIN = 100

#: An image's key, which is also the name of its folder.
_KEY = re.compile(r"[0-9a-f]{16,64}")


def packages_as_of(key: str) -> str | None:
    """The date of the packages of an image, or of the image that a maintainer changed. None if it is not known.

    It is in the lock of an image that kimbox built, and in the description of a box that kimbox packaged. The text of a
    box is not checked.
    """
    for _ in range(MAX_CHAIN):
        for name in (PACKAGES, f"{BOX_FOLDER}/{DESCRIPTION}"):
            with contextlib.suppress(OSError, KimboxError):
                as_of = read_json(paths.images_dir() / key / name).get("as_of")
                return as_of if isinstance(as_of, str) else None
        former = None
        with contextlib.suppress(OSError, KimboxError):
            former = read_json(paths.images_dir() / key / FACTS).get("former")
        if not isinstance(former, str) or not _KEY.fullmatch(former):
            return None
        key = former
    return None

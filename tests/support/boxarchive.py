"""Reads the boxes that kimbox packs."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from kimbox.image.formats import compressed


def opened(box: Path) -> tarfile.TarFile:
    """Returns the archive in a box, whatever its compression. The content of the box is in memory."""
    with box.open("rb") as file:
        return tarfile.open(fileobj=io.BytesIO(b"".join(compressed.pieces(file, 1 << 30))))

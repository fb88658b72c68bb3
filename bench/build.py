"""Time to build an image, compared with mmdebstrap alone with the same packages: medians, with warm caches.

    python -m bench.build [-n 5] [--box minimal]

Neither program downloads packages: kimbox has them in its cache, mmdebstrap in the apt cache of the new root. But
mmdebstrap downloads the package lists of the archives, which kimbox does in `kimbox lock`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench import stock
from bench.common import locked, medians, options, shipped, show, work_folder
from kimbox.image import namespace, obtain
from kimbox.lock.apt import cache
from kimbox.lock.apt import sources as apt
from kimbox.lock.apt.packages import LockedPackages
from kimbox.spec.model import PackageImage

#: Maximum ratio of the build to mmdebstrap alone.
LIMIT = 1.3


def apt_cache(packages: LockedPackages, folder: Path) -> None:
    """Links every .deb to a new folder, with the file name that apt expects."""
    folder.mkdir()
    for name, package in packages.versions.items():
        version = package.version.replace(":", "%3a")
        os.link(cache.deb_of(package), folder / f"{name}_{version}_{package.architecture}.deb")


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, box="minimal")
    box = shipped(arguments.box)
    if not isinstance(box.image, PackageImage):
        raise SystemExit(f"{arguments.box} is not built from packages")
    packages = locked(box)
    recipe = obtain.recipe_of(box, packages)
    cache.ensure(box.image, recipe.locked)
    times: dict[str, list[float]] = {"mmdebstrap alone": [], "kimbox build": []}
    with work_folder() as work:
        sources = work / "sources.list"
        lines = [source.line() for source in apt.sources(recipe.distribution, recipe.suite, box.image.mirror)]
        sources.write_text("\n".join(lines) + "\n")
        apt_cache(recipe.locked, work / "debs")
        fill = f'mkdir -p "$1/var/cache/apt/archives" && cp {work}/debs/*.deb "$1/var/cache/apt/archives/"'
        image = obtain.ensure(box, packages)
        for _ in range(arguments.n):
            started = time.monotonic()
            stock.install(box.image.suite, recipe.packages, work / "root", sources, [f"--setup-hook={fill}"])
            times["mmdebstrap alone"].append(time.monotonic() - started)
            namespace.remove(work / "root")
            namespace.remove(image.disk.parent)
            started = time.monotonic()
            image = obtain.ensure(box, packages)
            times["kimbox build"].append(time.monotonic() - started)
    median = medians(times, 1)
    ratio = round(median["kimbox build"] / median["mmdebstrap alone"], 2)
    show({"median_s": median, "ratio": ratio, "limit": LIMIT, "ok": ratio <= LIMIT, "all_s": times})


if __name__ == "__main__":
    main()

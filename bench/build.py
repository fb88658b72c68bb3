"""How long an image takes against mmdebstrap alone with the same packages, medians, taken in turns.

python -m bench.build [-n 5] [--box minimal]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench import stock
from bench.common import medians, options, shipped, show
from kimbox import paths
from kimbox.image import namespace, store
from kimbox.image.recipe import recipe
from kimbox.lock import apt
from kimbox.spec.model import PackageImage


def main() -> None:
    """Measures and prints one JSON object."""
    asked = options(__doc__, box="minimal")
    box = shipped(asked.box)
    if not isinstance(box.image, PackageImage):
        raise SystemExit(f"{asked.box} is not built from packages")
    plan = recipe(box, box.image)
    times: dict[str, list[float]] = {"mmdebstrap alone": [], "kimbox build": []}
    with tempfile.TemporaryDirectory(prefix="kimbox-bench-") as folder, tempfile.TemporaryDirectory() as home:
        work = Path(folder)
        sources = work / "sources.list"
        lines = [source.line() for source in apt.sources(plan.distribution, plan.suite, plan.mirror)]
        sources.write_text("\n".join(lines) + "\n")
        for _ in range(asked.n):
            started = time.monotonic()
            stock.install(box.image.suite, plan.packages, work / "root", sources, [])
            times["mmdebstrap alone"].append(time.monotonic() - started)
            namespace.remove(work / "root")
            paths.home = lambda home=home: Path(home)  # a store of its own, so that nothing is there yet
            started = time.monotonic()
            image = store.ensure(box)
            times["kimbox build"].append(time.monotonic() - started)
            namespace.remove(image.disk.parent)
    median = medians(times, 1)
    ratio = round(median["kimbox build"] / median["mmdebstrap alone"], 2)
    show({"median_s": median, "ratio": ratio, "all_s": times})


if __name__ == "__main__":
    main()

"""kimbox compared with Vagrant, with the same disk: `up` of a new machine, `status`, a command over ssh, and `package`.

    python -m bench.vagrant [-n 3]

The box is `minimal`. kimbox runs it with its driver qemu. Vagrant runs it with libvirt, in a folder that
`kimbox render` wrote, from a .box with the same image. Before the measurement, both have the image: kimbox in its
store, Vagrant among its boxes and in the pool of libvirt. Each round creates a new machine with both programs,
measures, and removes it. A ratio is the median of the ratios of all rounds. libvirt must be running. The domain type is
qemu if KVM does not work.
`vagrant package` needs virt-sysprep and virt-sparsify (guestfs-tools in Debian). Without them it is not measured, and
`ok` is false.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.common import medians, options, progress, ratio, show, work_folder
from kimbox import paths
from kimbox.actions import vagrant_export
from kimbox.drivers import accelerator
from kimbox.drivers.vagrant import libvirt
from kimbox.image import obtain
from kimbox.image.formats import boxwriter
from kimbox.project.pins import lock_for
from kimbox.project.project import Project
from kimbox.render.vagrantfile import box_name
from kimbox.run import run, which
from kimbox.spec.load import load_box

#: Maximum ratios of kimbox to Vagrant. The result also shows the first command over ssh separately, because later
#: commands use the same connection.
LIMITS = {"up": 0.7, "status": 0.35, "ssh": 0.35, "package": 0.5, "package size": 0.95}

NAME = "bench-vagrant"
SPEC = f"kimbox: 1\nname: {NAME}\nbase: [minimal.yaml]\n"

#: Repetitions of `status` and `ssh` in a round.
REPETITIONS = 3

Row = dict[str, list[float]]


def timed(row: Row, what: str, argv: list[str], folder: Path, env: dict[str, str]) -> None:
    """Runs a program and adds its duration, in seconds, to the row `what`."""
    started = time.monotonic()
    run(argv, cwd=folder, env=env, timeout_s=600)
    row.setdefault(what, []).append(time.monotonic() - started)
    progress(f"{argv[0].rpartition('/')[2]} {what}: {row[what][-1]:.2f} s")


def turn(row: Row, program: list[str], folder: Path, env: dict[str, str]) -> None:
    """Creates, measures and removes one machine, with kimbox or Vagrant."""
    is_vagrant = program == ["vagrant"]
    try:
        timed(row, "up", [*program, "up", *(["--provider=libvirt"] if is_vagrant else [])], folder, env)
        for count in range(REPETITIONS):
            timed(row, "status", [*program, "status"], folder, env)
            timed(row, "ssh", [*program, "ssh", *(["-c", "true"] if is_vagrant else ["--", "true"])], folder, env)
            if count == 0:
                row.setdefault("first ssh", []).append(row["ssh"][-1])
        if which("virt-sysprep"):
            packaged(row, program, folder, env)
    finally:
        run([*program, "destroy", "-f" if is_vagrant else "-y"], cwd=folder, env=env, check=False)


def packaged(row: Row, program: list[str], folder: Path, env: dict[str, str]) -> None:
    """Halts and packages the machine. Adds the duration and the size of the package to the row."""
    run([*program, "halt"], cwd=folder, env=env, timeout_s=600)
    out = folder / "package"
    out.mkdir(exist_ok=True)
    options = ["--output", str(out / "vagrant.box" if program == ["vagrant"] else out)]
    timed(row, "package", [*program, "package", *options], folder, env)
    (box,) = out.glob("*.box")
    row.setdefault("package size", []).append(box.stat().st_size)
    shutil.rmtree(out)


@contextmanager
def prepared() -> Iterator[tuple[Path, dict[str, str]]]:
    """Yields a folder with the spec, and the environment of both programs.

    Its subfolder `vagrant` has the Vagrantfile. Vagrant and libvirt have the box.
    """
    with work_folder() as folder:
        (folder / "kimbox.yaml").write_text(SPEC)
        box = load_box(folder / "kimbox.yaml")
        project = Project(box)
        image = obtain.ensure(box, lock_for(project).recipe)
        vagrant_export.render([vagrant_export.ExportRequest(project)], folder / "vagrant")
        boxwriter.libvirt(image.disk, image.format, folder / f"vagrant/{NAME}.box")
        driver = "kvm" if accelerator.find().name == "kvm" else "qemu"
        env = {
            "VAGRANT_HOME": str(folder / "home"), "VAGRANT_CHECKPOINT_DISABLE": "1", "KIMBOX_LIBVIRT_DRIVER": driver,
            "KIMBOX_HOME": str(paths.home()), "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        if driver != "kvm":  # libguestfs tries KVM if it can open /dev/kvm
            env |= {"LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}
        try:
            turn({}, ["vagrant"], folder / "vagrant", env)  # uploads the image
            yield folder, env
        finally:
            libvirt.remove_image(box_name(NAME, image.key))


def main() -> None:
    """Measures and prints one JSON object."""
    n = options(__doc__, n=3).n
    if not libvirt.virsh("version", check=False).ok:
        raise SystemExit("libvirt does not answer (`kimbox doctor` checks it)")
    kimbox: Row = {}
    vagrant: Row = {}
    with prepared() as (folder, env):
        turns = [
            (kimbox, [sys.executable, "-m", "kimbox"], folder),
            (vagrant, ["vagrant"], folder / "vagrant"),
        ]
        for _ in range(n):
            for row, program, where in turns:
                turn(row, program, where, env)
            turns.reverse()  # so that neither finds the image in the page cache more often
    ratios = {what: ratio(kimbox[what], vagrant[what]) for what in kimbox}
    show(
        {
            "kimbox_s": medians(kimbox),
            "vagrant_s": medians(vagrant),
            "ratio": ratios,
            "limit": LIMITS,
            "ok": all(ratios.get(what, math.inf) <= limit for what, limit in LIMITS.items()),
        }
    )


if __name__ == "__main__":
    main()

"""A saved box in place of a spec: its disk becomes an image of the store, from which clones and jobs start.

The image is made once for each save, and has neither a machine-id nor seeds: each machine gets its own. Its folder has
spec and lock of the save, too. `prune` removes it when no machine uses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import attrs

from kimbox import paths
from kimbox.actions.saves import found, specs
from kimbox.actions.saves.restore import SPEC_FOLDER, Making, RestoreRequest
from kimbox.files import private_dir, remove_tree, sync_file
from kimbox.image.saves import manifest as manifests
from kimbox.image.saves.manifest import Manifest
from kimbox.image.store import images, lease
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.project.project import Project
from kimbox.run import run
from kimbox.spec.load import load_box
from kimbox.spec.model import SavedImage
from kimbox.transfer.stores.base import Store
from kimbox.transfer.stores.opening import open_store


def project(request: RestoreRequest) -> Project:
    """Returns the project of a saved box, whose image is the saved disk. The image is made if it is not here.

    An interrupted run continues with what it has fetched. Raises the errors of `restore`.
    """
    store = open_store(request.url)
    with contextlib.closing(store):
        manifest, data = found.require(store, request.number)
        if request.keys:
            found.check_signature(store, manifest.number, data, request.keys)
        digest = manifests.digest_of(data)
        key = hashlib.sha256(f"saved box {digest}".encode()).hexdigest()
        with lease.shared(key):
            if images.find(key) is None:
                _make(request, store, manifest, digest, key)
        return _project(key, manifest, offline=request.offline)


def _project(key: str, manifest: Manifest, *, offline: bool) -> Project:
    spec = images.folder(key) / SPEC_FOLDER / paths.SPEC_NAME
    box = load_box(spec, specs.settings_of(load_box(spec), manifest))
    return Project(attrs.evolve(box, image=SavedImage(key, manifest.base.image, box.image)), offline=offline)


def _make(request: RestoreRequest, store: Store, manifest: Manifest, digest: str, key: str) -> None:
    """Makes the image of a save, by way of the disk of a machine that is never finished."""
    private_dir(paths.machines_dir())
    machine = Machine(f"saved-{key[:16]}")
    with machine.locked(), log.step(f"fetching {manifest.machine} from save {manifest.number} in {store.url}"):
        making = Making(request, store, manifest, digest, machine)
        with making.filled(None):
            images.publish(key, lambda work: _image(making, work))
        remove_tree(machine.unfinished)


def _image(making: Making, work: Path) -> dict[str, Any]:
    """Fills the workspace of an image with the disk, the spec and the lock. Returns the facts of the image."""
    disk = work / images.DONE / images.DISKS["raw"]
    source = making.folder / making.machine.disk.name
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", source, disk], timeout_s=None)
    os.chmod(disk, 0o600)  # noqa: PTH101
    sync_file(disk)
    shutil.copytree(making.folder / SPEC_FOLDER, work / images.DONE / SPEC_FOLDER, symlinks=True)
    size_bytes = making.manifest.disk.size_bytes
    return {"format": "raw", "virtual_bytes": size_bytes, "location": making.store.url}

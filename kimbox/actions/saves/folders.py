"""The folders of a saved box: repositories of its spec that are folders of the saving host, such as `./setup`.

Another host has no such folder. A save has the content of each as a bundle of the commit that the lock pins. Its spec
and its lock name `./repositories/NAME` instead, which is the content of that commit again: the commit of a folder
depends on its content only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from kimbox.errors import ImageError, KimboxError
from kimbox.files import parse_json, remove_tree
from kimbox.image.saves import manifest as manifests
from kimbox.image.saves.manifest import Folder, Stored
from kimbox.lock.git.bundle import PIN_REF, write_bundle
from kimbox.lock.git.command import git
from kimbox.lock.git.folder import MAX_BYTES, MAX_FILES, OWN_CONFIG
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import parse_lock
from kimbox.log import log
from kimbox.machine.delivered_locks import Kept
from kimbox.spec import urls
from kimbox.spec.model import Box, Repository
from kimbox.transfer.stores.base import READ_BYTES, Store

#: Subfolder with the folders, beside the spec of a box that was made of a save.
REPOSITORIES = "repositories"

#: Disables every conversion of content that a .gitattributes file in a commit asks for (gitattributes(5)).
_NO_CONVERSION = "* -text -eol -ident -filter -working-tree-encoding\n"


def packed(
    kept: Kept, source: Path, put: Callable[[str, str, Callable[[], Path]], Stored], work: Path
) -> tuple[Kept, dict[str, Folder]]:
    """Returns spec and lock of a machine for another host, and the folders that are stored with them.

    `source`: the spec that the machine was made from. `put` stores the bundle of a folder, given its name, its commit
    and the function that makes the bundle, unless the former save has it. `work`: a folder for bundles. Raises GitError
    (`commit-not-found`) if the mirror of a folder has lost it.
    """
    lock = parse_lock(kept.lock.decode(), source)[0]
    pins = {name: pin for name, pin in lock.repositories.items() if urls.is_folder(pin.url)}
    if not pins or not kept.spec:
        return kept, {}
    folders = {}
    for name, pin in pins.items():
        folder = os.path.normpath(source.parent / pin.url)
        mirror = Mirror.of(Repository(name, folder, is_folder=True, ref="", path=""))
        make = functools.partial(_bundle, mirror, pin.commit, work / "bundle")
        folders[name] = Folder(pin.commit, put(name, pin.commit, make))
    moved = {name: attrs.evolve(pin, url=_url(name)) for name, pin in pins.items()}
    spec = json.loads(kept.spec)
    for name in pins:
        spec["repositories"][name]["url"] = _url(name)
    lock = attrs.evolve(lock, repositories={**lock.repositories, **moved})
    return attrs.evolve(kept, spec=json.dumps(spec).encode(), lock=lock.text.encode()), folders


def _bundle(mirror: Mirror, commit: str, target: Path) -> Path:
    write_bundle(mirror, commit, target)
    return target


def _url(name: str) -> str:
    return f"./{REPOSITORIES}/{name}"


def unpack(store: Store, folders: Mapping[str, Folder], place: Path) -> None:
    """Writes the folders of a save below `place`. Raises KimboxError (`save-damaged`) if one is not valid."""
    remove_tree(place / REPOSITORIES)
    for name, folder in folders.items():
        bundle, bare = place / f"{name}.bundle", place / f"{name}.git"
        try:
            _fetch(store, folder.bundle, bundle)
            remove_tree(bare)
            try:
                _check_out(folder.commit, bundle, bare, place / REPOSITORIES / name)
            except KimboxError as error:
                raise manifests.damaged(store.url, folder.bundle.name, f"the folder {name}: {error.message}") from None
        finally:
            bundle.unlink(missing_ok=True)
            remove_tree(bare)


def _fetch(store: Store, stored: Stored, target: Path) -> None:
    """Writes an object to a file. Raises KimboxError (`save-damaged`) if it does not have its size and digest."""
    digest = hashlib.sha256()
    with target.open("wb") as file:
        while file.tell() < stored.size_bytes:
            piece = store.read(stored.name, file.tell(), min(READ_BYTES, stored.size_bytes - file.tell()))
            if not piece:
                break
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != stored.digest:
        raise manifests.damaged(store.url, stored.name, "it does not have the digest in its name")


def _check_out(commit: str, bundle: Path, bare: Path, target: Path) -> None:
    """Writes the files of a commit to a new folder, as they are. Raises KimboxError if the commit is not acceptable."""
    git(["init", "--quiet", "--bare", "--template=", bare])
    (bare / "info").mkdir(exist_ok=True)
    (bare / "info/attributes").write_text(_NO_CONVERSION)  # this file has precedence over those in the commit
    fetch = ["-c", "transfer.fsckObjects=true", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head"]
    git([*fetch, bundle, f"+{PIN_REF}:{PIN_REF}"], git_dir=bare, env=OWN_CONFIG, file_bytes=MAX_BYTES)
    if git(["rev-parse", f"{PIN_REF}^{{commit}}"], git_dir=bare).text != commit:
        raise ImageError("it has another commit", code="unsafe-files")
    sizes = git(["ls-tree", "-r", "--format=%(objecttype) %(objectsize)", PIN_REF], git_dir=bare).text.splitlines()
    kinds = [line.split() for line in sizes]
    if any(kind != "blob" for kind, _ in kinds):
        raise ImageError("it has a submodule", code="unsafe-files")
    if len(kinds) > MAX_FILES or sum(int(size) for _, size in kinds) > MAX_BYTES:
        raise ImageError("it is larger than a folder of a box can be", code="unsafe-files")
    target.mkdir(parents=True)
    git([f"--work-tree={target}", "checkout", "--quiet", "--force", PIN_REF, "--", "."], git_dir=bare, env=OWN_CONFIG)


def without_mounts(spec: bytes) -> bytes:
    """Returns the spec of a save without `mounts`: the folders are those of another host, or of another time."""
    try:
        value = parse_json(spec)
    except ValueError:  # nothing that kimbox wrote: `refuse_mounts` decides
        return spec
    if not isinstance(value, dict) or not value.pop("mounts", None):
        return spec
    log.warn("the box shared folders of its host (`mounts`), and does not share those of this one")
    return json.dumps(value).encode()


def refuse_mounts(box: Box, store: str) -> None:
    """Raises KimboxError (`unsafe-save`) if the spec of a save shares folders of this host in another way."""
    if box.mounts:
        raise KimboxError(
            f"the spec of the save in {store} shares a folder of this host: {box.mounts[0].location}",
            code="unsafe-save",
            hint="pass a spec of your own with -f FILE, which may have `mounts`",
            fields={"url": store, "path": str(box.mounts[0].location)},
        )


def refuse_repositories_of_host(box: Box, store: str) -> None:
    """Raises KimboxError (`unsafe-save`) if the spec of a save names a git repository of this host.

    The box would get its content, also if whoever wrote the save may not read it. A folder can only be one of the save:
    no spec may name a folder that is not below its own.
    """
    for repository in box.repositories:
        if repository.url.startswith("file:"):
            raise KimboxError(
                f"the spec of the save in {store} takes the repository {repository.name} from this host: "
                f"{repository.url}",
                code="unsafe-save",
                hint="with `--key KEY`, kimbox uses a save that this key has signed, and what its spec names",
                fields={"url": store, "repository": repository.name, "path": repository.url},
            )

"""The image of a box: its key, and the image itself, which is taken from the store, built, or downloaded.

While a block `with leased(...) as image:` runs, `prune` does not remove the image. After the block, `prune` keeps the
image only if the record of a machine or of an added box refers to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kimbox.errors import ImageError
from kimbox.image import namespace
from kimbox.image.inputs import recipe
from kimbox.image.inputs.recipe import Recipe
from kimbox.image.store import images, lease, names
from kimbox.image.store.images import Image
from kimbox.lock.apt.packages import LockedPackages
from kimbox.spec.model import Box, BoxImage, PackageImage, RemoteImage, SavedImage
from kimbox.spec.urls import is_url
from kimbox.transfer import address
from kimbox.transfer.address import Login


def key_of(box: Box, packages: LockedPackages | Recipe | None) -> str:
    """The key of a box's image. The image need not be in the store.

    `packages`: the packages of the box's lock, or the recipe made from them; None for an image that kimbox does not
    build. Raises ImageError: `lock-disagrees` if the lock has no packages, `box-not-found` if the spec uses a box that
    was not added.
    """
    if isinstance(box.image, RemoteImage | SavedImage):
        return box.image.key
    if isinstance(box.image, BoxImage):
        return names.require(box.image.name).image
    return recipe_of(box, packages).key


def recipe_of(box: Box, packages: LockedPackages | Recipe | None) -> Recipe:
    """The recipe of an image that kimbox builds. Raises ImageError (`lock-disagrees`) if the lock has no packages."""
    if isinstance(packages, Recipe):
        return packages
    if packages is None or not isinstance(box.image, PackageImage):
        raise ImageError(
            f"the lock of {box.name} has no packages",
            code="lock-disagrees",
            hint="`kimbox lock` chooses the packages and writes them to the lock",
            fields={"name": box.name},
        )
    return recipe.recipe(box, box.image, packages)


@contextmanager
def leased(box: Box, packages: LockedPackages | Recipe | None, *, offline: bool = False) -> Iterator[Image]:
    """The image of a box. It is built or downloaded first if necessary, and stays in the store while the block runs.

    `packages` as for `key_of`. `offline`: do not contact a server.

    Raises ImageError: the errors of `key_of` and `leased_file`, `offline`, `image-not-found` if the image of an added
    box was removed, and those of `builder.build`. Raises the errors of `namespace.check` if the image must be built.
    """
    images.sweep()
    if isinstance(box.image, RemoteImage):
        if offline:
            _check_offline(box.image)
        with leased_file(box.image, login=_login(box.image)) as image:
            yield image
    elif isinstance(box.image, SavedImage):
        with lease.shared(box.image.key):
            yield _of_save(box.image)
    elif isinstance(box.image, BoxImage):
        added = names.require(box.image.name)
        with lease.shared(added.image):
            yield _stored(added)
    else:
        build_recipe = recipe_of(box, packages)
        with lease.shared(build_recipe.key):
            yield images.find(build_recipe.key) or _build(box.image, build_recipe, offline=offline)


@contextmanager
def leased_file(image: RemoteImage, keys: tuple[str, ...] = (), *, login: Login | None = None) -> Iterator[Image]:
    """The image in a file or at a URL. It is fetched first if necessary, and stays in the store while the block runs.

    With `keys`, it must be a box that one of these ssh keys has signed. `login` as for `http.fetch`. Raises the errors
    of `remote.fetch` and `remote.check_signature`.
    """
    from kimbox.image.sources import remote  # a clone loads none of this
    from kimbox.transfer import downloads

    with lease.shared(image.key):
        stored_image = images.find(image.key)
        if stored_image is None:
            stored_image = images.publish(image.key, lambda work: remote.fetch(image, work, keys, login))
        if is_url(image.location):
            downloads.finished(image.location, image.key)
        if keys:
            remote.check_signature(stored_image, image.location, keys, login)
        yield stored_image


def _login(image: RemoteImage) -> Login | None:
    """The login for the server of an image, from ~/.netrc. None also if the image needs no download."""
    if not is_url(image.location) or images.find(image.key):
        return None
    return address.take(image.location)[1]


def ensure(box: Box, packages: LockedPackages | Recipe | None, *, offline: bool = False) -> Image:
    """The image of a box, as for `leased`, but without a lease: `prune` may remove it after the call."""
    with leased(box, packages, offline=offline) as image:
        return image


def _stored(added: names.AddedBox) -> Image:
    """The image of an added box. Raises ImageError (`image-not-found`) if it is not in the store."""
    if image := images.find(added.image):
        return image
    raise ImageError(
        f"the disk of the added box {added.name} is not in the store",
        code="image-not-found",
        hint=f"`kimbox box add --force {added.name} FILE|URL` adds it again",
        fields={"name": added.name, "image": added.image},
    )


def _of_save(image: SavedImage) -> Image:
    """The image of a saved box. Raises ImageError (`image-not-found`) if another program has removed it."""
    if found := images.find(image.key):
        return found
    raise ImageError(
        "the disk of the saved box is not in the store of images any more",
        code="image-not-found",
        hint="run the same command again: it fetches the save",
        fields={"image": image.key},
    )


def _build(image: PackageImage, build_recipe: Recipe, *, offline: bool) -> Image:
    """Downloads the packages of a recipe that are not in the cache, and builds its image."""
    from kimbox.image.build import builder
    from kimbox.lock.apt import cache

    namespace.check()
    cache.ensure(image, build_recipe.locked, offline=offline)
    return images.publish(build_recipe.key, lambda work: builder.build(build_recipe, work))


def _check_offline(image: RemoteImage) -> None:
    """Raises ImageError (`offline`) if the image is not in the store and would have to be downloaded."""
    is_local = not is_url(image.location) or image.location.startswith("file:")
    if not is_local and images.find(image.key) is None:
        raise ImageError(
            f"the image {image.key[:12]} is not in the store, and `--offline` does not allow a download",
            code="offline",
            hint="`kimbox build` without `--offline` downloads it",
            fields={"image": image.key},
        )

"""The image that a box asks for: its key, and the image itself from the store, built, or fetched.

A block `with leased(...) as image:` may rely on the image: `prune` does not remove it while the block runs. At its end
a machine's record or the name of an added box has to refer to the image, or nothing needs it any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kimbox.errors import ImageError
from kimbox.image import namespace
from kimbox.image.build import builder
from kimbox.image.inputs import recipe as recipes
from kimbox.image.inputs.recipe import Recipe
from kimbox.image.sources import remote
from kimbox.image.store import images, lease, names
from kimbox.image.store.images import Image
from kimbox.lock.apt import cache
from kimbox.lock.apt.packages import LockedPackages
from kimbox.spec.model import Box, BoxImage, PackageImage, RemoteImage
from kimbox.spec.urls import is_url


def key_of(box: Box, packages: LockedPackages | Recipe | None) -> str:
    """The key of a box's image, whether the store has it or not.

    `packages`: those of the box's lock, or the recipe that was made from them; None for an image that is not built
    here. Raises ImageError if the box's lock names no packages, or if the spec names a box that was not added.
    """
    if isinstance(box.image, RemoteImage):
        return remote.key_of(box.image)
    if isinstance(box.image, BoxImage):
        return names.require(box.image.name).image
    return recipe_of(box, packages).key


def recipe_of(box: Box, packages: LockedPackages | Recipe | None) -> Recipe:
    """The recipe of a box whose image is built here. Raises ImageError if its lock names no packages."""
    if isinstance(packages, Recipe):
        return packages
    if packages is None or not isinstance(box.image, PackageImage):
        raise ImageError(f"the lock of {box.name} names no packages", hint="`kimbox lock` chooses them")
    return recipes.recipe(box, box.image, packages)


@contextmanager
def leased(box: Box, packages: LockedPackages | Recipe | None, *, offline: bool = False) -> Iterator[Image]:
    """The image of a box, which stays in the store while the block runs; it is built or fetched first if necessary.

    `packages` as for `key_of`. `offline`: no server is asked. Raises ImageError with the reason if there is no image.
    """
    images.sweep()
    if isinstance(box.image, RemoteImage):
        if offline:
            _check_offline(box.image)
        with leased_file(box.image) as image:
            yield image
    elif isinstance(box.image, BoxImage):
        added = names.require(box.image.name)
        with lease.shared(added.image):
            yield _stored(added)
    else:
        recipe = recipe_of(box, packages)
        with lease.shared(recipe.key):
            yield images.find(recipe.key) or _build(box.image, recipe, offline=offline)


@contextmanager
def leased_file(image: RemoteImage, keys: tuple[str, ...] = ()) -> Iterator[Image]:
    """The image in a file or at a URL, which stays in the store while the block runs; it is fetched first if necessary.

    With `keys`, it has to be a box that one of these ssh keys has signed. Raises ImageError if the file is missing, or
    is not what its digest or its signature says.
    """
    key = remote.key_of(image)
    with lease.shared(key):
        found = images.find(key) or images.publish(key, lambda work: remote.fetch(image, work, keys))
        if keys:
            remote.check_signature(found, keys)
        yield found


def ensure(box: Box, packages: LockedPackages | Recipe | None, *, offline: bool = False) -> Image:
    """`leased`, for callers that need the image to be in the store now, and do not rely on it later."""
    with leased(box, packages, offline=offline) as image:
        return image


def _stored(added: names.AddedBox) -> Image:
    """The image of an added box. Raises ImageError if it was removed."""
    if found := images.find(added.image):
        return found
    raise ImageError(f"the disk of the added box {added.name} is gone", hint="`kimbox box add --force` brings it again")


def _build(image: PackageImage, recipe: Recipe, *, offline: bool) -> Image:
    """Fetches the packages of a recipe, unless the cache has them, and builds its image."""
    namespace.check()
    cache.ensure(image, recipe.locked, offline=offline)
    return images.publish(recipe.key, lambda work: builder.build(recipe, work))


def _check_offline(image: RemoteImage) -> None:
    """Raises ImageError, naming the image, if the store does not have it and a server would have to be asked."""
    is_here = not is_url(image.location) or image.location.startswith("file:")
    if not is_here and images.find(remote.key_of(image)) is None:
        raise ImageError(
            f"the image {image.digest[7:19]} is not in the store, and --offline asks no server",
            hint="without --offline it is fetched; `kimbox build` does only that",
        )

"""kimbox package: export a box for Vagrant or OpenStack, as OVA, qcow2 or raw disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import report
from kimbox.cli.provenance import unpinned_lines
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.actions.package import Packaged
    from kimbox.image.formats.compressor import Compression
    from kimbox.image.formats.export import Format
    from kimbox.image.sanitize.secrets import Finding

#: Maximum number of characters of a version in a catalog.
MAX_VERSION_CHARACTERS = 100

#: Maximum number of characters of an unknown format that the message repeats.
MAX_SHOWN_CHARACTERS = 40


Catalog = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        metavar="URL",
        help="Also write or update a catalog of all versions for Vagrant. URL is the future address of FOLDER.",
    ),
]


Compress = Annotated[
    str | None,
    typer.Option(
        "--compress", metavar="NAME", help="Compression of a box for libvirt: zstd (the default), xz or none."
    ),
]


Output = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the packages. Default: the current folder."),
]


Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="Format of a package: libvirt (the default), virtualbox, ova, qcow2, raw or openstack. May be repeated.",
    ),
]


def package(
    box: target.Name = None,
    file: target.File = None,
    format: Formats = None,
    compress: Compress = None,
    output: Output = Path(),
    image: Annotated[bool, typer.Option("--image", help="Package the image, even if the machine exists.")] = False,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="The private ssh key that signs the checksums.")
    ] = None,
    catalog: Catalog = None,
    version: Annotated[
        str, typer.Option("--version", metavar="VERSION", help="Version of the packages in the catalog.")
    ] = "0",
) -> None:
    """Export a box: Vagrant boxes for libvirt and VirtualBox, OVA, qcow2 and raw disks.

    kimbox packages the root of the box's halted machine, with the changes that were made in maintain mode. If there is
    no machine, it packages the image. It works on a copy. From the copy it removes identity, keys, logs, caches, shell
    histories, all of /persistent, and everything that a boot wrote to the snapshot of root. The first boot of the
    package is therefore the first boot of a new box. An image that was made elsewhere and has run is cleaned, too, if
    it has the layout of kimbox's images; if not, kimbox prints a warning.

    Then kimbox searches the copy for secrets. A private key, a shared secret, the identity of a machine or a database
    is an error that names the file. A key that a Debian package ships in its files is kept and listed. A sealed box is
    refused.

    A box for libvirt is compressed with zstd. Vagrant unpacks it if its bsdtar was built with zstd, as in Debian 12 and
    later, or if the host has the program zstd. `--compress xz` writes a box of the same size that every Vagrant since
    1.6 unpacks, and takes several times as long.

    Vagrant boxes contain spec, lock, SBOM, statement and SHA256SUMS. For other formats these are separate files beside
    the package. The same disk gives the same bytes. Existing files are not overwritten. With --catalog, the packages
    are in a subfolder of FOLDER, named after the version, and the catalog is in FOLDER.

    A package for OpenStack is a qcow2 disk and NAME.openstack.json, the request that creates its image in Glance.
    `kimbox publish` does that by itself.

    Packages for VirtualBox are tested in QEMU, with the controllers that VirtualBox uses, but not in VirtualBox itself.
    Their network card is e1000 if the kernel has its driver (Debian: with `linux-image-amd64` among the packages), else
    virtio.

    \b
    Examples:
      kimbox package
      kimbox package openkim-dev --format libvirt --format virtualbox --output release --sign ~/.ssh/id_ed25519
      kimbox package --format ova --format openstack --image
      kimbox package --compress xz
      kimbox package --output public --catalog https://example.org/boxes --version 2026.1
    """
    from kimbox.actions import package as packaging

    kinds = formats_of(format)
    _check_catalog(catalog, version, kinds)
    compression = compression_of(compress, kinds)
    project = target.project(box, file)
    request = packaging.PackageRequest(project, kinds, output, image, sign, catalog, version, compression)
    made = packaging.package(request)
    _packaged(project.name, made)


def _packaged(name: str, packaged: Packaged) -> None:
    """Prints the packages that were written."""
    from kimbox.log import log

    lines = [f"wrote {f}  {f.stat().st_size / 1e6:.1f} MB" for f in packaged.files]
    lines += [f"removed or reset {len(packaged.cleaned)} items (--json names them)"] if packaged.cleaned else []
    lines += kept_lines(packaged.kept) + unpinned_lines(packaged.unpinned)
    if packaged.opaque is not None:
        log.warn(f"kimbox cannot read this image, and packages it unchanged: {packaged.opaque}")
    result = {
        "name": name,
        "from": packaged.source,
        "files": [str(f) for f in packaged.files],
        "cleaned": list(packaged.cleaned),
        "kept_keys": [finding.as_json() for finding in packaged.kept],
        "opaque": packaged.opaque,
        "unpinned": list(packaged.unpinned),
    }
    report("package", result, "\n".join(lines))


def kept_lines(kept: tuple[Finding, ...]) -> list[str]:
    """Returns one line of text for each key, or text that looks like a key, that the package still contains."""
    return [f"kept {f.path}: {f.kind}" + (f", a file of the package {f.package}" if f.package else "") for f in kept]


def _check_catalog(url: str | None, version: str, kinds: tuple[Format, ...]) -> None:
    """Raises UsageError if the URL, the version or the formats are not possible in a catalog."""
    from kimbox.image.formats.catalog import VERSION
    from kimbox.spec import urls
    from kimbox.spec.nodes import Fault

    if url is not None:
        try:
            urls.mirror(url)
        except Fault as fault:
            raise UsageError(
                f"--catalog: {fault.message}", code=fault.code, hint=fault.hint, fields={"option": "--catalog"}
            ) from None
        if not any(kind.is_vagrant_box for kind in kinds):
            raise UsageError(
                "--catalog requires a Vagrant box", code="usage", hint="add --format libvirt or --format virtualbox"
            )
    if not VERSION.fullmatch(version) or len(version) > MAX_VERSION_CHARACTERS:
        raise UsageError(
            f"--version: {version[:MAX_VERSION_CHARACTERS]} is not a version",
            code="bad-value",
            hint="write it as 1.2.0 or 2026.1",
            fields={"option": "--version"},
        )


def formats_of(words: list[str] | None) -> tuple[Format, ...]:
    """Returns the formats of the options, each once; libvirt without options. Raises UsageError for an unknown one."""
    from kimbox.image.formats.export import Format

    known = [str(kind) for kind in Format]
    words = words or [str(Format.LIBVIRT)]
    for word in words:
        if word not in known:
            raise UsageError(
                f"--format: unknown format {word[:MAX_SHOWN_CHARACTERS]}",
                code="bad-value",
                hint=f"formats: {', '.join(known)}",
                fields={"option": "--format"},
            )
    return tuple(dict.fromkeys(Format(word) for word in words))


def compression_of(word: str | None, kinds: tuple[Format, ...]) -> Compression:
    """Returns the compression of the option --compress; zstd without the option.

    Raises UsageError for an unknown one, or if none of the formats has a choice of compressions.
    """
    from kimbox.image.formats.compressor import Compression
    from kimbox.image.formats.export import Format

    if word is None:
        return Compression.ZSTD
    if Format.LIBVIRT not in kinds:
        raise UsageError("--compress requires a box for libvirt", code="usage", hint="add --format libvirt")
    try:
        return Compression(word)
    except ValueError:
        raise UsageError(
            f"--compress: unknown compression {word[:MAX_SHOWN_CHARACTERS]}",
            code="bad-value",
            hint=f"compressions: {', '.join(Compression)}",
            fields={"option": "--compress"},
        ) from None

"""kimbox package: a box as others take it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import report
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.actions.package import Packaged
    from kimbox.image.formats.export import Format
    from kimbox.image.sanitize.secrets import Finding


def package(
    box: target.Name = None,
    file: target.File = None,
    format: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="FORMAT", help="libvirt (the default), virtualbox, ova, qcow2 or raw."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write packages; default: here.")
    ] = Path(),
    image: Annotated[bool, typer.Option("--image", help="The image, although there is a machine.")] = False,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="A key of ssh that signs the checksums.")
    ] = None,
    catalog: Annotated[
        str | None,
        typer.Option(
            "--catalog",
            metavar="URL",
            help="Also a catalog for Vagrant, of all versions; the folder will be served there.",
        ),
    ] = None,
    version: Annotated[str, typer.Option("--version", metavar="VERSION", help="In the catalog.")] = "0",
) -> None:
    """Make packages of a box: Vagrant boxes for libvirt and VirtualBox, OVA, qcow2 and raw disks.

    Packaged is the root of the box's halted machine, as its maintainer left it (maintain mode), or, where there is no
    machine, its image. A copy is cleaned: identity, keys, logs, caches, histories and all of /persistent go, and what
    a boot wrote to the snapshot of root; the first boot of the package is that of a new box. An image that came from
    elsewhere and has run is cleaned, too, if it has the layout of kimbox's images; if not, a warning says so. What is
    packaged is then looked through: a private key, a shared secret, the identity of a machine or a database in it is
    an error that names the file; a key that a package ships in its files is kept, and listed. A sealed box is refused.

    Vagrant boxes hold spec, lock, SBOM, statement and SHA256SUMS; for other formats they lie beside. The same disk
    gives the same bytes.
    Nothing is overwritten. With --catalog they go into a folder of their own in FOLDER, named by the version, beside
    the catalog.

    Packages for VirtualBox are tested with its controllers in QEMU; VirtualBox itself is not. Their network card is
    e1000 where the kernel has its driver (Debian: `linux-image-amd64` among the packages), else one of virtio.

    \b
    Examples:
      kimbox package
      kimbox package openkim-dev --format libvirt --format virtualbox --output release --sign ~/.ssh/id_ed25519
      kimbox package --format ova --image
      kimbox package --output public --catalog https://example.org/boxes --version 2026.1
    """
    from kimbox.actions import package as packaging

    kinds = formats_of(format)
    _check_catalog(catalog, version, kinds)
    project = target.project(box, file)
    made = packaging.package(packaging.PackageRequest(project, kinds, output, image, sign, catalog, version))
    _packaged(project.name, made)


def _packaged(name: str, made: Packaged) -> None:
    from kimbox.log import log

    result = {"name": name, "from": made.source, "files": [str(f) for f in made.files]}
    lines = [f"wrote {f}  {f.stat().st_size / 1e6:.1f} MB" for f in made.files]
    lines += [f"removed or reset in it: {len(made.cleaned)} (--json names them)"] if made.cleaned else []
    lines += kept_lines(made.kept)
    if made.opaque is not None:
        log.warn(f"kimbox cannot look into this image, which is handed on as it is: {made.opaque}")
    kept = [finding.as_json() for finding in made.kept]
    more = {"cleaned": list(made.cleaned), "kept_keys": kept, "opaque": made.opaque}
    report("package", result | more, "\n".join(lines))


def kept_lines(kept: tuple[Finding, ...]) -> list[str]:
    """What stays although it is a key, or looks like one, for people."""
    return [f"keeps {f.path}: {f.kind}" + (f", a file of the package {f.package}" if f.package else "") for f in kept]


def _check_catalog(url: str | None, version: str, kinds: tuple[Format, ...]) -> None:
    """Raises UsageError where there can be no such catalog of these formats, or no such version in one."""
    from kimbox.image.formats.catalog import VERSION
    from kimbox.spec import urls
    from kimbox.spec.nodes import Fault

    if url is not None:
        try:
            urls.mirror(url)
        except Fault as fault:
            raise UsageError(f"--catalog: {fault.message}", hint=fault.hint) from None
        if not any(kind.holds_files for kind in kinds):
            raise UsageError("a catalog is of Vagrant boxes", hint="add --format libvirt or virtualbox")
    if not VERSION.fullmatch(version) or len(version) > 100:
        raise UsageError(f"--version: {version[:100]} is no version", hint="write it as 1.2.0 or 2026.1")


def formats_of(words: list[str] | None) -> tuple[Format, ...]:
    """The formats that were asked for, each once; libvirt if none was. Raises UsageError for a word that is none."""
    from kimbox.image.formats.export import Format

    known = [str(kind) for kind in Format]
    words = words or [str(Format.LIBVIRT)]
    for word in words:
        if word not in known:
            raise UsageError(f"there is no format {word[:40]}", hint=f"there are: {', '.join(known)}")
    return tuple(dict.fromkeys(Format(word) for word in words))

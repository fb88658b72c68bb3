"""The size of the disk of a machine: it follows the spec and the settings, and only grows."""

from __future__ import annotations

import attrs

from kimbox.drivers import registry
from kimbox.errors import StateError
from kimbox.files import size_words
from kimbox.machine.folder import Machine
from kimbox.machine.record import Record
from kimbox.spec.model import Box, PackageImage
from kimbox.spec.units import size_text


def smaller(name: str, present_bytes: int, wanted_bytes: int, hint: str) -> StateError:
    """Returns the error (`disk-smaller`) for a disk of the box `name` that would become smaller."""
    present, wanted = size_words(present_bytes), size_words(wanted_bytes)
    return StateError(
        f"the disk of {name} has {present}, and the spec or `--set` has {wanted}: a disk does not get smaller",
        code="disk-smaller",
        hint=hint,
        fields={"name": name, "size_bytes": str(present_bytes), "wanted_bytes": str(wanted_bytes)},
    )


def check_new(box: Box) -> None:
    """Raises StateError (`disk-smaller`) if a setting gives a new machine a smaller disk than that of its image."""
    if box.disk_bytes and box.disk_bytes < box.disk.size_bytes:
        hint = "`disk: size:` in a spec of your own (`kimbox init`) gives its image another size"
        raise smaller(box.name, box.disk.size_bytes, box.disk_bytes, hint)


def check(machine: Machine, record: Record, box: Box) -> None:
    """Raises StateError if the disk of a machine cannot get the size in its spec.

    `disk-smaller`: the disk is larger; `disk-grown`: the machine is sealed; `unsupported-by-driver`: the disk is not a
    file of kimbox.
    An image that kimbox did not build may be larger than the size in the spec.
    """
    driver = registry.of(machine)
    if not driver.features.own_disk:
        if box.disk_bytes:
            registry.need_own_disk(machine, "grow the disk of")
        return
    wanted_bytes, present_bytes = box.disk_bytes or box.disk.size_bytes, driver.disk_size()
    is_own_size = record.disk_bytes or box.disk_bytes or isinstance(box.image, PackageImage)
    name, kept = machine.name, size_text(present_bytes)
    hint = f"`kimbox up {name} --set disk.size={kept}` keeps its size; a new box has the size of its spec"
    if wanted_bytes < present_bytes and is_own_size:
        raise smaller(name, present_bytes, wanted_bytes, hint)
    if wanted_bytes > present_bytes and record.sealed:
        raise StateError(
            f"the disk of {name} cannot grow from {size_words(present_bytes)} to {size_words(wanted_bytes)}: it is "
            "sealed, and each start puts its disk back to the image",
            code="disk-grown",
            hint=hint,
            fields={"name": name, "size_bytes": str(present_bytes), "wanted_bytes": str(wanted_bytes)},
        )


def grow(machine: Machine, record: Record, box: Box) -> Record:
    """Gives the disk the size in the spec. Returns the record, which has the new size before the disk has it.

    So the next start completes one that was killed. Raises the errors of `check`, and StateError (`has-snapshots`).
    """
    check(machine, record, box)
    driver = registry.of(machine)
    wanted_bytes = box.disk_bytes or box.disk.size_bytes
    if not driver.features.own_disk or (not record.disk_bytes and wanted_bytes <= driver.disk_size()):
        return record
    if record.disk_bytes != wanted_bytes:
        record = attrs.evolve(record, disk_bytes=wanted_bytes)
        machine.write_record(attrs.evolve(machine.record(), disk_bytes=wanted_bytes))
    driver.grow(wanted_bytes)
    return record

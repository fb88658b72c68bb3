"""Reads job.yaml, the settings in the folder of a job. Each fault is reported with its place, as in a spec."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import attrs

from kimbox import files, paths
from kimbox.errors import SpecError, UsageError
from kimbox.jobs.disk.extract import selector
from kimbox.jobs.disk.pack import Room
from kimbox.jobs.network import Network
from kimbox.jobs.vet import Vetting
from kimbox.spec import rules, schema, units
from kimbox.spec.build import MIN_MEMORY_BYTES, MIN_SCRATCH_BYTES
from kimbox.spec.nodes import Fault, Problems
from kimbox.spec.parse import Budget, read_tree
from kimbox.spec.reader import Reader

#: Name of the file in the folder of a job.
FILE = "job.yaml"


@attrs.frozen
class JobFile:
    """The settings of a job. None: the file does not have the key."""

    box: str | None = None
    arguments: tuple[str, ...] | None = None
    cpus: int | None = None
    memory_bytes: int | None = None
    scratch_bytes: int | None = None
    timeout_s: int | None = None
    network: Network | None = None
    size_bytes: int | None = None
    room: Room | None = None
    vetting: Vetting | None = None


@functools.cache
def file_schema() -> dict[str, Any]:
    """Returns the JSON Schema of job.yaml."""
    return files.read_json(paths.schemas_dir() / "jobfile.schema.json")


def read_jobfile(folder: Path) -> JobFile:
    """Returns the settings in the folder of a job; those without any key if it has no job.yaml.

    Raises SpecError with every fault.
    """
    path = folder / FILE
    if not path.exists() and not path.is_symlink():
        return JobFile()
    problems = Problems()
    tree = read_tree(path, problems, Budget())
    if tree is None:
        raise SpecError(problems.collected, code="bad-spec")
    reader = Reader(tree, path, problems, schema.check(tree, problems, whole=True, schema=file_schema()))
    size = functools.partial(units.size, unit=units.KIB)
    jobfile = JobFile(
        box=reader.text(tree.get("box"), rules.box_name, None),
        arguments=_arguments(reader),
        cpus=reader.number(tree.get("cpus")) or None,
        memory_bytes=reader.text(
            tree.get("memory"), functools.partial(units.size, unit=units.MIB, least=MIN_MEMORY_BYTES), None
        ),
        scratch_bytes=reader.text(
            tree.get("scratch"), functools.partial(units.size, unit=units.MIB, least=MIN_SCRATCH_BYTES), None
        ),
        timeout_s=reader.text(tree.get("timeout"), units.duration, None),
        network=reader.text(tree.get("network"), _network, None),
        size_bytes=reader.text(tree.get("size"), size, None),
        room=reader.text(tree.get("room"), _room, None),
        vetting=_vetting(reader),
    )
    if (node := tree.get("room")) and tree.get("size"):
        reader.fault(node, "`size` and `room` exclude each other", code="conflicting-settings")
    if problems.collected:
        raise SpecError(problems.collected, code="bad-spec")
    return jobfile


def _arguments(reader: Reader) -> tuple[str, ...] | None:
    """Returns the arguments. Reports those that the guest cannot read, which has one in each line."""
    node = reader.tree.get("arguments")
    if node is None or not reader.is_sound(node):
        return None
    return tuple(reader.text(item, _argument, "") for item in node.items)


def _vetting(reader: Reader) -> Vetting | None:
    """Returns the conditions for results; None if there are none."""
    node = reader.tree.get("vet")
    if node is None or not reader.is_sound(node):
        return None
    lists = {key: part.items for key, part in node.mapping.items() if reader.is_sound(part)}
    names, kinds, command = (
        [reader.text(item, rule, "") for item in lists.get(key, [])]
        for key, rule in (("names", _pattern), ("types", str), ("command", str))
    )
    max_bytes = reader.text(node.get("max_size"), functools.partial(units.size, unit=1), None)
    return Vetting(tuple(names), tuple(kinds), max_bytes, tuple(command))


def _pattern(text: str) -> str:
    try:
        selector([text])
    except UsageError:
        raise Fault(f"{text[:40]!r} is not a pattern", code="bad-value") from None
    return text


def _network(text: str) -> Network:
    try:
        return Network.parse(text)
    except UsageError as error:
        raise Fault(error.message.removeprefix("--network: "), error.hint, code=error.code) from None


def _argument(text: str) -> str:
    if "\n" in text:
        raise Fault("an argument cannot have a line break", code="forbidden-character")
    return text


def _room(text: str) -> Room:
    """Returns the room: a part such as 25%, or a size such as 500MiB. Raises Fault."""
    if text.endswith("%"):
        try:
            return Room.parse(text)
        except UsageError:
            raise Fault(f"{text[:40]!r} is not a part: write a number and %", code="bad-size") from None
    return Room(size_bytes=units.size(text, unit=units.KIB))

"""Settings: values of the spec that a command line changes (`--set KEY=VALUE`). Each one is a layer above the spec.

KEY is the path of a key: memory, disk.volumes.root, repositories.setup.ref. VALUE is one line of YAML. Faults are at a
place in the file `--set`, whose one line is KEY=VALUE.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from kimbox.errors import SpecError
from kimbox.spec.nodes import SETTING_FILE, Fault, Mark, Node, Problems, shown
from kimbox.spec.parse import Budget, parse

#: Maximum length of a setting, and maximum number of settings of a machine.
MAX_CHARACTERS = 4096
MAX_SETTINGS = 64

#: Keys that say what the file of a spec is, and not what the box is.
FIXED_KEYS = ("kimbox", "name", "base", "boxes")

#: The key with the size of the disk.
DISK_SIZE = "disk.size"

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_HINT = "for example --set memory=4GiB, or --set disk.volumes.root=8GiB"


def split(text: str) -> tuple[str, str]:
    """Returns key and value of a setting. Raises Fault if the text is not KEY=VALUE, or the key cannot be set."""
    key, equals, value = text.partition("=")
    if len(text) > MAX_CHARACTERS:
        raise Fault(f"a setting has at most {MAX_CHARACTERS} characters", code="too-complex")
    if not equals or not _KEY.fullmatch(key):
        raise Fault(f"{shown(text)} is not KEY=VALUE", _HINT, code="bad-value")
    if not value.isprintable():
        raise Fault(f"the value of {key} is not one line of printable text", "put it into the spec", code="bad-value")
    if key.split(".")[0] in FIXED_KEYS:
        hint = f"write a spec of its own, with a layer: `base: [...]` and `{key.split('.')[0]}: ...`"
        raise Fault(f"{shown(key)} cannot be set: it is a property of the file", hint, code="bad-value")
    return key, value


def combine(recorded: Iterable[str], new: Iterable[str] = (), removed: Iterable[str] = ()) -> tuple[str, ...]:
    """Returns the settings of a machine: those of its record, without the keys `removed`, and with the new ones.

    The last one of a key counts. Raises Fault for an invalid setting, and for a key that is not set.
    """
    settings = {split(text)[0]: text for text in recorded}
    for key in removed:
        if settings.pop(key, None) is None:
            known = f"there are: {', '.join(settings)}" if settings else "the box has no settings"
            raise Fault(f"the box has no setting {shown(key)}", known, code="bad-value")
    for text in new:
        key = split(text)[0]
        settings.pop(key, None)  # it is the last layer now
        settings[key] = text
    if len(settings) > MAX_SETTINGS:
        raise Fault(f"a box has at most {MAX_SETTINGS} settings", "put them into a layer: base:", code="too-complex")
    return tuple(settings.values())


def settings_of_image(settings: Sequence[str]) -> tuple[str, ...]:
    """Returns the settings that the image of a machine depends on.

    A size of the disk alone is one of the machine: its disk grows, on the same image. With sizes of volumes, the image
    is one of its own, and has this size.
    """
    of_disk = [text for text in settings if text.startswith("disk.")]
    of_machine = of_disk if len(of_disk) == 1 and of_disk[0].startswith(f"{DISK_SIZE}=") else []
    return tuple(text for text in settings if text not in of_machine)


def trees(settings: Sequence[str], spec: Path, problems: Problems, budget: Budget) -> list[Node]:
    """Returns a tree for each setting. Adds faults to `problems`. A relative path in a value is beside the spec."""
    found = []
    file = str(spec.parent / SETTING_FILE)
    for text in settings:
        try:
            key, value = split(text)
            # A key as long as KEY= without the blank that YAML needs, so that columns are those of KEY=VALUE.
            root = parse(f"{'v' * max(1, len(key) - 1)}: {value}\n", file, problems, budget)
        except Fault as fault:
            problems.add(Mark(file), fault.message, fault.hint, code=fault.code)
            continue
        except SpecError as error:
            problems.collected.extend(error.problems)
            continue
        node = next(iter(root.mapping.values()))
        for step in reversed(key.split(".")):
            node = Node({}, Mark(file)).replace({step: node}, {step: Mark(file)})
        version = {"kimbox": Node(1, node.mark)}  # each layer has it
        found.append(node.replace(node.mapping | version, node.keys | {"kimbox": node.mark}))
    return found

"""What shell completion offers for an argument. A completer gets the parser's context and the beginning of the word.

A completer that returns nothing leaves the word to the shell, which then completes file names. Completers run at each
press of the tab key: they read names of files and parse nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kimbox import paths

#: The environment variable that is set by a shell that asks for completions.
COMPLETE_VARIABLE = "_KIMBOX_COMPLETE"

#: A candidate: the word, and a short description that zsh and fish show.
Candidates = list[tuple[str, str]]

#: How much of a spec is searched for its name.
SPEC_HEAD_BYTES = 1 << 16

#: The `name:` of a spec, found without a YAML parser, which is slow to load.
_NAME = re.compile(r"""^name:[ \t]*["']?([a-z0-9][a-z0-9-]*)["']?[ \t]*(#.*)?$""", re.MULTILINE)

#: Words that no shell has to quote. Others are not offered.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def boxes(ctx: Any, incomplete: str) -> Candidates:
    """Names of boxes: of this folder's spec, of this user's machines, of the boxes that ship with kimbox."""
    return _matching(_boxes(), incomplete)


def first_box(ctx: Any, incomplete: str) -> Candidates:
    """The same for verbs whose first word is a box and whose other words are not."""
    from kimbox.settings import settings

    return [] if _words(ctx) or settings.after is not None else boxes(ctx, incomplete)


def shipped_boxes(ctx: Any, incomplete: str) -> Candidates:
    """Names of the boxes that ship with kimbox."""
    return _matching(_shipped(), incomplete)


def boxes_or_specs(ctx: Any, incomplete: str) -> Candidates:
    """Names of boxes, and the specs in this folder."""
    return _matching([*_boxes(), *_files("*.yaml", "a spec")], incomplete)


def boxes_or_locks(ctx: Any, incomplete: str) -> Candidates:
    """Names of boxes, and the locks in this folder."""
    return _matching([*_boxes(), *_files("*.lock", "a lock")], incomplete)


def specs_or_shipped(ctx: Any, incomplete: str) -> Candidates:
    """The specs in this folder, and the names of the boxes that ship with kimbox."""
    return _matching([*_files("*.yaml", "a spec"), *_shipped()], incomplete)


def snapshot_words(ctx: Any, incomplete: str) -> Candidates:
    """The words of `kimbox snapshot ACT`: [NAME] [BOX].

    For NAME the snapshots of the box that is meant; where none is, the snapshots of all boxes. For BOX the boxes that
    have the snapshot NAME. `save` takes a new name, so it offers nothing there.
    """
    act, words = str(ctx.params.get("act")), _words(ctx)
    if act in ("list", "save"):
        position = 0 if act == "list" else 1
        return boxes(ctx, incomplete) if len(words) == position else []
    if act not in ("restore", "delete") or len(words) > 1:
        return []
    found = dict(_snapshots())
    if words:
        return _matching([(box, "has this snapshot") for box, names in found.items() if words[0] in names], incomplete)
    meant = _spec_name(ctx.params.get("file") or Path(paths.SPEC_NAME))
    chosen = {meant: found[meant]} if meant in found else found
    return _matching([(name, f"a snapshot of {box}") for box, names in chosen.items() for name in names], incomplete)


def box_words(ctx: Any, incomplete: str) -> Candidates:
    """The words of `kimbox box ACTION`: `remove` takes the names of added boxes, the others files or nothing."""
    if str(ctx.params.get("action")) != "remove":
        return []
    from urllib.parse import unquote

    files = sorted(paths.boxes_file("x").parent.glob("*.json"))
    return _matching([(unquote(file.stem), "an added box") for file in files], incomplete)


def _matching(candidates: Iterable[tuple[str, str]], incomplete: str) -> Candidates:
    """The candidates that begin with a text, each word once, under its first description."""
    found: dict[str, str] = {}
    for word, description in candidates:
        if word.startswith(incomplete) and _PLAIN.fullmatch(word):
            found.setdefault(word, description)
    return list(found.items())


def _words(ctx: Any) -> list[str]:
    """The complete words before the one that is completed."""
    return list(ctx.params.get("words") or [])


def _boxes() -> Iterator[tuple[str, str]]:
    from kimbox.machine.folder import machines

    if name := _spec_name(Path(paths.SPEC_NAME)):
        yield name, "the spec of this folder"
    for machine in machines():
        yield machine.name, "a box of this user"
    yield from _shipped()


def _shipped() -> Iterator[tuple[str, str]]:
    for file in sorted(paths.boxes_dir().glob("*.yaml")):
        yield file.stem, "ships with kimbox"


def _files(pattern: str, description: str) -> Iterator[tuple[str, str]]:
    for file in sorted(Path().glob(pattern)):
        yield str(file), description


def _snapshots() -> Iterator[tuple[str, list[str]]]:
    """Every machine that has snapshots, and their names."""
    from kimbox.machine.folder import machines

    for machine in machines():
        files = sorted(machine.snapshots.glob(f"*/{machine.record_file.name}"))
        if files:
            yield machine.name, [file.parent.name for file in files]


def _spec_name(file: Path) -> str | None:
    """The name that a spec gives itself; None if there is no such file or no such line."""
    try:
        with file.open("rb") as stream:
            head = stream.read(SPEC_HEAD_BYTES).decode(errors="replace")
    except OSError:
        return None
    found = _NAME.search(head)
    return found[1] if found else None

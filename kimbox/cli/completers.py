"""Candidates for shell completion. A completer gets the context of the parser and the beginning of the word.

If a completer returns no candidate, the shell completes file names. Completers run at each press of the tab key, so
they only read file names and the beginning of a spec.
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

#: Number of bytes at the start of a spec that are searched for its name.
SPEC_HEAD_BYTES = 1 << 16

#: The line `name:` of a spec. A YAML parser would be slow to load.
_NAME = re.compile(r"""^name:[ \t]*["']?([a-z0-9][a-z0-9-]*)["']?[ \t]*(#.*)?$""", re.MULTILINE)

#: Words that need no quotes in a shell. Other words are not offered.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def boxes(ctx: Any, incomplete: str) -> Candidates:
    """Returns names of boxes: the spec of this folder, the machines of this user, the boxes that ship with kimbox."""
    return _matching(_boxes(), incomplete)


def first_box(ctx: Any, incomplete: str) -> Candidates:
    """Returns names of boxes for the first word of a verb, and nothing for its other words."""
    from kimbox.settings import settings

    return [] if _words(ctx) or settings.after is not None else boxes(ctx, incomplete)


def shipped_boxes(ctx: Any, incomplete: str) -> Candidates:
    """Returns the names of the boxes that ship with kimbox."""
    return _matching(_shipped(), incomplete)


def boxes_or_specs(ctx: Any, incomplete: str) -> Candidates:
    """Returns names of boxes, and the specs in this folder."""
    return _matching([*_boxes(), *_files("*.yaml", "a spec")], incomplete)


def boxes_or_locks(ctx: Any, incomplete: str) -> Candidates:
    """Returns names of boxes, and the locks in this folder."""
    return _matching([*_boxes(), *_files("*.lock", "a lock")], incomplete)


def specs_or_shipped(ctx: Any, incomplete: str) -> Candidates:
    """Returns the specs in this folder, and the names of the boxes that ship with kimbox."""
    return _matching([*_files("*.yaml", "a spec"), *_shipped()], incomplete)


def snapshot_words(ctx: Any, incomplete: str) -> Candidates:
    """Returns candidates for the words of `kimbox snapshot ACT`: [NAME] [BOX].

    NAME: the snapshots of the box of the spec; if that box has none, the snapshots of all boxes. BOX: the boxes that
    have the snapshot NAME. `save` takes a new name, so there is no candidate for it.
    """
    act, words = str(ctx.params.get("act")), _words(ctx)
    if act in ("list", "save"):
        position = 0 if act == "list" else 1
        return boxes(ctx, incomplete) if len(words) == position else []
    if act not in ("restore", "delete") or len(words) > 1:
        return []
    snapshots = dict(_snapshots())
    if words:
        boxes_with_it = [(box, "has this snapshot") for box, names in snapshots.items() if words[0] in names]
        return _matching(boxes_with_it, incomplete)
    given = ctx.params.get("file")  # some versions of typer leave it as a str here
    spec_name = _spec_name(Path(given) if given else paths.spec_file(Path()))
    if spec_name in snapshots:
        snapshots = {spec_name: snapshots[spec_name]}
    return _matching([(name, f"a snapshot of {box}") for box, names in snapshots.items() for name in names], incomplete)


def box_words(ctx: Any, incomplete: str) -> Candidates:
    """Returns candidates for the words of `kimbox box ACTION`: names of added boxes for `remove`, else nothing."""
    if str(ctx.params.get("action")) != "remove":
        return []
    from urllib.parse import unquote

    files = sorted(paths.boxes_file("x").parent.glob("*.json"))
    return _matching([(unquote(file.stem), "an added box") for file in files], incomplete)


def _matching(candidates: Iterable[tuple[str, str]], incomplete: str) -> Candidates:
    """Returns the candidates that begin with a text: each word once, with its first description."""
    descriptions: dict[str, str] = {}
    for word, description in candidates:
        if word.startswith(incomplete) and _PLAIN.fullmatch(word):
            descriptions.setdefault(word, description)
    return list(descriptions.items())


def _words(ctx: Any) -> list[str]:
    """Returns the words before the word that is completed."""
    return list(ctx.params.get("words") or [])


def _boxes() -> Iterator[tuple[str, str]]:
    from kimbox.machine.folder import machines

    if name := _spec_name(paths.spec_file(Path())):
        yield name, "the spec of this folder"
    for machine in machines():
        yield machine.name, "a machine of this user"
    yield from _shipped()


def _shipped() -> Iterator[tuple[str, str]]:
    for file in sorted(paths.boxes_dir().glob("*.yaml")):
        yield file.stem, "ships with kimbox"


def _files(pattern: str, description: str) -> Iterator[tuple[str, str]]:
    for file in sorted(Path().glob(pattern)):
        yield str(file), description


def _snapshots() -> Iterator[tuple[str, list[str]]]:
    """Yields every machine that has snapshots, and the names of the snapshots."""
    from kimbox.machine.folder import machines

    for machine in machines():
        files = sorted(machine.snapshots.glob(f"*/{machine.record_file.name}"))
        if files:
            yield machine.name, [file.parent.name for file in files]


def _spec_name(file: Path | None) -> str | None:
    """Returns the name in a spec; None if the file or the line is missing."""
    if file is None:
        return None
    try:
        with file.open("rb") as stream:
            head = stream.read(SPEC_HEAD_BYTES).decode(errors="replace")
    except OSError:
        return None
    match = _NAME.search(head)
    return match[1] if match else None

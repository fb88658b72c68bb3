"""Verbs for all boxes of a spec with `boxes`: options of the children, and the common output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kimbox.cli import target
from kimbox.cli.output import report, settings

if TYPE_CHECKING:
    from kimbox.spec.members import Member

#: Options of a verb: name -> value. True gives the option alone, a list repeats it; False and None leave it out.
Options = dict[str, str | bool | Sequence[str] | None]


def words_of(options: Options) -> list[str]:
    """Returns the options as words of a command line, with the global options of this run."""
    limit = f"{settings.timeout_s:.0f}s" if settings.timeout_s else None
    words: list[str] = []
    for name, value in {
        **options,
        "--quiet": settings.quiet,
        "--verbose": settings.verbose,
        "--timeout": limit,
    }.items():
        if value is True:
            words.append(name)
        for text in [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []:
            words += [name, str(text)]
    return words


def run(verb: str, spec: Path, members: Sequence[Member], options: Options, *, is_last_first: bool = False) -> None:
    """Runs a verb for each box in a kimbox of its own, and prints the results.

    `is_last_first`: a box comes after those that need it.
    """
    from kimbox.actions import several

    workers = several.at_a_time(spec, members)
    ordered = several.reversed_needs(members) if is_last_first else members
    results = several.run_all(ordered, several.runner_of([verb], words_of(options), spec), workers=workers)
    print_all(verb, [(result, f"{name} is {result['state']}") for name, result in results.items()])


def print_all(verb: str, results: Sequence[tuple[dict[str, Any], str]], separator: str = "\n") -> None:
    """Prints the result and the text of each box."""
    report(verb, {"boxes": [result for result, _ in results]}, separator.join(text for _, text in results))


def one_or_each(
    verb: str,
    name: str | None,
    file: Path | None,
    work: Callable[[str | None, Path | None], tuple[dict[str, Any], str]],
    separator: str = "\n",
) -> None:
    """Does a verb that starts no guest for a box, or for each box of a spec in turn, and prints the results."""
    found = target.several(name, file)
    if found is None:
        report(verb, *work(name, file))
        return
    print_all(verb, [work(member.name, found[0]) for member in found[1]], separator)

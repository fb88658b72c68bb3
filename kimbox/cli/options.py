"""Global options, which are accepted before and after the verb."""

from __future__ import annotations

from kimbox.cli.verbs import VERBS
from kimbox.errors import UsageError

#: Options that are accepted before and after the verb. The value: whether the option takes an argument.
GLOBAL_OPTIONS = {
    "--json": False, "--quiet": False, "-q": False, "--verbose": False, "-v": False, "--no-color": False,
    "--timeout": True,
}  # fmt: skip


def seconds_of(option: str, text: str, *, max_days: int = 7) -> float:
    """Returns the seconds of the value of an option, such as 90s, of at most `max_days`. Raises UsageError."""
    from kimbox.spec.nodes import Fault
    from kimbox.spec.units import duration

    try:
        return float(duration(text, max_s=max_days * 86400))
    except Fault as fault:
        raise UsageError(
            f"{option}: {fault}", code=fault.code, hint="write it as 90s, 5m or 2h", fields={"option": option}
        ) from None


def hoist(arguments: list[str]) -> list[str]:
    """Moves global options to the front. Arguments after `--` belong to another program and stay where they are.

    The arguments after the program of `exec` stay too, without `--`: the parser rejects an option there.
    Raises UsageError if an option lacks its value.
    """
    front, rest, incomplete = split_global(arguments)
    if incomplete:
        hint = f"write it as {incomplete} 5m or {incomplete}=90s"
        raise UsageError(f"{incomplete} lacks its value", code="usage", hint=hint, fields={"option": incomplete})
    return front + rest


def split_global(arguments: list[str]) -> tuple[list[str], list[str], str | None]:
    """Returns the global options with their values, the other arguments, and the option that lacks its value."""
    front: list[str] = []
    rest: list[str] = []
    names: list[str] = []
    incomplete = None
    words = list(arguments)
    while words:
        word = words.pop(0)
        option = word.split("=", 1)[0]
        if word == "--" or (names[:1] == ["exec"] and len(names) == 3):
            rest += [word, *words]
            break
        if option not in GLOBAL_OPTIONS:
            rest.append(word)
            names += [] if word.startswith("-") else [word]
        elif not GLOBAL_OPTIONS[option] or "=" in word:
            front.append(word)
        elif words and not words[0].startswith("-") and words[0] not in VERBS:
            front += [word, words.pop(0)]
        else:
            incomplete = option
    return front, rest, incomplete

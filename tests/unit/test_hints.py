"""Every command `kimbox ...` in a message of the code or in a document is accepted: verb, options and arguments."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from kimbox.cli import app as cli
from kimbox.cli.options import split_global
from kimbox.cli.verbs import VERBS

KIMBOX = Path(__file__).resolve().parents[2] / "kimbox"

#: A command in a message, in backquotes. A line break is a break of a string in the code.
COMMAND = re.compile(r"`kimbox( [^`]*)?`")

#: Option -> a value for a placeholder after it.
VALUES = {"--boot": "keep", "--provider": "vagrant", "--save": "1"}

#: The value of any other placeholder: upper-case words, `[BOX]`, and values that the code fills in.
SAMPLE = "sample"

#: Verbs whose first argument is an action -> the actions (the functions check them after the parser).
ACTIONS = {
    "snapshot": {"save", "restore", "list", "delete", SAMPLE},
    "box": {"add", "list", "remove", "prune", SAMPLE},
}

#: Verb, or verb and action -> the arguments that it requires.
ARGUMENTS = {"snapshot save": "NAME", "cp": "FILE BOX:"}

#: Names that stand for any verb or for a part of a command, and not for a command: `kimbox VERB --help`.
ANY_VERB = {"VERB", SAMPLE}


def texts(node: ast.expr) -> list[str]:
    """Returns every text that an expression can give. Values that are not known become SAMPLE."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.IfExp):
        return [*texts(node.body), *texts(node.orelse)]
    if isinstance(node, ast.FormattedValue):
        return texts(node.value) if isinstance(node.value, ast.IfExp | ast.JoinedStr) else [SAMPLE]
    if isinstance(node, ast.JoinedStr):
        return ["".join(parts) for parts in itertools.product(*map(texts, node.values))]
    return [SAMPLE]


def commands() -> Iterator[tuple[str, str]]:
    """Yields the place and the arguments of every command in a text of the code. Docstrings are for developers."""
    for module in sorted(KIMBOX.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(module.read_text())))  # once: to walk takes most of the time
        joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
        inside = {id(part) for node in joined for part in ast.walk(node)}
        inside |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        inside -= {id(node) for node in joined}
        for node in nodes:
            if id(node) in inside or not isinstance(node, ast.JoinedStr | ast.Constant):
                continue
            for text in texts(node):
                for match in COMMAND.finditer(text):
                    yield f"{module.relative_to(KIMBOX.parent)}:{node.lineno}", (match[1] or "").strip()


def filled(arguments: str) -> list[str]:
    """Returns the arguments of a command, with a value in place of each placeholder."""
    words = shlex.split(arguments.replace("...", "").replace("{name}", SAMPLE).replace("{box}", SAMPLE))
    result: list[str] = []
    for word in words:
        word = word.strip("[]") if word.startswith("[-") else word
        is_placeholder = word.strip("[]").replace("|", "").isupper() and not word.startswith("-")
        if is_placeholder or word == SAMPLE:
            word = VALUES.get(result[-1], SAMPLE) if result else word
        result.append(word)
    return result


def parse(words: list[str]) -> str | None:
    """Parses the arguments of a command as kimbox does, and runs nothing. Returns what is wrong with them, or None."""
    _, rest, _ = split_global(words)
    if not rest or rest[0] in ANY_VERB or rest in (["--help"], ["--version"]):
        return None
    verb, arguments = rest[0], rest[1:]
    if verb not in VERBS:
        return f"there is no verb {verb}"
    if arguments and verb in ACTIONS and not arguments[0].startswith("-") and arguments[0] not in ACTIONS[verb]:
        return f"{verb} has no action {arguments[0]}"
    if arguments[-1:] == ["--help"] or (verb in ACTIONS and arguments == [SAMPLE]):
        return None
    group: Any = typer.main.get_command(cli.app)
    try:
        with group.make_context("kimbox", [], resilient_parsing=True) as context:
            command = group.get_command(context, verb)
            while hasattr(command, "get_command") and arguments:
                command, arguments = command.get_command(context, arguments[0]), arguments[1:]
                if command is None:
                    return f"{verb} has no such action"
            command.make_context(verb, arguments, parent=context).close()
    except Exception as error:
        if not hasattr(error, "format_message"):  # as in kimbox.cli.app: typer may have a click of its own
            raise
        return str(error.format_message())
    return None


def commands_of_documents() -> Iterator[tuple[str, str]]:
    """Yields the place and the arguments of every command in the text of a document."""
    for document in (KIMBOX.parent / "README.md", *sorted((KIMBOX.parent / "docs").glob("*.md"))):
        for number, line in enumerate(document.read_text().splitlines(), 1):
            for match in COMMAND.finditer(line):
                yield f"{document.relative_to(KIMBOX.parent)}:{number}", (match[1] or "").strip()


ALL = sorted({(arguments, place) for place, arguments in commands()})
IN_DOCUMENTS = sorted({(arguments, place) for place, arguments in commands_of_documents()})


def test_there_are_commands() -> None:
    """The search finds the hints: the other test would pass if it found none."""
    found = {arguments.split(" ")[0] for arguments, _ in ALL}
    assert len(ALL) > 100
    assert {"up", "lock", "destroy", "snapshot", "secure", "box"} <= found


@pytest.mark.parametrize(("arguments", "place"), ALL)
def test_a_command_of_a_message_is_accepted(arguments: str, place: str) -> None:
    """It has a verb of kimbox, and options and arguments that the verb takes."""
    assert None is parse(filled(arguments)), f"{place}: kimbox {arguments}"


@pytest.mark.parametrize(("arguments", "place"), IN_DOCUMENTS)
def test_a_command_of_a_document_is_accepted(arguments: str, place: str) -> None:
    """As in a message. A text may also name a verb or an option without the value that it requires."""
    fault = parse(filled(arguments)) or ""
    assert fault == "" or fault.startswith("Missing ") or "requires an argument" in fault, f"{place}: {fault}"


@pytest.mark.parametrize(
    "arguments", ["nosuch", "up --nosuch", "lock --update", "up --boot", "snapshot drop x", "status a b"]
)
def test_a_wrong_command_is_found(arguments: str) -> None:
    """The check fails for an unknown verb, option or action, a missing value, and an argument too many."""
    assert None is not parse(filled(arguments))


@pytest.mark.parametrize(("other", "meant"), sorted(cli.OTHER_VERBS.items()))
def test_a_verb_of_another_tool(other: str, meant: str) -> None:
    """It is not a verb of kimbox, and the verb that it suggests is one, with its options."""
    assert other not in VERBS
    assert None is parse(filled(f"{meant} {ARGUMENTS.get(meant, '')}"))

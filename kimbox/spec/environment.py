"""The part `env` of a spec: variables of provisioning and of sessions. A secret one has its value in a file."""

from __future__ import annotations

import re
from pathlib import Path

from kimbox.spec.model import Variable
from kimbox.spec.nodes import Fault, Node, shown
from kimbox.spec.reader import Reader

#: Maximum length of a value in bytes: pam_env(8) reads lines of at most 1024, with the name.
MAX_VALUE_BYTES = 800
MAX_NAME_CHARACTERS = 63

#: Variables that a login sets, and those with which a value would change how every program of the box starts.
RESERVED = frozenset({
    "BASH_ENV", "ENV", "HOME", "IFS", "LOGNAME", "OLDPWD", "PATH", "PWD", "SHELL", "SHLVL", "TERM", "TMPDIR", "USER",
})  # fmt: skip
RESERVED_PREFIXES = ("KIMBOX_", "LD_", "SSH_", "SUDO_", "XDG_")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def name(text: str) -> str:
    """Returns the name of a variable. Raises Fault if no shell could set it, or if it is reserved."""
    if not _NAME.fullmatch(text) or len(text) > MAX_NAME_CHARACTERS:
        message = f"{shown(text)} cannot be the name of a variable: use letters, digits and _, at most 63"
        raise Fault(message, "for example OMP_NUM_THREADS", code="bad-name")
    if text in RESERVED or text.startswith(RESERVED_PREFIXES):
        hint = "a login sets it; a step of `provision` can write a file in /etc/profile.d"
        raise Fault(f"the variable {text} is reserved", hint, code="bad-name")
    return text


def value(text: str) -> str:
    """Returns a value that pam_env(8) and a shell read unchanged. Raises Fault, without the value, for any other."""
    fault = ""
    if len(text.encode()) > MAX_VALUE_BYTES:
        fault = f"is longer than {MAX_VALUE_BYTES} bytes"
    elif not text.isprintable():
        fault = "has a line break or another control character"
    elif text != text.strip() or text[:1] in ("'", '"') or text[-1:] == "\\" or "#" in text:
        fault = "has a blank, quote or backslash at its start or end, or a #: PAM would change it"
    if fault:
        raise Fault(f"the value {fault}", "pass it in a file that the box gets another way", code="bad-value")
    return text


def file_name(text: str) -> str:
    """Returns the path of the file with a secret value, relative to the file that names it. It may be missing yet."""
    parts = text.split("/")
    if not text or "\0" in text or text.startswith(("/", "~", "-")) or ".." in parts:
        hint = "a file in the folder of the spec, which git ignores"
        raise Fault(f"{shown(text)} is not a path below the folder of the spec", hint, code="bad-path")
    return text


def read_variables(reader: Reader) -> tuple[Variable, ...]:
    """Returns the variables of a spec, in its order. The files of secret ones are not read."""
    variables: list[Variable] = []
    node = reader.tree.get("env")
    for key, item in node.mapping.items() if node else ():
        try:
            name(key)
        except Fault as fault:
            assert node is not None  # noqa: S101 - for the type checker
            reader.problems.add(node.keys[key], fault.message, fault.hint, code=fault.code)
            continue
        variables.append(_variable(reader, key, item))
    if any(variable.file for variable in variables) and reader.switch(reader.tree.get("warm")):
        warm = reader.tree.mapping["warm"]
        message = "a box with secrets in `env` has no template: its memory would be stored, with the secrets"
        reader.fault(warm, message, "remove `warm`", code="conflicting-settings")
    return tuple(variables)


def _variable(reader: Reader, key: str, item: Node) -> Variable:
    file = reader.text(item.get("file"), file_name, "")
    if file:
        return Variable(key, None, Path(item.mark.file).parent / file)
    return Variable(key, reader.text(item, value, ""), None)

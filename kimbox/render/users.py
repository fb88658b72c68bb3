"""Renders the file of an account of a person, which `users` in the guest reads. No input or output."""

from __future__ import annotations

from kimbox.spec.model import User


def user_file(user: User) -> bytes:
    """Returns the line with sudo and groups, and then a line for each key."""
    first = f"{'yes' if user.sudo else 'no'} {','.join(user.groups) or '-'}"
    return "".join(f"{line}\n" for line in (first, *user.keys)).encode()

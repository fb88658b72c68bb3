"""Limits the TCP ports to which a program connects, with Landlock (landlock(7)): without root, for as long as it runs.

Linux 6.7 has this (ABI 4). The limit is on the port alone, whatever the address. It does not concern UDP.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

#: Numbers of the system calls, the same for all processors (asm-generic/unistd.h).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446

#: Values of linux/landlock.h and linux/prctl.h.
_CREATE_RULESET_VERSION = 1
_RULE_NET_PORT = 2
_ACCESS_NET_CONNECT_TCP = 2
_PR_SET_NO_NEW_PRIVS = 38

#: The first version of the interface that limits ports.
_ABI_WITH_PORTS = 4


def limits_ports() -> bool:
    """Whether the kernel of this host can limit the ports."""
    return int(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)) >= _ABI_WITH_PORTS


def limit_ports(ports: Iterable[int]) -> None:
    """Lets this process, and every program that it becomes, connect to these TCP ports only. Raises OSError.

    It starts no other code, so that it can run between fork and exec.
    """
    libc = _libc()
    attributes = struct.pack("=QQ", 0, _ACCESS_NET_CONNECT_TCP)
    ruleset = _checked(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    try:
        for port in ports:
            rule = struct.pack("=QQ", _ACCESS_NET_CONNECT_TCP, port)
            _checked(libc.syscall(_ADD_RULE, ruleset, _RULE_NET_PORT, rule, 0))
        _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result

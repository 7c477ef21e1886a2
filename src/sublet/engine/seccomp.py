"""System calls that a tenant has no use for, refused by the kernel.

The sandbox has no capabilities, so most of these would fail anyway. But each is a way into
the kernel, and new user namespaces give their maker every capability inside: with both
closed, a hole in one of them is not a hole in Sublet.

Source: the deny list follows the default profiles of Flatpak and Docker.
"""

import errno
import platform
import struct
from typing import Final

# name → (x86_64, aarch64). Numbers from the kernel's own tables; the newer are shared.
_DENIED: Final = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setns": (308, 268),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_CLONE: Final = (56, 220)
_CLONE3: Final = (435, 435)
_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_NEW_USER_NAMESPACE: Final = 0x10000000
_X32: Final = 0x40000000  # x86_64 kernels take a second set of numbers from here on


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """Return one struct sock_filter; jumps count the steps to skip."""
    return struct.pack("=HBBI", code, then, otherwise, value)


def denied(machine: str | None = None) -> bytes:
    """Return the filter for bwrap's --seccomp; b"" on a machine whose numbers we do not know."""
    column, architecture = _ARCHITECTURES.get(machine or platform.machine(), (0, 0))
    if not architecture:
        return b""
    refuse = _step(_RETURN, _ERRNO | errno.EPERM)
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, 1),
        refuse,  # a 32-bit program would number its calls otherwise
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, 0, 1),
        refuse,
    ]
    for numbers in _DENIED.values():
        steps += [_step(_EQUAL, numbers[column], 0, 1), refuse]
    steps += [
        # Its flags are behind a pointer, which a filter cannot follow. Told that there is no
        # such call, every libc falls back on clone.
        _step(_EQUAL, _CLONE3[column], 0, 1),
        _step(_RETURN, _ERRNO | errno.ENOSYS),
        _step(_EQUAL, _CLONE[column], 0, 3),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_ANY_BIT, _NEW_USER_NAMESPACE, 0, 1),
        refuse,
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(steps)

"""The system calls that end a sandboxed program at once: what no program that computes an answer needs.

Most would fail anyway, since the sandbox has no network and no privileges. Being killed by SIGSYS makes the attempt
known, closes parts of the kernel that have had holes, and shuts ways around the memory limit (memfd, SysV segments).
A filter is a classic BPF program over `struct seccomp_data`: number at 0, architecture at 4, arguments from 16 on.
"""

import platform
import struct

ALLOW, KILL, NO_SUCH_CALL = 0x7FFF0000, 0x80000000, 0x00050000 | 38
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
UNIX, INIT, CHECKER, EVERYBODY = 1, 1, 2, 0xFFFFFFFF
NEW_NAMESPACES = 0x7E020000
X32 = 0x40000000
"""A second table of numbers on x86-64."""

# Audit number of the architecture, then the calls' numbers.
TABLES = {
    "x86_64": (0xC000003E, {
        "socket": 41, "clone": 56, "kill": 62, "clone3": 435,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_getfd": 438,
        "mount": 165, "unshare": 272, "setns": 308,
        "add_key": 248, "request_key": 249, "keyctl": 250,
        "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425,
        "memfd_create": 319, "memfd_secret": 447, "shmget": 29,
    }),
    "aarch64": (0xC00000B7, {
        "socket": 198, "clone": 220, "kill": 129, "clone3": 435,
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "pidfd_getfd": 438,
        "mount": 40, "unshare": 97, "setns": 268,
        "add_key": 217, "request_key": 218, "keyctl": 219,
        "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "io_uring_setup": 425,
        "memfd_create": 279, "memfd_secret": 447, "shmget": 194,
    }),
}  # fmt: skip


def build(checker: bool) -> bytes:
    """The filter for this machine; with a checker, the sandbox's second process is out of reach, too.

    Raises `NotImplementedError` where the numbers are not known.
    """
    machine = platform.machine()
    if machine not in TABLES:
        raise NotImplementedError(f"no list of system calls for {machine}; known are {', '.join(TABLES)}")
    architecture, calls = TABLES[machine]
    calls = dict(calls)
    conditional = _socket(calls.pop("socket")) + _clone(calls.pop("clone")) + _kill(calls.pop("kill"), checker)
    no_clone3 = [
        _jump(EQUAL, calls.pop("clone3"), 0, 1),
        _return(NO_SUCH_CALL),
    ]  # its flags lie in memory; libc falls back
    plain = [line for number in calls.values() for line in (_jump(EQUAL, number, 0, 1), _return(KILL))]
    return b"".join([*_entry(architecture), *conditional, *no_clone3, *plain, _return(ALLOW)])


def _entry(architecture: int) -> list[bytes]:
    return [
        _load(ARCHITECTURE),
        _jump(EQUAL, architecture, 1, 0),
        _return(KILL),
        _load(NUMBER),
        _jump(AT_LEAST, X32, 0, 1),
        _return(KILL),
    ]


def _socket(number: int) -> list[bytes]:
    """Only Unix ones, which asyncio and multiprocessing need."""
    return _call(number, [_jump(EQUAL, UNIX, 1, 0), _return(KILL)])


def _clone(number: int) -> list[bytes]:
    """Processes and threads, but no new namespaces."""
    return _call(number, [_jump(ANY_BIT, NEW_NAMESPACES, 0, 1), _return(KILL)])


def _kill(number: int, checker: bool) -> list[bytes]:
    """Its own children, but neither the sandbox's first process, nor the checker, nor everybody."""
    out_of_reach = [INIT, EVERYBODY, *([CHECKER] if checker else [])]
    return _call(number, [line for pid in out_of_reach for line in (_jump(EQUAL, pid, 0, 1), _return(KILL))])


def _call(number: int, on_first_argument: list[bytes]) -> list[bytes]:
    body = [_load(FIRST_ARGUMENT), *on_first_argument, _return(ALLOW)]
    return [_jump(EQUAL, number, 0, len(body)), *body]


def _load(offset: int) -> bytes:
    return struct.pack("HBBI", LOAD, 0, 0, offset)


def _jump(test: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("HBBI", test, if_true, if_false, value)


def _return(action: int) -> bytes:
    return struct.pack("HBBI", RETURN, 0, 0, action)

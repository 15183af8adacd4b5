"""The system calls that a process which runs models may not make, and the seccomp filter that says so. Pure.

A deny-list that answers EPERM, not an allow-list that kills: what ONNX Runtime, numpy and glibc call changes between
releases, and a model that serves must not die of it. What is denied is what a process that has all its files and
sockets never does, and whoever takes it over wants first: other programs, processes, sockets, files to write, other
processes' memory and signals, and the parts of the kernel that most often had holes.

Numbers: asm/unistd_64.h (x86-64) and asm-generic/unistd.h (arm64), which a test compares with.
Filter: https://docs.kernel.org/userspace-api/seccomp_filter.html; instructions: linux/bpf_common.h.
"""

import errno
import struct

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]. Both machines are little-endian, and what
# is looked at of an argument (flags, process numbers) is in its lower half: the kernel takes an int there.
_NUMBER_OFFSET, _MACHINE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_INSTRUCTION = struct.Struct("<HBBI")
assert _INSTRUCTION.size == 8  # struct sock_filter

# BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JA, BPF_JMP|BPF_{JEQ,JGE,JSET}|BPF_K, BPF_RET|BPF_K
_LOAD, _GO, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000

# AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64 (linux/audit.h), and the column of the table below.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# Numbers of the x32 ABI, which reaches the same calls by other numbers (asm/unistd.h: __X32_SYSCALL_BIT).
_X32 = 0x40000000

# O_WRONLY, O_RDWR, O_CREAT, O_TRUNC: the same on both machines.
_WRITING = 0x1 | 0x2 | 0x40 | 0x200
_CLONE_THREAD = 0x00010000
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_CLONE_NEW = 0x7E020000
# Typing into the terminal that the server was started from: TIOCSTI, TIOCLINUX (as CVE-2017-5226).
_TYPING = (0x5412, 0x541C)

NOT_THERE = -1
# Name: (x86-64, arm64).
DENIED: dict[str, tuple[int, int]] = {
    # Programs. Processes: see `clone`.
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, NOT_THERE),
    "vfork": (58, NOT_THERE),
    # Sockets: all that a worker uses are made before, or handed to it.
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "accept4": (288, 242),
    "bind": (49, 200),
    "listen": (50, 201),
    # It could make the three above.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    # Files: nothing is made, changed or removed. What is open (segments, large messages) stays writable.
    "creat": (85, NOT_THERE),
    "truncate": (76, 45),
    "mkdir": (83, NOT_THERE),
    "mkdirat": (258, 34),
    "rmdir": (84, NOT_THERE),
    "unlink": (87, NOT_THERE),
    "unlinkat": (263, 35),
    "rename": (82, NOT_THERE),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, NOT_THERE),
    "linkat": (265, 37),
    "symlink": (88, NOT_THERE),
    "symlinkat": (266, 36),
    "mknod": (133, NOT_THERE),
    "mknodat": (259, 33),
    "chmod": (90, NOT_THERE),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, NOT_THERE),
    "lchown": (94, NOT_THERE),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, NOT_THERE),
    "utimes": (235, NOT_THERE),
    "futimesat": (261, NOT_THERE),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # Whose process it is, and where it lives.
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "setgroups": (116, 159),
    "capset": (126, 91),
    "personality": (135, 92),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # The kernel's parts that a model needs least and that had most holes.
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "modify_ldt": (154, NOT_THERE),
    # The machine.
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "iopl": (172, NOT_THERE),
    "ioperm": (173, NOT_THERE),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    "syslog": (103, 116),
    "vhangup": (153, 58),
}
# Their arguments are in memory, where a filter cannot look. glibc knows kernels that lack them, and does without.
UNKNOWN: dict[str, tuple[int, int]] = {"clone3": (435, 435), "openat2": (437, 437)}
# Allowed or not by their arguments: `_bodies`.
CONDITIONAL: dict[str, tuple[int, int]] = {
    "open": (2, NOT_THERE),
    "openat": (257, 56),
    "clone": (56, 220),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "ioctl": (16, 29),
}

Program = list[tuple[int, int, int, int]]
"""BPF instructions: code, jump if true, jump if not (both count what is left out), constant."""

_ALLOWED: Program = [(_RETURN, 0, 0, _ALLOW)]
_REFUSED: Program = [(_RETURN, 0, 0, _ERROR | errno.EPERM)]
_NO_SUCH_CALL: Program = [(_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
# So many comparisons in a row are as quick as another fork of the tree.
_LEAF_MAX = 4


def build_filter(machine: str, pid: int) -> bytes:
    """The filter's instructions, for `struct sock_fprog`.

    Args:
        machine: one of MACHINES.
        pid: the process that it is for, which may signal and limit itself.
    """
    audit_number, column = MACHINES[machine]
    bodies = {name: _REFUSED for name in DENIED} | {name: _NO_SUCH_CALL for name in UNKNOWN} | _bodies(pid)
    numbers = {name: columns[column] for name, columns in (DENIED | UNKNOWN | CONDITIONAL).items()}
    rules = sorted((numbers[name], body) for name, body in bodies.items() if numbers[name] != NOT_THERE)
    program: Program = [
        (_LOAD, 0, 0, _MACHINE_OFFSET),
        # Another machine's calls, such as those of 32-bit programs, have other numbers: none of them is needed.
        (_IF_EQUAL, 1, 0, audit_number),
        *_REFUSED,
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_IF_AT_LEAST, 0, 1, _X32),
        *_REFUSED,
        *_tree(rules),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def _bodies(pid: int) -> dict[str, Program]:
    """What is done with a call whose arguments decide."""
    return {
        "open": _refused_with_bits(1, _WRITING),
        "openat": _refused_with_bits(2, _WRITING),
        # Threads, not processes; and no namespaces, in which a process may do what it may not here.
        "clone": [
            *_argument(0),
            (_IF_ANY_BIT, 0, 1, _CLONE_NEW),
            *_REFUSED,
            (_IF_ANY_BIT, 0, 1, _CLONE_THREAD),
            *_ALLOWED,
            *_REFUSED,
        ],
        "kill": _allowed_with(0, (pid,)),
        "tgkill": _allowed_with(0, (pid,)),
        "prlimit64": _allowed_with(0, (0, pid)),
        "ioctl": [*_argument(1), *(step for code in _TYPING for step in _if_equal(code, _REFUSED)), *_ALLOWED],
    }


def _argument(index: int) -> Program:
    return [(_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * index)]


def _if_equal(value: int, body: Program) -> Program:
    """Goes on behind the body, which returns, if what is loaded is something else."""
    return [(_IF_EQUAL, 0, len(body), value), *body]


def _refused_with_bits(argument: int, bits: int) -> Program:
    return [*_argument(argument), (_IF_ANY_BIT, 0, 1, bits), *_REFUSED, *_ALLOWED]


def _allowed_with(argument: int, values: tuple[int, ...]) -> Program:
    return [*_argument(argument), *(step for value in values for step in _if_equal(value, _ALLOWED)), *_REFUSED]


def _tree(rules: list[tuple[int, Program]]) -> Program:
    """A binary search by the call's number: a call that is allowed passes some ten instructions, not a hundred."""
    if len(rules) <= _LEAF_MAX:
        return [*(step for number, body in rules for step in _if_equal(number, body)), *_ALLOWED]
    middle = len(rules) // 2
    lower, upper = _tree(rules[:middle]), _tree(rules[middle:])
    # A conditional jump reaches 255 instructions, this one any number.
    return [(_IF_AT_LEAST, 0, 1, rules[middle][0]), (_GO, 0, 0, len(lower)), *lower, *upper]

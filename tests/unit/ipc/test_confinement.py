"""Confinement, on real processes: each test confines a fresh interpreter and has it try."""

import json
import os
import platform
import re
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest

from nexus_grpc.ipc import system_calls
from nexus_grpc.ipc.confinement import missing_support
from nexus_grpc.ipc.system_calls import CONDITIONAL, DENIED, MACHINES, NOT_THERE, UNKNOWN, build_filter
from tests.unit.support import ROOT

X86_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
ARM_HEADER = Path("/usr/include/asm-generic/unistd.h")

START = """
import contextlib, ctypes, errno, json, mmap, os, resource, signal, socket, subprocess, sys, threading, time
from nexus_grpc.ipc.confinement import *
libc = ctypes.CDLL(None, use_errno=True)

def refused(call, *arguments):
    "The error's name; the result's type where there is none."
    ctypes.set_errno(0)
    try:
        result = call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return errno.errorcode[ctypes.get_errno()] if result == -1 else type(result).__name__

def status(thread="self"):
    path = "/proc/self/status" if thread == "self" else f"/proc/self/task/{thread}/status"
    return {key: value.strip() for key, _, value in (line.partition(":") for line in open(path))}

"""


def confined(code: str, *, before: str = "", timeout: float = 60) -> Any:
    """What the code prints, as JSON, in a process that has confined itself after `before`."""
    steps = "missing = shed_privileges()", textwrap.dedent(before), "missing += filter_system_calls()"
    text = "\n".join([START, *steps, "assert not missing, missing", textwrap.dedent(code)])
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def allows(what: str) -> bool:
    return not any(text.startswith(what) for text in missing_support())


needs_seccomp = pytest.mark.skipif(not allows("seccomp"), reason="this kernel has no seccomp filters for us")
needs_landlock = pytest.mark.skipif(not allows("Landlock"), reason="this kernel has no Landlock for us")


# --- the table and the program ---


def numbers_of(header: Path) -> dict[str, int]:
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s", header.read_text())
    return {name: int(number) for name, number in found}


@pytest.mark.parametrize(("header", "column"), [(X86_HEADER, 0), (ARM_HEADER, 1)], ids=["x86_64", "aarch64"])
def test_the_numbers_are_the_kernel_s(header: Path, column: int) -> None:
    if not header.exists():
        pytest.skip(f"{header} is not installed (linux-libc-dev)")
    known = numbers_of(header)
    newest = max(known.values())
    for name, columns in (DENIED | UNKNOWN | CONDITIONAL).items():
        number = columns[column]
        if number <= newest:  # the headers may be older than the call
            assert known.get(name, NOT_THERE) == number, name


def test_every_call_is_in_one_table_and_has_one_number() -> None:
    everything = [*DENIED.items(), *UNKNOWN.items(), *CONDITIONAL.items()]
    assert len({name for name, _ in everything}) == len(everything)
    for column in (0, 1):
        numbers = [columns[column] for _, columns in everything if columns[column] != NOT_THERE]
        assert len(set(numbers)) == len(numbers)


Run = tuple[int, int]


def run_filter(program: bytes, number: int, arguments: list[int], machine: int) -> Run:
    """(what the filter answers, how many instructions that took): an interpreter of the few instructions there are."""
    data = {0: number, 4: machine, **{16 + 8 * index: value for index, value in enumerate(arguments)}}
    steps = [system_calls._INSTRUCTION.unpack_from(program, at) for at in range(0, len(program), 8)]
    accumulator, at, count = 0, 0, 0
    while True:
        code, if_true, if_not, constant = steps[at]
        at, count = at + 1, count + 1
        if code == system_calls._RETURN:
            return constant, count
        if code == system_calls._LOAD:
            accumulator = data[constant] & 0xFFFFFFFF
        elif code == system_calls._GO:
            at += constant
        else:
            tests = {
                system_calls._IF_EQUAL: accumulator == constant,
                system_calls._IF_AT_LEAST: accumulator >= constant,
                system_calls._IF_ANY_BIT: bool(accumulator & constant),
            }
            at += if_true if tests[code] else if_not


ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050000 | 38


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_answers_as_the_tables_say(machine: str) -> None:
    audit, column = MACHINES[machine]
    program = build_filter(machine, 77)
    expected = {columns[column]: EPERM for columns in DENIED.values()}
    expected |= {columns[column]: ENOSYS for columns in UNKNOWN.values()}
    conditional = {columns[column] for columns in CONDITIONAL.values()}
    for number in set(range(600)) - conditional:
        answer, steps = run_filter(program, number, [0] * 6, audit)
        assert answer == expected.get(number, ALLOW), number
        assert steps < 30
    for name, arguments, answer in [
        ("openat", [0, 0, os.O_RDONLY | os.O_CLOEXEC], ALLOW),
        ("openat", [0, 0, os.O_RDWR], EPERM),
        ("openat", [0, 0, os.O_CREAT], EPERM),
        ("clone", [0x3D0F00], ALLOW),  # pthread_create(3)
        ("clone", [17], EPERM),  # fork(3)
        ("clone", [0x3D0F00 | 0x10000000], EPERM),
        ("kill", [77, 9], ALLOW),
        ("kill", [1, 9], EPERM),
        ("kill", [0xFFFFFFFF, 9], EPERM),
        ("tgkill", [77, 80, 6], ALLOW),
        ("tgkill", [78, 80, 6], EPERM),
        ("prlimit64", [0], ALLOW),
        ("prlimit64", [78], EPERM),
        ("ioctl", [1, 0x5412], EPERM),
        ("ioctl", [1, 0x541C], EPERM),
        ("ioctl", [1, 0x5413], ALLOW),
    ]:
        number = CONDITIONAL[name][column]
        assert run_filter(program, number, [*arguments, 0, 0, 0], audit)[0] == answer, (name, arguments)


def test_calls_by_another_machine_s_numbers_are_refused() -> None:
    read_i386, getpid_x32 = 3, 0x40000000 | 39
    audit, _ = MACHINES["x86_64"]
    program = build_filter("x86_64", 77)
    assert run_filter(program, read_i386, [0] * 6, 0x40000003)[0] == EPERM
    assert run_filter(program, getpid_x32, [0] * 6, audit)[0] == EPERM


def test_an_unknown_machine_is_confined_as_far_as_it_goes() -> None:
    code = START + "import platform; platform.machine = lambda: 'riscv64'\n"
    code += "print(json.dumps([shed_privileges(), filter_system_calls(), missing_support(), status()['NoNewPrivs']]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    reason = "not known for riscv64 processors"
    assert json.loads(done.stdout) == [
        [f"no access to other processes (Landlock): {reason}"],
        [f"no sockets, programs or written files (seccomp): {reason}"],
        [f"Landlock: {reason}", f"seccomp: {reason}"],
        "1",
    ]


# --- what a confined process can do, and what not ---


@needs_seccomp
@needs_landlock
def test_every_thread_is_confined() -> None:
    threads = confined(
        """
        print(json.dumps([{name: status(thread)[name] for name in ("Seccomp", "NoNewPrivs", "CapEff", "CapPrm")}
                          for thread in os.listdir("/proc/self/task")]))
        """,
        before="""
        import nexus_grpc.worker.onnx_runtime
        for _ in range(3):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        """,
    )
    assert len(threads) >= 4
    for thread in threads:
        assert (thread["Seccomp"], thread["NoNewPrivs"]) == ("2", "1")
        assert int(thread["CapEff"], 16) & ~0b110 == int(thread["CapPrm"], 16) & ~0b110 == 0


@needs_seccomp
def test_no_socket_of_any_family() -> None:
    answers = confined(
        """
        families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET, 40)
        answers = {str(int(family)): refused(socket.socket, family, socket.SOCK_STREAM) for family in families}
        more = {"connect": refused(ours.connect, "\\0nobody"), "bind": refused(ours.bind, "\\0somebody"),
                "listen": refused(ours.listen), "io_uring": refused(libc.syscall, 425, 1, 0)}
        print(json.dumps({**answers, **more}))
        """,
        before="ours = socket.socket(socket.AF_UNIX)",
    )
    assert set(answers.values()) == {"EPERM"}


@needs_seccomp
def test_descriptors_still_come_and_go_over_the_sockets_it_has() -> None:
    assert (
        confined(
            """
        memory = os.memfd_create("large message")
        os.ftruncate(memory, 4096)
        socket.send_fds(ours, [b"x"], [memory])
        _, [received], _, _ = socket.recv_fds(theirs, 1, 1)
        with mmap.mmap(received, 4096) as mapped:
            mapped[:5] = b"hello"
        print(json.dumps(os.pread(memory, 5, 0).decode()))
        """,
            before="ours, theirs = socket.socketpair()",
        )
        == "hello"
    )


@needs_seccomp
def test_no_program_and_no_process() -> None:
    answers = confined(
        """
        print(json.dumps([refused(os.execv, "/bin/true", ["true"]), refused(os.fork), refused(os.posix_spawn,
              "/bin/true", ["true"], {}), refused(subprocess.Popen, ["/bin/true"]), refused(libc.vfork),
              refused(libc.unshare, 0x10000000), refused(libc.unshare, 0x40000000)]))
        """
    )
    assert answers == ["EPERM"] * 7


@needs_seccomp
@needs_landlock
def test_no_look_into_other_processes_and_no_signal_to_them() -> None:
    # The parent is the test itself, of the same user.
    answers = confined(
        """
        parent = os.getppid()
        ptrace_attach = 16
        closed = {name: refused(open, f"/proc/{parent}/{name}") for name in ("environ", "mem", "maps")}
        closed["fd"] = refused(os.readlink, f"/proc/{parent}/fd/0")
        print(json.dumps([closed, refused(libc.ptrace, ptrace_attach, parent, 0, 0), refused(os.kill, parent, 0),
              refused(os.kill, -1, 0), refused(signal.pidfd_send_signal, os.pidfd_open(parent), 0),
              refused(resource.prlimit, parent, resource.RLIMIT_CORE, (0, 0)),
              refused(libc.process_vm_readv, parent, None, 0, None, 0, 0)]))
        """
    )
    closed, *calls = answers
    assert set(closed.values()) <= {"EPERM", "EACCES"}
    assert calls == ["EPERM"] * 6


@needs_seccomp
def test_no_file_is_made_changed_or_removed(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("as it was")
    answers = confined(
        f"""
        own, new = {str(own)!r}, {str(tmp_path / "new")!r}
        print(json.dumps([open(own).read(), [refused(*call) for call in (
            (open, own, "w"), (open, own, "a"), (open, own, "r+"), (open, new, "x"), (os.truncate, own, 0),
            (os.open, {str(tmp_path)!r}, os.O_TMPFILE | os.O_RDWR), (open, "/dev/null", "w"),
            (os.mkdir, new), (os.unlink, own), (os.rename, own, new), (os.link, own, new), (os.symlink, own, new),
            (os.chmod, own, 0o777), (os.chown, own, 1, 1), (os.utime, own), (os.mkfifo, new),
            (os.setxattr, own, "user.x", b""))]]))
        """
    )
    assert answers == ["as it was", ["EPERM"] * 17]
    assert (own.read_text(), os.listdir(tmp_path)) == ("as it was", ["own"])


@needs_seccomp
def test_the_kernel_s_dark_corners_are_closed() -> None:
    answers = confined(
        """
        table = {name: numbers[0] if os.uname().machine == "x86_64" else numbers[1] for name, numbers in DENIED.items()}
        fatal = {"vhangup", "reboot"}
        print(json.dumps({name: refused(libc.syscall, number, -1, -1, -1, -1, -1, -1)
                          for name, number in table.items() if number >= 0 and name not in fatal}))
        """,
        before="from nexus_grpc.ipc.system_calls import DENIED",
    )
    assert {name: answer for name, answer in answers.items() if answer != "EPERM"} == {}
    assert len(answers) > 80


@needs_seccomp
def test_it_may_still_abort_and_limit_itself() -> None:
    assert (
        confined(
            """
        signal.signal(signal.SIGUSR1, lambda *_: print(json.dumps("heard"), flush=True))
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        os.kill(os.getpid(), signal.SIGUSR1)
        """
        )
        == "heard"
    )
    text = START + "shed_privileges(); filter_system_calls(); keep_private(); os.abort()"
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == -6


@needs_seccomp
def test_a_model_loads_and_runs_on_two_threads_of_its_own() -> None:
    model = ROOT / "models" / "digits_cnn" / "1" / "model.onnx"
    result = confined(
        f"""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        before = len(os.listdir("/proc/self/task"))
        session = ort.InferenceSession({str(model)!r}, options, providers=["CPUExecutionProvider"])
        threads = os.listdir("/proc/self/task")
        [spec] = session.get_inputs()
        shape = [8 if not isinstance(size, int) else size for size in spec.shape]
        outputs = session.run(None, {{spec.name: np.ones(shape, np.float32)}})
        states = {{status(each)["Seccomp"] for each in threads}}
        print(json.dumps([len(threads) - before, len(outputs[0]), sorted(states)]))
        """,
        before="import numpy as np, onnxruntime as ort",
    )
    assert result == [1, 8, ["2"]]  # the calling thread is the other one


# --- privacy ---


def test_an_empty_folder_that_is_gone() -> None:
    code = (
        START
        + "leave_folder(); print(json.dumps([os.readlink('/proc/self/cwd'), os.listdir('.'), refused(open, 'x', 'w')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    place, listed, writing = json.loads(done.stdout)
    assert place.startswith(f"{tempfile.gettempdir()}/nexus-empty-")
    assert place.endswith(" (deleted)")
    assert (listed, writing) == ([], "ENOENT")


def test_without_a_folder_to_write_to_it_is_the_root() -> None:
    code = START + "import tempfile; tempfile.tempdir = '/nowhere'; leave_folder(); print(json.dumps(os.getcwd()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == "/"


def test_no_core_dumps_and_files_for_its_user_alone(tmp_path: Path) -> None:
    code = START + (
        f"os.umask(0); keep_private(); os.mkdir({str(tmp_path / 'folder')!r}); open({str(tmp_path / 'file')!r}, 'w')\n"
        "print(json.dumps(resource.getrlimit(resource.RLIMIT_CORE)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == [0, 0]
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in tmp_path.iterdir()}
    assert modes == {"folder": "0o700", "file": "0o600"}


def test_without_landlock_a_process_is_hidden_instead() -> None:
    code = START + "import platform; platform.machine = lambda: 'riscv64'\n"
    code += "keep_private(); pr_get_dumpable = 3; print(json.dumps(libc.prctl(pr_get_dumpable)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == 0


def test_what_is_missing_is_told() -> None:
    known = platform.machine() in MACHINES
    assert all(text.startswith(("Landlock: ", "seccomp: ")) for text in missing_support())
    assert known or len(missing_support()) == 2

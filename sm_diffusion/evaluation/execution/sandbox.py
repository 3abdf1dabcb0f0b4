"""Confinement of one process with what the Linux kernel and the user's rights permit. Standard library only.

Four mechanisms, each of which works alone and which are stacked where all are there:

    namespaces  private mount, network, IPC and host-name namespaces (plus a PID namespace made by the supervisor) with
                a root file system that holds only the interpreter and a size-limited tmpfs. As an ordinary user they
                come through a user namespace.                                      namespaces(7), pivot_root(2)
    uid         as root only: a random unprivileged uid and gid, no groups, no capabilities.         credentials(7)
    landlock    file access only beneath the readable trees and the work folder; no signal or abstract socket out of
                the domain where the kernel knows those scopes.                            landlock(7), Linux >= 5.13
    seccomp     no `socket`, `ptrace`, `mount`, `unshare`, ... system calls.     seccomp(2), x86-64 and arm64 only

Resource limits (setrlimit), `no_new_privs` and an emptied environment are always on. Nothing falls back here: a
mechanism that was asked for and fails raises OSError; the executor asks `probe` first.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from typing import NamedTuple

NEWNS, NEWUTS, NEWIPC, NEWUSER = 0x20000, 0x04000000, 0x08000000, 0x10000000
NEWPID, NEWNET = 0x20000000, 0x40000000
WORK = "/tmp/work"  # cwd, HOME and TMPDIR inside a private root
MECHANISMS = ("namespaces", "uid", "landlock", "seccomp")
_MS_BIND_REC, _MS_PRIVATE_REC, _MS_NOSUID_NODEV = 0x1000 | 0x4000, 0x40000 | 0x4000, 2 | 4
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP = 1, 4, 22
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_MIB = 1024 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class Confinement(NamedTuple):
    """What one process may use.

    mechanisms:    subset of MECHANISMS.
    folder:        host folder of the job; holds `root` (mount point) and `work` (where there is no private root).
    readable:      absolute host paths the process may read and execute.
    listable:      folders whose names, but not files, it may read (import needs it of a package's parent).
    uid:           uid and gid to become where "uid" is on.
    cpu_seconds, memory_mb, file_mb, max_processes: limits in s, MiB, MiB and tasks.
    """

    mechanisms: tuple[str, ...]
    folder: str
    readable: tuple[str, ...]
    listable: tuple[str, ...]
    uid: int
    cpu_seconds: int
    memory_mb: int
    file_mb: int
    max_processes: int

    @property
    def private_root(self) -> bool:
        return "namespaces" in self.mechanisms

    @property
    def work(self) -> str:
        """Work folder as the confined process sees it."""
        return WORK if self.private_root else os.path.join(self.folder, "work")


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(number: int, what: str, *args: object) -> int:
    """A raw system call. Integers travel as C longs, bytes as pointers."""
    converted = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return _check(int(_libc.syscall(ctypes.c_long(number), *converted)), what)


def _prctl(option: int, value: int, what: str) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), what)


def become_subreaper() -> None:
    """Orphans below this process become its children, so that none is lost. prctl(2)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with_parent(parent: int) -> None:
    """SIGKILL this process when its parent ends; `parent` is the pid it should have, 0 inside a new PID namespace."""
    _prctl(_PR_SET_PDEATHSIG, 9, "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(137)


def hide_memory() -> None:
    """No other process of the same user may trace this one or read its /proc files. prctl(2)."""
    _prctl(_PR_SET_DUMPABLE, 0, "prctl(PR_SET_DUMPABLE)")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def enter_user_namespace() -> None:
    """Ordinary user: become the only user, without privileges after exec, of a new user namespace."""
    uid, gid = os.getuid(), os.getgid()
    unshare(NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"65534 {uid} 1"), ("gid_map", f"65534 {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


# ---------------------------------------------------------------------------------------------------- private root


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = [text.encode() for text in (source, target, kind)]
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), options.encode()), f"mount {target}")


def _restrict_mount(path: str, attributes: int, *, recursive: bool) -> None:
    """mount_setattr(2), Linux >= 5.12: 1 read-only, 2 no set-uid, 4 no devices."""
    packed = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _syscall(442, f"mount_setattr {path}", -100, path.encode(), 0x8000 if recursive else 0, packed, len(packed))


def _bind(root: str, path: str) -> None:
    target = root + path
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        open(target, "wb").close()
    _mount(path, target, "none", _MS_BIND_REC)
    _restrict_mount(target, 3 if path.startswith("/dev/") else 7, recursive=os.path.isdir(path))


def enter_private_root(spec: Confinement) -> None:
    """New mount, network, IPC and host-name namespaces; `/` becomes a read-only tree of `readable` plus a tmpfs.

    The caller must be root, or the only user of a new user namespace. Inside are no /proc, /sys, /home or other
    users' files, no network device that is up, and WORK, a tmpfs of at most 4 x file_mb MiB and 4,096 files.
    """
    unshare(NEWNS | NEWNET | NEWIPC | NEWUTS)
    root = os.path.join(spec.folder, "root")
    os.makedirs(root, exist_ok=True)
    _mount("none", "/", "none", _MS_PRIVATE_REC)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID_NODEV, "mode=755,size=1m")
    for path in spec.readable:
        _bind(root, path)
    os.makedirs(root + WORK, mode=0o755)
    owner = f",uid={spec.uid},gid={spec.uid}" if "uid" in spec.mechanisms else ""
    options = f"mode=700,size={4 * spec.file_mb}m,nr_inodes=4096{owner}"
    _mount("tmpfs", root + WORK, "tmpfs", _MS_NOSUID_NODEV, options)
    _restrict_mount(root, 1, recursive=False)
    os.chdir(root)
    _syscall(155 if platform.machine() == "x86_64" else 41, "pivot_root", b".", b".")
    _check(_libc.umount2(b".", 2), "umount2")
    os.chdir(WORK)


# -------------------------------------------------------------------------------------------------------- landlock


def landlock_abi() -> int:
    """Landlock version of the kernel, 0 where there is none."""
    return max(0, int(_libc.syscall(ctypes.c_long(444), None, ctypes.c_long(0), ctypes.c_long(1))))


_FILE_BITS = 1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15  # execute, write, read, truncate, device control
_READ_BITS = 1 | 1 << 2 | 1 << 3  # execute, read a file, read a folder


def _landlock_ruleset(spec: Confinement) -> int:
    """File descriptor of a ruleset: `readable` may be read and executed, the work folder written, the rest neither."""
    abi = landlock_abi()
    known = (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1
    fields = [known] + ([3] if abi >= 4 else []) + ([3] if abi >= 6 else [])  # files, TCP, scopes
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _syscall(444, "landlock_create_ruleset", attributes, len(attributes), 0)
    writable = known & ~(1 | 1 << 6 | 1 << 11)  # no execution and no device files in the work folder
    rules = [(path, _READ_BITS) for path in spec.readable] + [(path, 1 << 3) for path in spec.listable]
    rules.append((spec.work, writable))
    for path, bits in rules:
        if not os.path.exists(path):
            continue
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            bits &= _FILE_BITS
        if path == "/dev/null":
            bits |= 2
        _syscall(445, f"landlock_add_rule {path}", ruleset, 1, struct.pack("=Qi", bits & known, handle), 0)
        os.close(handle)
    return ruleset


# --------------------------------------------------------------------------------------------------------- seccomp

# socket, ptrace, process_vm_readv, process_vm_writev, kcmp, mount, umount2, pivot_root, unshare, setns, add_key,
# request_key, keyctl, bpf, perf_event_open, userfaultfd, open_by_handle_at, memfd_create, shmget;
# io_uring_setup, io_uring_enter, io_uring_register, pidfd_getfd
_DENIED_EVERYWHERE = (425, 426, 427, 438)
_DENIED = {
    "x86_64": (41, 101, 310, 311, 312, 165, 166, 155, 272, 308, 248, 249, 250, 321, 298, 323, 304, 319, 29),
    "aarch64": (198, 117, 270, 271, 272, 40, 39, 41, 97, 268, 217, 218, 219, 280, 241, 282, 265, 279, 194),
}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


def seccomp_supported() -> bool:
    """True where the system-call numbers of this machine are known."""
    return platform.machine() in _AUDIT_ARCH


def _seccomp_program() -> bytes:
    """A BPF filter over (system call number, architecture, first argument); each line is (code, jt, jf, k)."""
    machine = platform.machine()
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    lines = [(load, 0, 0, 4), (equal, 1, 0, _AUDIT_ARCH[machine]), (give, 0, 0, _KILL), (load, 0, 0, 0)]
    lines += [(at_least, 0, 1, 0x40000000), (give, 0, 0, _EPERM)]  # x32 numbers alias the real ones
    for number in (*_DENIED[machine], *_DENIED_EVERYWHERE):
        lines += [(equal, 0, 1, number), (give, 0, 0, _EPERM)]
    lines += [(equal, 0, 1, 435), (give, 0, 0, _ENOSYS)]  # clone3 hides its flags: libraries fall back to clone
    lines += [(equal, 0, 3, _CLONE[machine]), (load, 0, 0, 16), (any_bit, 0, 1, 0x7E020000), (give, 0, 0, _EPERM)]
    lines += [(give, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _install_seccomp() -> None:
    code = ctypes.create_string_buffer(_seccomp_program())
    program = struct.pack("@HP", (len(code) - 1) // 8, ctypes.addressof(code))
    _check(_libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(2), program, 0, 0), "prctl(PR_SET_SECCOMP)")


# --------------------------------------------------------------------------------------------------------- together


def _limit_resources(spec: Confinement) -> None:
    limits = {
        resource.RLIMIT_CPU: (spec.cpu_seconds, spec.cpu_seconds + 1),
        resource.RLIMIT_AS: (spec.memory_mb * _MIB,) * 2,
        resource.RLIMIT_FSIZE: (spec.file_mb * _MIB,) * 2,
        resource.RLIMIT_NPROC: (spec.max_processes,) * 2,
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
        resource.RLIMIT_MSGQUEUE: (0, 0),
    }
    for kind, (soft, hard) in limits.items():
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (soft, hard))


def drop_privileges(spec: Confinement) -> list[str]:
    """Last step before untrusted code: uid, limits, no_new_privs, Landlock, seccomp. Returns what is now on."""
    on = ["resource limits", "no new privileges", "empty environment"]
    on += ["private root, network, IPC namespaces"] if spec.private_root else []
    ruleset = _landlock_ruleset(spec) if "landlock" in spec.mechanisms else -1
    os.chdir(spec.work)
    if "uid" in spec.mechanisms:
        os.setgroups([])
        os.setresgid(spec.uid, spec.uid, spec.uid)
        os.setresuid(spec.uid, spec.uid, spec.uid)
        on.append("unprivileged uid")
    _limit_resources(spec)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "prctl(PR_SET_NO_NEW_PRIVS)")
    if ruleset >= 0:
        _syscall(446, "landlock_restrict_self", ruleset, 0)
        os.close(ruleset)
        on.append(f"landlock {landlock_abi()}")
    if "seccomp" in spec.mechanisms:
        _install_seccomp()
        on.append("seccomp")
    return on

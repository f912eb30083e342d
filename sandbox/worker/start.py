"""The first steps of a sandboxed process, before any byte of a candidate reaches it. Run by path.

    python -I start.py SETTINGS [SOCKET LIFELINE] TARGET KIND

SETTINGS is a JSON object. `path`: where packages are found. `limits`: resource limits by number. `connect`: a Unix
socket to connect to twice, where no descriptors were inherited. `fence`: binds and hidden folders, from which the
process makes itself a root of its own, in namespaces it was born into; `uid` to become there. `exec`: a command to go
on with, such as a sanitizer with this file as its argument. `reap`: keep a parent that collects orphans, where there is
no PID namespace. `module`: what to run at last.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
CAPABILITY_VERSION_3 = 0x20080522
PR_SET_DUMPABLE = 4
MOUNT_ATTR_RDONLY, AT_RECURSIVE = 1, 0x8000
SYS_MOUNT_SETATTR = 442
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
DEVICES = ("null", "zero", "full", "random", "urandom")
# Writable for whoever has the user id 0, capabilities or not.
PROC_READ_ONLY = ("sys", "sysrq-trigger", "irq", "bus", "fs")

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


# ---------------------------------------------------------------- a root of one's own


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    encoded = [text.encode() for text in (source, target, kind)]
    checked(libc.mount(*encoded, ctypes.c_ulong(flags), options.encode()), f"mount {source} on {target}")


def bind(source: str, target: str, writable: bool = False) -> None:
    """Show a file or folder of the old root in the new one; a missing one is left out."""
    if not Path(source).exists():
        return
    place = Path(target)
    if Path(source).is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    # With what is mounted below: drivers come into containers as mounts of single files.
    mount(source, target, "", MS_BIND | MS_REC)
    if not writable:
        make_read_only(target)


def make_read_only(place: str) -> None:
    """With all that is mounted below; the call is as old as Linux 5.12, and without it only the place itself."""
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
    at_fdcwd, size = -100, ctypes.c_size_t(32)
    if libc.syscall(SYS_MOUNT_SETATTR, at_fdcwd, place.encode(), AT_RECURSIVE, attributes, size) == 0:
        return
    # What the old mount forbids may not be allowed again from within a user namespace.
    kept = os.statvfs(place).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("", place, "", MS_BIND | MS_REMOUNT | MS_RDONLY | kept)


def make_root(root: str, fence: dict[str, Any]) -> None:
    """Build the new root below the folder `root` of the old one, and move there."""
    mount("", "/", "", MS_REC | MS_PRIVATE)
    mount("none", root, "tmpfs", MS_NOSUID, "mode=755,size=1m")
    for source, target in fence["binds"].items():
        bind(source, root + target)
    for source, target in fence["writable"].items():
        bind(source, root + target, writable=True)
    for target in fence["hidden"]:
        mount("none", root + target, "tmpfs", MS_RDONLY, "size=4k")
    (Path(root) / "warpsmith" / "sandbox").mkdir(parents=True, exist_ok=True)
    (Path(root) / "warpsmith" / "sandbox" / "__init__.py").touch()
    make_devices(root, fence)
    make_scratch(f"{root}/tmp", fence["scratch_bytes"])
    make_scratch(f"{root}/dev/shm", 64 << 20)
    bind("/sys/devices/system/cpu", f"{root}/sys/devices/system/cpu")
    make_proc(f"{root}/proc")
    enter(root)


def make_devices(root: str, fence: dict[str, Any]) -> None:
    for name in DEVICES:
        bind(f"/dev/{name}", f"{root}/dev/{name}", writable=True)
    for device in fence["devices"]:
        bind(device, root + device, writable=True)
    (Path(root) / "dev" / "fd").symlink_to("/proc/self/fd")


def make_scratch(place: str, size: int) -> None:
    Path(place).mkdir()
    mount("none", place, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={size}")


def make_proc(place: str) -> None:
    Path(place).mkdir()
    mount("proc", place, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in PROC_READ_ONLY:
        bind(f"{place}/{name}", f"{place}/{name}")


def enter(root: str) -> None:
    os.chdir(root)
    number = SYS_PIVOT_ROOT[os.uname().machine]
    checked(libc.syscall(number, b".", b"."), "pivot_root")
    checked(libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/tmp")
    mount("", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)


# ---------------------------------------------------------------- privileges


def drop_privileges(uid: int) -> None:
    """Become `uid` where that is another, and give up every capability for good."""
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if uid != os.getuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    checked(libc.capset(header, nothing), "capset")
    # Changing the user id has made the process's own files in /proc those of the superuser, and has undone what
    # unshare --kill-child had asked for.
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)


def reap_orphans() -> None:
    """Go on in a child; stay behind as the parent of whatever leaves its own, and end as the child ends."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    parent, child = os.getpid(), os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        return
    os.closerange(3, 256)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


# ---------------------------------------------------------------- start


def connected(address: str) -> list[str]:
    """Two connections to the judge: to talk, and to live by. Over the latter comes what to write errors to."""
    descriptors = []
    for _ in range(2):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(address)
        descriptors.append(connection)
    _, received, _, _ = socket.recv_fds(connection, 1, 1)
    for standard in (1, 2):
        os.dup2(received[0], standard)
    os.close(received[0])
    return [str(connection.detach()) for connection in descriptors]


def main() -> None:
    settings, rest = json.loads(sys.argv[1]), sys.argv[2:]
    if fence := settings.get("fence"):
        make_root(fence["root"], fence)
        drop_privileges(fence["uid"])
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if settings.get("reap"):
        reap_orphans()
    if command := settings.get("exec"):
        os.execvp(command[0], [*command, *rest])
    for kind, most in settings["limits"].items():
        resource.setrlimit(int(kind), (most, most))
    if "connect" in settings:
        rest = connected(settings["connect"]) + rest
    sys.path[:0] = settings["path"]
    sys.argv = [sys.argv[0], *rest]
    if module := settings["module"]:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

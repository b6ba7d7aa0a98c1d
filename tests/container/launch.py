"""Becomes the first process of a container. Root runs it as `unshare … python launch.py SPEC`.

SPEC is JSON: root, read_only, mounts [[source, target, read_only]], tmpfs [target], user, group, folder,
environment, command. The process gets what `docker run --cap-drop ALL --security-opt no-new-privileges`
gives: the root filesystem, /proc, a minimal /dev, a loopback interface, and no capabilities.
"""

import ctypes
import fcntl
import json
import os
import socket
import stat
import struct
import subprocess
import sys

PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9)}


def main() -> None:
    spec = json.loads(sys.argv[1])
    root = spec["root"]
    mount("--bind", root, root)
    mount("-t", "proc", "proc", f"{root}/proc")
    make_devices(f"{root}/dev")
    for target in spec["tmpfs"]:
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", root + target)
    for source, target, read_only in spec["mounts"]:
        mount("--bind", source, root + target)
        if read_only:
            mount("-o", "remount,bind,ro", root + target)
    if spec["read_only"]:
        mount("-o", "remount,bind,ro", root)
    loopback_up()
    os.chroot(root)
    os.chdir(spec["folder"])
    drop_privileges(spec["user"], spec["group"])
    os.execvpe(spec["command"][0], spec["command"], spec["environment"])


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def make_devices(folder: str) -> None:
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
    for name, (major, minor) in DEVICES.items():
        os.mknod(f"{folder}/{name}", stat.S_IFCHR, os.makedev(major, minor))
        os.chmod(f"{folder}/{name}", 0o666)  # mknod applied the umask
    os.mkdir(f"{folder}/shm")
    mount("-t", "tmpfs", "-o", "mode=1777,size=64m", "tmpfs", f"{folder}/shm")


def loopback_up() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def drop_privileges(user: int, group: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(
        "/proc/sys/kernel/cap_last_cap", "rb"
    ) as last:  # bytes: past chroot there are no codecs to load
        for capability in range(int(last.read()) + 1):
            if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), f"cannot drop capability {capability}")
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot set no_new_privs")


if __name__ == "__main__":
    main()

"""Network namespaces without names, each with one TUN device: a site of an emulated WAN.

A namespace is kept alive by a descriptor of the process that made it and by whoever is inside, a TUN device by its descriptor alone.
So all of it is gone when these processes are, even after a SIGKILL, and there is nothing to clean up. (One permission outlasts it: that
anybody on the machine may choose this congestion control. Where it was not given, no namespace could use it.) Others enter a namespace
through the path of the descriptor, /proc/PID/fd/N; this module, run with NAMESPACE -- COMMAND ARGS..., runs a command there.

A namespace belongs to a thread. Each site is made by a thread of its own, which ends, so that the process stays where it was. Linux and
the privileges of root only; no more than the standard library, because os.unshare and os.setns came with Python 3.12.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wanspec.errors import ConfigError, TransportError, WanspecError

DEVICE: Final = b"wan0"
NETMASK: Final = "255.255.255.0"
"""Both sites are in one network, so that each has its route to the other by its address alone."""
QUEUE_PACKETS: Final = 10_000
"""Packets that a TUN device holds until they are read: more than one TCP connection may have under way (4 MB, Linux' limit)."""
CONGESTION_CONTROL: Final = "cubic"
"""What most servers use, being the default of Linux; the machine's own default may be another."""

USAGE: Final = "usage: python -m wanspec.lab.wan.namespaces NAMESPACE -- COMMAND ARGS..."

_CLONE_NEWNET = 0x40000000
_IFF_UP, _IFF_TUN, _IFF_NO_PI = 0x1, 0x1, 0x1000
_TUNSETIFF = 0x400454CA
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFTXQLEN = 0x8913, 0x8914, 0x8916, 0x891C, 0x8943
_PARAMETERS = "/proc/sys/net"
"""Shows those of the reading thread's namespace."""
_WITHOUT = "the relay works without (python -m wanspec.lab.wan.relay)"
_NEEDS = f"it needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN) and the kernel's module tun; {_WITHOUT}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSite:
    """A network namespace whose only way out is `tun`."""

    address: str
    """IPv4, of the site's end of the link."""
    namespace: int
    """Descriptor that keeps the namespace alive."""
    tun: int
    """Descriptor, non-blocking: what processes of the site send is read here as IP packets, what they are to receive is written."""

    @property
    def path(self) -> str:
        """Where other processes find the namespace while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self.namespace}"

    def close(self) -> None:
        """Take the link away; the namespace ends with the last process in it."""
        os.close(self.tun)
        os.close(self.namespace)


def create_site(address: str, *, congestion_control: str = CONGESTION_CONTROL) -> NamespaceSite:
    """A new namespace at an IPv4 address. Raises TransportError where that cannot be had, ConfigError on an unknown congestion control."""
    if sys.platform != "linux":
        raise TransportError(f"network namespaces need Linux, not {sys.platform}; {_WITHOUT}")
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_create_here, address, congestion_control).result()


def available() -> str | None:
    """Why sites cannot be created on this machine by this user; None: they can. It tries."""
    try:
        create_site("10.77.0.1").close()
    except WanspecError as error:
        return str(error)
    return None


def enter_namespace(path: str) -> None:
    """Move the calling thread, and what it starts, into the network namespace of this file. Raises TransportError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", descriptor, _CLONE_NEWNET)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise TransportError(
            f"cannot enter the network namespace {path}: {error.strerror}; is its emulator running, are you root?"
        ) from error


def _create_here(address: str, congestion_control: str) -> NamespaceSite:
    """Create a site by moving the calling thread into it."""
    with ExitStack() as undo:
        try:
            _allow(congestion_control)
            _call("unshare", _CLONE_NEWNET)
            namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, namespace)
            _set_kernel(congestion_control)
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            undo.callback(os.close, tun)
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE, _IFF_TUN | _IFF_NO_PI))
            _bring_up(address)
        except OSError as error:
            raise TransportError(f"cannot make a network namespace with a TUN device: {error}; {_NEEDS}") from error
        undo.pop_all()
    return NamespaceSite(address=address, namespace=namespace, tun=tun)


def _allow(congestion_control: str) -> None:
    """Let namespaces choose it: only the machine's own is free to, and what it allows to others once, it allows from then on."""
    known = Path(_PARAMETERS, "ipv4/tcp_available_congestion_control").read_text(encoding="ascii").split()
    if congestion_control not in known:
        raise ConfigError(f"congestion control {congestion_control!r}: this kernel has {', '.join(known)}")
    allowed = Path(_PARAMETERS, "ipv4/tcp_allowed_congestion_control")
    names = allowed.read_text(encoding="ascii").split()
    if congestion_control not in names:
        allowed.write_text(" ".join([*names, congestion_control]), encoding="ascii")


def _set_kernel(congestion_control: str) -> None:
    """What the kernel is to do in the calling thread's namespace."""
    Path(_PARAMETERS, "ipv4/tcp_congestion_control").write_text(congestion_control, encoding="ascii")
    Path(_PARAMETERS, "ipv4/tcp_no_metrics_save").write_text("1", encoding="ascii")  # a run inherits nothing that an earlier one learned
    ipv6 = Path(_PARAMETERS, "ipv6/conf/all/disable_ipv6")
    if ipv6.exists():
        ipv6.write_text("1", encoding="ascii")  # its announcements would count as traffic


def _bring_up(address: str) -> None:
    """Give the device its address and its queue, and take it and loopback into use."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, NETMASK)):
            fcntl.ioctl(control, request, struct.pack("16sH2x4s16x", DEVICE, socket.AF_INET, socket.inet_aton(value)))
        fcntl.ioctl(control, _SIOCSIFTXQLEN, struct.pack("16si20x", DEVICE, QUEUE_PACKETS))
        for device in (b"lo", DEVICE):
            (flags,) = struct.unpack_from("16xH", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16s24x", device)))
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", device, flags | _IFF_UP))


def _call(name: str, *arguments: int) -> None:
    """A function of the C library that returns 0. Raises OSError."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main(arguments: list[str]) -> None:
    """Run a command in a namespace; it takes this process over, with its id, standard streams and environment, or the process ends."""
    match arguments:
        case [namespace, "--", command, *_]:
            try:
                enter_namespace(namespace)
                os.execvp(command, arguments[2:])  # noqa: S606  # no shell between
            except TransportError as error:
                sys.exit(str(error))
            except OSError as error:
                sys.exit(f"cannot run {command}: {error.strerror}")
        case _:
            sys.exit(USAGE)


if __name__ == "__main__":
    main(sys.argv[1:])

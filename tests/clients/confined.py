"""What a command may try where no hook of a cgroup looks: one function a way, named by the first argument.

Each prints one JSON object, what the kernel said, and its process id on stderr.
"""

import ctypes
import errno
import fcntl
import ipaddress
import json
import mmap
import os
import platform
import signal
import socket
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
SYS = {"ptrace": 101, "process_vm_writev": 311} if X86 else {"ptrace": 117, "process_vm_writev": 271}
SYS |= {"pidfd_open": 434, "pidfd_getfd": 438, "io_uring_setup": 425, "io_uring_enter": 426}
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 1, 0x1000
IORING_OP_CONNECT, IORING_OP_SOCKET = 16, 45
IORING_ENTER_GETEVENTS = 1
MAP_32BIT = 0x40


def outcome(call):
    """What a system call came to."""
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "ok"


def system_call(name, *arguments):
    result = libc.syscall(SYS[name], *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def other_process(pid, address, text):
    """Another process of the same user: its memory, its descriptors, its life."""
    pid, address, text = int(pid), int(address), text.encode()

    def trace():
        system_call("ptrace", PTRACE_ATTACH, pid, None, None)
        os.waitpid(pid, 0x40000000)  # __WALL
        system_call("ptrace", PTRACE_DETACH, pid, None, None)

    def write():
        buffer = ctypes.create_string_buffer(text)
        local = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), len(text))
        remote = (ctypes.c_size_t * 2)(address, len(text))
        system_call("process_vm_writev", pid, local, ctypes.c_ulong(1), remote, ctypes.c_ulong(1), ctypes.c_ulong(0))

    def memory():
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as file:
            file.seek(address)
            file.write(text)

    def descriptor():
        system_call("pidfd_getfd", system_call("pidfd_open", pid, 0), 0, 0)

    return {
        "ptrace": outcome(trace),
        "process_vm_writev": outcome(write),
        "mem": outcome(memory),
        "pidfd_getfd": outcome(descriptor),
        "environ": outcome(lambda: open(f"/proc/{pid}/environ").close()),
        "kill": outcome(lambda: os.kill(pid, 0)),
    }


def own_process():
    """The same with a child of one's own: what a debugger does."""
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()

    def trace():
        system_call("ptrace", PTRACE_ATTACH, child, None, None)
        os.waitpid(child, 0x40000000)
        system_call("ptrace", PTRACE_DETACH, child, None, None)

    results = {"ptrace": outcome(trace), "mem": outcome(lambda: open(f"/proc/{child}/mem", "r+b").close())}
    results["kill"] = outcome(lambda: os.kill(child, signal.SIGKILL))
    return results


def checksum(data):
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def datagram(source, destination, port):
    """A whole packet of UDP, from one address to another."""
    source, destination = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    body = b"past all hooks"
    length = 8 + len(body)
    pseudo = source.packed + destination.packed + struct.pack("!HH", 17, length)
    udp = struct.pack("!HHHH", 9, int(port), length, 0) + body
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp)) + udp[8:]
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, length, 17, 64) + source.packed + destination.packed + udp
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, 17, 0) + source.packed + destination.packed
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp


def tun(device, *ways):
    """Packets put into a tun device that root has made for this user; each SOURCE,DESTINATION,PORT."""
    with open("/dev/net/tun", "r+b", buffering=0) as file:
        name = struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI)
        attached = outcome(lambda: fcntl.ioctl(file, TUNSETIFF, name))
        sent = [outcome(lambda way=way: file.write(datagram(*way.split(",")))) for way in ways]
    return {"attached": attached, "sent": sent}


def sockaddr(address, port):
    ip = ipaddress.ip_address(address)
    if ip.version == 4:
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H", int(port)) + ip.packed + bytes(8)
    return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", int(port), 0) + ip.packed + bytes(4)


class Ring:
    """As much of io_uring as it takes to have one thing done at a time."""

    def __init__(self):
        parameters = ctypes.create_string_buffer(120)
        self.descriptor = system_call("io_uring_setup", 4, parameters)
        numbers = struct.unpack("30I", parameters.raw)
        submission, completion = numbers[10:20], numbers[20:30]
        self.tail, self.mask, self.array = submission[1], submission[2], submission[6]
        self.head_done, self.mask_done, self.done = completion[0], completion[2], completion[5]
        size = max(self.array + 4 * numbers[0], self.done + 16 * numbers[1])
        self.rings = mmap.mmap(self.descriptor, size, offset=0)
        self.entries = mmap.mmap(self.descriptor, 64 * numbers[0], offset=0x10000000)

    def number(self, place, value=None):
        if value is not None:
            struct.pack_into("=I", self.rings, place, value & 0xFFFFFFFF)
        return struct.unpack_from("=I", self.rings, place)[0]

    def do(self, operation, descriptor, address, offset, length):
        """Answers what the system call of that name would."""
        tail = self.number(self.tail)
        slot = tail & self.number(self.mask)
        entry = struct.pack("=BBHiQQIIQQQQ", operation, 0, 0, descriptor, offset, address, length, 0, 0, 0, 0, 0)
        self.entries[64 * slot : 64 * slot + 64] = entry
        self.number(self.array + 4 * slot, slot)
        self.number(self.tail, tail + 1)
        system_call("io_uring_enter", self.descriptor, 1, 1, IORING_ENTER_GETEVENTS, None, 0)
        head = self.number(self.head_done)
        _, result, _ = struct.unpack_from("=QiI", self.rings, self.done + 16 * (head & self.number(self.mask_done)))
        self.number(self.head_done, head + 1)
        return result


def named(result):
    return "ok" if result >= 0 else errno.errorcode.get(-result, str(-result))


def ring(*destinations):
    """Sockets and connections by io_uring; each ADDRESS,PORT."""
    try:
        io = Ring()
    except OSError as error:
        return {"ring": errno.errorcode[error.errno]}
    results = []
    for destination in destinations:
        where = ctypes.create_string_buffer(sockaddr(*destination.split(",")))
        family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        made = io.do(IORING_OP_SOCKET, family, 0, socket.SOCK_STREAM, 0)
        if made < 0:
            results.append(f"socket: {named(made)}")
            continue
        results.append(named(io.do(IORING_OP_CONNECT, made, ctypes.addressof(where), len(where) - 1, 0)))
        os.close(made)
    return {"ring": "ok", "results": results}


def thirty_two_bit(*destinations):
    """Sockets and connections by the 32-bit entry of an x86-64 kernel; each ADDRESS,PORT."""

    def entry(number, *arguments):
        words = struct.pack("=4I", number, *(argument & 0xFFFFFFFF for argument in arguments))
        # push rbx; mov eax, ebx, ecx, edx; int 0x80; pop rbx; ret
        code = b"\x53\xb8" + words[:4] + b"\xbb" + words[4:8] + b"\xb9" + words[8:12] + b"\xba" + words[12:]
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code + b"\xcd\x80\x5b\xc3")
        function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        return function()

    results = []
    for destination in destinations:
        where = sockaddr(*destination.split(","))
        low = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT)
        low.write(where)
        family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        made = entry(359, family, socket.SOCK_STREAM, 0)
        if made < 0:
            results.append(f"socket: {named(made)}")
            continue
        results.append(named(entry(362, made, ctypes.addressof(ctypes.c_char.from_buffer(low)), len(where))))
        os.close(made)
    return {"results": results}


def sockets():
    """Sockets of the kinds that a policy has words for."""
    sorts = {
        "tcp": (socket.AF_INET, socket.SOCK_STREAM),
        "tcp6": (socket.AF_INET6, socket.SOCK_STREAM),
        "udp": (socket.AF_INET, socket.SOCK_DGRAM),
        "udp6": (socket.AF_INET6, socket.SOCK_DGRAM),
        "unix": (socket.AF_UNIX, socket.SOCK_STREAM),
        "netlink": (socket.AF_NETLINK, socket.SOCK_RAW),
        "vsock": (socket.AF_VSOCK, socket.SOCK_STREAM),
        "packet": (socket.AF_PACKET, socket.SOCK_RAW),
    }
    results = {sort: outcome(lambda what=what: socket.socket(*what).close()) for sort, what in sorts.items()}
    results["pair"] = outcome(lambda: [end.close() for end in socket.socketpair()])
    return results


WAYS = [other_process, own_process, tun, ring, thirty_two_bit, sockets]

if __name__ == "__main__":
    print(f"pid {os.getpid()}", file=sys.stderr, flush=True)
    ways = {way.__name__.replace("_", "-"): way for way in WAYS}
    json.dump(ways[sys.argv[1]](*sys.argv[2:]), sys.stdout)

"""A client of PostgreSQL on its unix socket, by hand: one statement by each way to say something on a socket.

Usage: unix_ways.py PATH. Prints one line a statement: the way, and what the server answered.
"""

import array
import ctypes
import mmap
import os
import socket
import struct
import sys

print(f"pid {os.getpid()}", file=sys.stderr, flush=True)
PATH = sys.argv[1]


def startup():
    pairs = {"user": "postgres", "database": "postgres", "application_name": "agent"}
    body = b"".join(f"{key}\0{value}\0".encode() for key, value in pairs.items()) + b"\0"
    return struct.pack("!II", len(body) + 8, 196608) + body


def query(text):
    body = text.encode() + b"\0"
    return b"Q" + struct.pack("!I", len(body) + 4) + body


def answer(connection):
    """Reads up to ReadyForQuery; returns the first row's first value."""
    value = None
    while True:
        kind, length = struct.unpack("!cI", connection.recv(5, socket.MSG_WAITALL))
        body = connection.recv(length - 4, socket.MSG_WAITALL) if length > 4 else b""
        if kind == b"D" and value is None:
            size = struct.unpack("!I", body[2:6])[0]
            value = body[6 : 6 + size].decode()
        if kind == b"E":
            value = f"error {body!r}"
        if kind == b"Z":
            return value


def by_write(connection, message):
    os.write(connection.fileno(), message)


def by_writev(connection, message):
    os.writev(connection.fileno(), [message[:3], message[3:7], message[7:]])


def by_sendmsg(connection, message):
    connection.sendmsg([message[:9], message[9:]])


def by_bytes(connection, message):
    for byte in message:
        connection.send(bytes([byte]))


def by_sendfile(connection, message):
    with open(f"/proc/self/fd/{os.memfd_create('message')}", "r+b") as file:
        file.write(message)
        file.flush()
        os.sendfile(connection.fileno(), file.fileno(), 0, len(message))


def by_splice(connection, message):
    out, into = os.pipe()
    os.write(into, message)
    os.splice(out, connection.fileno(), len(message))


def by_dup(connection, message):
    copy = os.dup(connection.fileno())
    os.write(copy, message)
    os.close(copy)


def by_fork(connection, message):
    child = os.fork()
    if child == 0:
        os.write(connection.fileno(), message)
        os._exit(0)
    os.waitpid(child, 0)


def by_exec(connection, message):
    child = os.fork()
    if child == 0:
        os.dup2(connection.fileno(), 1)
        os.execv("/usr/bin/printf", ["printf", "".join(f"\\x{byte:02x}" for byte in message)])
    os.waitpid(child, 0)


def by_descriptor_passing(connection, message):
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        connection.close()
        _, ancillary, _, _ = there.recvmsg(1, socket.CMSG_SPACE(4))
        descriptor = array.array("i", ancillary[0][2])[0]
        os.write(descriptor, message)
        os._exit(0)
    here.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [connection.fileno()]))])
    os.waitpid(child, 0)


def by_io_uring(connection, message):
    """One IORING_OP_SEND, straight through the rings."""
    libc = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(120)
    ring = libc.syscall(425, 1, parameters)
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    entries, completions = struct.unpack_from("II", parameters, 0)
    submission = struct.unpack_from("IIIIIIIIQ", parameters, 40)
    completion = struct.unpack_from("IIIIIIIIQ", parameters, 80)
    queue = mmap.mmap(ring, submission[6] + entries * 4, offset=0)
    done = mmap.mmap(ring, completion[5] + completions * 16, offset=0x8000000)
    work = mmap.mmap(ring, entries * 64, offset=0x10000000)
    buffer = ctypes.create_string_buffer(message, len(message))
    # opcode IORING_OP_SEND, flags, ioprio, fd, off, addr, len, msg_flags, user_data
    struct.pack_into("BBHiQQIIQ", work, 0, 26, 0, 0, connection.fileno(), 0, ctypes.addressof(buffer), len(message), 0, 7)
    struct.pack_into("I", queue, submission[6], 0)
    struct.pack_into("I", queue, submission[1], 1)
    if libc.syscall(426, ring, 1, 1, 1, None, 0) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_enter")
    sent = struct.unpack_from("i", done, completion[5] + 8)[0]
    assert sent == len(message), sent
    os.close(ring)


WAYS = [
    by_write,
    by_writev,
    by_sendmsg,
    by_bytes,
    by_sendfile,
    by_splice,
    by_dup,
    by_fork,
    by_exec,
    by_descriptor_passing,
    by_io_uring,
]

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
    connection.connect(PATH)
    connection.sendall(startup())
    answer(connection)
    for way in WAYS:
        name = way.__name__
        try:
            way(connection, query(f"select 'said {name} ☃'"))
        except OSError as error:
            print(name, "not here:", error, flush=True)
            continue
        print(name, answer(connection), flush=True)
    connection.sendall(b"X\0\0\0\4")

"""Connects to unix sockets as it is told, one attempt an argument, and prints what the kernel said to each.

An attempt is KIND,NAME: `stream`, `datagram` (sendto without a connection), `connected` (a datagram socket that is connected
first), `pair` (a socketpair; NAME is not looked at), `lookup` (getent for a user), `unmapped` (a stream from a new user namespace that
has been chrooted to NAME's directory, by the rest of the path). NAME is a path, or @ and an abstract name; `DIR>NAME` changes
to DIR first. A first argument `wait` waits for a line on stdin.
"""

import ctypes
import errno
import json
import os
import pwd
import socket
import sys

CLONE_NEWUSER = 0x10000000


def name_of(text):
    return b"\0" + text[1:].encode() if text.startswith("@") else text


def stream(name):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(name_of(name))
        connection.sendall(b"from the agent")
        return "ok"


def datagram(name):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for _ in range(5):
            sender.sendto(b"from the agent", name_of(name))
        return "ok"


def connected(name):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(name_of(name))
        sender.send(b"from the agent")
        return "ok"


def pair(_):
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, other:
        one.sendall(b"within")
        return "ok" if other.recv(6) == b"within" else "nothing"


def lookup(name):
    # glibc asks nscd first, whose socket it may not reach.
    return "ok" if pwd.getpwnam(name).pw_uid > 0 else "root"


def unmapped(name):
    jail, path = os.path.split(name)
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    os.chroot(jail)
    return stream("/" + path)


KINDS = {function.__name__: function for function in (stream, datagram, connected, pair, lookup, unmapped)}


def attempt(text):
    kind, name = text.split(",", 1)
    if ">" in name:
        directory, name = name.split(">", 1)
        os.chdir(directory)
    try:
        return KINDS[kind](name)
    except OSError as error:
        return errno.errorcode[error.errno]


print(f"pid {os.getpid()}", file=sys.stderr, flush=True)
attempts = sys.argv[1:]
if attempts[0] == "wait":
    # Until the test has tagged this process.
    sys.stdin.readline()
    attempts = attempts[1:]
print(json.dumps([attempt(text) for text in attempts]))

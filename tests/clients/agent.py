"""An agent that does what it is told, line by line, so that a test can change the world between two of its steps.

connect NAME ADDRESS PORT, send NAME TEXT, close NAME, attempt ADDRESS PORT, unix PATH; exec: a thread executes the script anew;
thread: another thread goes on and the first one ends; bear CGROUP: a child is born there; hold NAME KIND: a socket that is no TCP
socket; udp NAME ADDRESS PORT: a connected one; datagram NAME TEXT ADDRESS PORT; hide ADDRESS PORT: a thread with descriptors of its own connects. Answers each with one
word.
"""

import ctypes
import errno
import os
import queue
import signal
import socket
import struct
import sys
import threading

LIMIT = 2

print(f"pid {os.getpid()}", file=sys.stderr, flush=True)
sockets = {}
libc = ctypes.CDLL(None, use_errno=True)
SYS_EXIT = 60 if os.uname().machine == "x86_64" else 93
CLONE_FILES = 0x400
SYS_CLONE3 = 435
CLONE_INTO_CGROUP = 0x200000000


def bear(cgroup):
    """clone3(2); the child lives as long as this process wants it to."""
    directory = os.open(cgroup, os.O_RDONLY)
    arguments = struct.pack("11Q", CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, directory)
    child = libc.syscall(SYS_CLONE3, arguments, len(arguments))
    if child == 0:
        os.write(1, f"{os.getpid()}\n".encode())
        while True:
            signal.pause()
    os.close(directory)
    if child < 0:
        raise OSError(ctypes.get_errno(), "clone3")


def connected(address, port):
    return socket.create_connection((address, int(port)), timeout=LIMIT)


def hide(address, port):
    """The socket is in no table of descriptors but the thread's."""
    outcome = queue.Queue()

    def connect():
        try:
            if libc.unshare(CLONE_FILES) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            connection = connected(address, port)
            outcome.put(None)
            threading.Event().wait()
            connection.close()
        except OSError as error:
            outcome.put(error)

    threading.Thread(target=connect, daemon=True).start()
    error = outcome.get()
    if error is not None:
        raise error


def hold(kind):
    if kind == "raw":
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    if kind == "packet":
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def obey(verb, *words):
    if verb == "connect":
        sockets[words[0]] = connected(*words[1:])
    elif verb == "send":
        sockets[words[0]].sendall(words[1].encode())
    elif verb == "close":
        sockets.pop(words[0]).close()
    elif verb == "attempt":
        connected(*words).close()
    elif verb == "unix":
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(words[0])
    elif verb == "hold":
        sockets[words[0]] = hold(words[1])
    elif verb == "udp":
        sockets[words[0]] = hold("udp")
        sockets[words[0]].connect((words[1], int(words[2])))
    elif verb == "datagram":
        sockets[words[0]].sendto(words[1].encode(), (words[2], int(words[3])))
    elif verb == "hide":
        hide(*words)
    elif verb == "bear":
        bear(*words)
        return None
    elif verb == "exec":
        program = [sys.executable, "-B", __file__, "anew"]
        threading.Thread(target=lambda: os.execv(program[0], program)).start()
        signal.pause()
    elif verb == "thread":
        print("ok", flush=True)
        threading.Thread(target=serve).start()
        libc.syscall(SYS_EXIT, 0)
    else:
        return "what?"
    return "ok"


def serve():
    for line in sys.stdin:
        try:
            answer = obey(*line.split())
        except TimeoutError:
            answer = "timeout"
        except OSError as error:
            answer = errno.errorcode.get(error.errno, str(error.errno))
        if answer is not None:
            print(answer, flush=True)


if "anew" in sys.argv:
    print("ok", flush=True)
serve()

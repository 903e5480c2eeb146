"""What an agent may try against the verdict and against the record: one function an attack, named by the first argument.

Each prints one JSON object, what the kernel said, and its process id on stderr. The attacks know nothing of the auditor.
"""

import collections
import ctypes
import errno
import json
import os
import socket
import struct
import sys
import time

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
SOCK_PACKET = 10
IPPROTO_MPTCP = 262
HOST = "127.0.0.1"


def name(error):
    return errno.errorcode.get(error.errno, str(error.errno))


def outcome(call):
    """What a system call came to."""
    try:
        call()
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return name(error)
    return "ok"


def repeat(seconds, call):
    """How often a call ended how."""
    results = collections.Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        results[outcome(call)] += 1
    return results


def udp_race(allowed, denied, seconds):
    """Two processes, one socket: one of them sends where it may, the other where it may not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((HOST, int(allowed)))
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            results = repeat(float(seconds), lambda: sock.send(b"allowed"))
            os.write(writer, json.dumps(results).encode())
            os._exit(0)
        os.close(writer)
        refused = repeat(float(seconds), lambda: sock.sendto(b"denied", (HOST, int(denied))))
        sent = json.loads(os.read(reader, 65536))
        os.waitpid(child, 0)
    return {"allowed": sent, "denied": refused}


def flood(denied, seconds):
    """Refused attempts as fast as they go."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return repeat(float(seconds), lambda: sock.sendto(b"denied", (HOST, int(denied))))


def statements(target, count):
    """An honest client."""
    import psycopg

    with psycopg.connect(target, autocommit=True) as connection:
        for number in range(int(count)):
            connection.execute("select %s::int4 as honest", (number,)).fetchall()
    return {"statements": int(count)}


def urgent(port):
    """Data out of band between data in band."""
    with socket.create_connection((HOST, int(port)), timeout=2) as sock:
        results = {"before": outcome(lambda: sock.sendall(b"before"))}
        time.sleep(0.2)
        results["urgent"] = outcome(lambda: sock.send(b"Z", socket.MSG_OOB))
        time.sleep(1)
        # The connection waits for a segment that never gets through: do not wait with it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return results


def stillborn(port, count):
    """Connections that fail before they begin: the very same one exists already."""
    results = collections.Counter()
    with socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind((HOST, 0))
        own = first.getsockname()
        first.connect((HOST, int(port)))
        for _ in range(int(count)):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(own)
                results[outcome(lambda: sock.connect((HOST, int(port))))] += 1
    return results


def bound_mapped(port):
    """An IPv6 socket bound to an IPv4-mapped address: `::` is the IPv4 loopback to it."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.settimeout(1)
        sock.bind(("::ffff:127.0.0.1", 0))
        return {"bound-mapped": outcome(lambda: (sock.connect(("::", int(port))), sock.send(b"probe")))}


SORTS = {
    "raw": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP),
    "raw6": (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_TCP),
    "ping": (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
    "ping6": (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6),
    "mptcp": (socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP),
    "mptcp6": (socket.AF_INET6, socket.SOCK_STREAM, IPPROTO_MPTCP),
    "sctp": (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP),
    "sctp-many": (socket.AF_INET, socket.SOCK_SEQPACKET, socket.IPPROTO_SCTP),
    "udp-lite": (socket.AF_INET, socket.SOCK_DGRAM, 136),
    "dccp": (socket.AF_INET, 6, 33),
}


def socket_types():
    """Sockets of all sorts, with TCP and UDP as the measure."""
    sorts = SORTS | {"tcp": (socket.AF_INET, socket.SOCK_STREAM, 0), "udp": (socket.AF_INET, socket.SOCK_DGRAM, 0)}
    return {sort: outcome(lambda what=what: socket.socket(*what).close()) for sort, what in sorts.items()}


def families():
    """What no cgroup hook sees, and the system-call filters refuse."""
    sorts = {
        "packet": (socket.AF_PACKET, socket.SOCK_RAW, 0),
        "vsock": (socket.AF_VSOCK, socket.SOCK_STREAM, 0),
        "tipc": (socket.AF_TIPC, socket.SOCK_STREAM, 0),
        "smc": (43, socket.SOCK_STREAM, 0),
        "xdp": (44, socket.SOCK_RAW, 0),
        "obsolete-packet": (socket.AF_INET, SOCK_PACKET, 0),
    }
    return {sort: outcome(lambda what=what: socket.socket(*what).close()) for sort, what in sorts.items()}


def listen(port, seconds):
    """A server: echoes what the first client says."""
    with socket.create_server((HOST, int(port))) as server:
        server.settimeout(float(seconds))
        print("listening", file=sys.stderr, flush=True)
        heard = b""
        try:
            client, _ = server.accept()
        except TimeoutError:
            return {"heard": None}
        with client:
            client.settimeout(float(seconds))
            try:
                while data := client.recv(65536):
                    heard += data
                    client.sendall(data)
            except OSError as error:
                return {"heard": heard.decode(), "error": name(error)}
    return {"heard": heard.decode()}


def unshare(flags):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def connect(address, port):
    with socket.socket() as sock:
        sock.settimeout(1)
        sock.connect((address, int(port)))
        sock.send(b"probe")


def namespaces(denied, allowed):
    """Other namespaces, then the same destinations."""
    results = {
        "user": outcome(lambda: unshare(CLONE_NEWUSER)),
        "user and network": outcome(lambda: unshare(CLONE_NEWUSER | CLONE_NEWNET)),
        "network": outcome(lambda: unshare(CLONE_NEWNET)),
    }
    results["denied"] = outcome(lambda: connect(HOST, denied))
    results["allowed"] = outcome(lambda: connect(HOST, allowed))
    return results


def daemonise(denied):
    """A grandchild in a session of its own (setsid(2)), whose parents have ended; it answers for itself."""
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    while os.getppid() != 1:
        time.sleep(0.01)
    time.sleep(0.3)
    return {"pid": os.getpid(), "denied": outcome(lambda: connect(HOST, denied))}


ATTACKS = [udp_race, flood, statements, urgent, stillborn, bound_mapped, socket_types, families, listen, namespaces]

if __name__ == "__main__":
    print(f"pid {os.getpid()}", file=sys.stderr, flush=True)
    attacks = {attack.__name__.replace("_", "-"): attack for attack in [*ATTACKS, daemonise]}
    json.dump(attacks[sys.argv[1]](*sys.argv[2:]), sys.stdout)

"""Tries destinations, given as KIND,ADDRESS,PORT, and prints for each what the kernel said.

KIND: tcp, udp (connected), udp-sendto (not connected); an address like ::ffff:192.0.2.1 is tried on an IPv6 socket.
"""

import errno
import json
import os
import socket
import sys

print(f"pid {os.getpid()}", file=sys.stderr, flush=True)


def attempt(kind, address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sort = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(family, sort) as sock:
            sock.settimeout(5)
            if kind == "udp-sendto":
                sock.sendto(b"probe", (address, port))
            else:
                sock.connect((address, port))
                sock.send(b"probe")
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "sent"


results = []
for argument in sys.argv[1:]:
    kind, address, port = argument.split(",")
    results.append({"kind": kind, "address": address, "port": int(port), "result": attempt(kind, address, int(port))})
json.dump(results, sys.stdout)

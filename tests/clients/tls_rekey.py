"""PostgreSQL over `openssl s_client`, which changes its keys when it is told to, and asks the server to.

PORT AUTHORITY TIMES TAG. s_client takes a line that begins with `K` or `k` for an order; messages of the extended protocol
begin with `P`, and the first one with a zero, so none is mistaken.
"""

import os
import struct
import subprocess
import sys

port, authority, times, tag = sys.argv[1:]
command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "localhost", "-starttls", "postgres", "-tls1_3"]
command += ["-CAfile", authority, "-verify_return_error"]
if "SSLKEYLOGFILE" in os.environ:
    command += ["-keylogfile", os.environ["SSLKEYLOGFILE"]]
client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
print(f"pid {client.pid}", file=sys.stderr, flush=True)
seen = b""


def read_until(mark):
    global seen
    while mark not in seen:
        more = client.stdout.read(1 << 16)
        assert more, seen
        seen += more
    seen = seen.split(mark, 1)[1]


def message(kind, body):
    return kind + struct.pack("!I", len(body) + 4) + body


READY = b"Z\0\0\0\5I"
read_until(b"Verify return code: 0 (ok)")
startup = struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0"
client.stdin.write(struct.pack("!I", len(startup) + 4) + startup)
read_until(READY)
for number in range(int(times)):
    text = f"select '{tag} {number}'".encode()
    parse = message(b"P", b"\0" + text + b"\0\0\0")
    bind = message(b"B", b"\0\0" + b"\0\0" * 3)
    execute = message(b"E", b"\0\0\0\0\0")
    client.stdin.write(parse + bind + execute + message(b"S", b""))
    read_until(READY)
    # `k` changes the client's key; `K` asks for the server's as well.
    client.stdin.write(b"K\n" if number % 2 else b"k\n")
    read_until(b"KEYUPDATE")
client.stdin.close()
client.wait()

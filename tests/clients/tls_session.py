"""PostgreSQL over Python's ssl, so that sessions are resumed and TLS may begin with the first byte.

PORT AUTHORITY VERSION WAY TIMES TAG: WAY is `request` (PostgreSQL's own request for TLS first) or `direct`. Connects TIMES times to
127.0.0.1, each time with the session before, and prints whether it was resumed.
"""

import os
import socket
import ssl
import struct
import sys

port, authority, version, way, times, tag = sys.argv[1:]
print(f"pid {os.getpid()}", file=sys.stderr, flush=True)
context = ssl.create_default_context(cafile=authority)
context.minimum_version = context.maximum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
if "SSLKEYLOGFILE" in os.environ:
    context.keylog_filename = os.environ["SSLKEYLOGFILE"]
if way == "direct":
    context.set_alpn_protocols(["postgresql"])


def exactly(connection, length):
    read = b""
    while len(read) < length:
        read += connection.recv(length - len(read))
    return read


def ready(connection):
    while True:
        kind, length = struct.unpack("!cI", exactly(connection, 5))
        body = exactly(connection, length - 4)
        assert kind != b"E", body
        if kind == b"Z":
            return


session = None
for number in range(int(times)):
    plain = socket.create_connection(("127.0.0.1", int(port)))
    if way == "request":
        plain.sendall(struct.pack("!II", 8, 80877103))
        assert plain.recv(1) == b"S"
    with context.wrap_socket(plain, server_hostname="localhost", session=session) as connection:
        startup = struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0"
        connection.sendall(struct.pack("!I", len(startup) + 4) + startup)
        ready(connection)
        for count in range(3):
            query = f"select '{tag} {number}/{count}'".encode() + b"\0"
            connection.sendall(struct.pack("!cI", b"Q", len(query) + 4) + query)
            ready(connection)
        print(connection.session_reused, flush=True)
        # With TLS 1.3 the ticket comes with the first answer.
        session = connection.session
        connection.sendall(struct.pack("!cI", b"X", 4))

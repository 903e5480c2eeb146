"""A server that ends TLS: for HTTP by itself, for PostgreSQL in front of a server that resumes no sessions.

CERTIFICATE KEY BACKEND OPTIONS: BACKEND is a port of PostgreSQL on 127.0.0.1, or `http`. OPTIONS are JSON: `minimum`, `maximum` (1.2, 1.3),
`ciphers` (TLS 1.2), `curve` (another than the one that clients guess, so that they are asked again), `alpn`, `tickets`.

Prints its port, then a line of JSON for each handshake: the client's port, the port towards PostgreSQL, version, cipher, whether the
session was resumed, SNI and ALPN, and the client's first flight in hexadecimal. PostgreSQL's own request for TLS is answered; a client that begins with TLS
at once is served too.
"""

import json
import select
import socket
import ssl
import struct
import sys
import threading

certificate, key, backend, options = sys.argv[1:5]
options = json.loads(options)
names = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
REQUEST = struct.pack("!II", 8, 80877103)

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
context.minimum_version = names[options.get("minimum", "1.2")]
context.maximum_version = names[options.get("maximum", "1.3")]
if "ciphers" in options:
    context.set_ciphers(options["ciphers"])
if "curve" in options:
    context.set_ecdh_curve(options["curve"])
if "alpn" in options:
    context.set_alpn_protocols(options["alpn"])
if "tickets" in options:
    context.num_tickets = options["tickets"]
asked = {}
context.sni_callback = lambda connection, name, _: asked.__setitem__(connection, name)
printing = threading.Lock()


def first_flight(plain):
    """The client's first record, still in the socket."""
    while True:
        seen = plain.recv(1 << 16, socket.MSG_PEEK)
        if not seen or len(seen) >= 5 and len(seen) >= 5 + struct.unpack("!H", seen[3:5])[0]:
            return seen.hex()


def serve(plain, client):
    with plain:
        if backend != "http" and plain.recv(8, socket.MSG_PEEK | socket.MSG_WAITALL) == REQUEST:
            plain.recv(8)
            plain.sendall(b"S")
        hello = first_flight(plain)
        try:
            connection = context.wrap_socket(plain, server_side=True)
        except OSError as error:
            return print(f"{client[1]}: {error}", file=sys.stderr, flush=True)
        with connection:
            (talk_http if backend == "http" else relay)(connection, client, hello)


def report(connection, client, hello, behind=None):
    cipher, _, _ = connection.cipher()
    told = dict(client=client[1], behind=behind, version=connection.version().removeprefix("TLSv"), cipher=cipher)
    told.update(resumed=connection.session_reused, sni=asked.pop(connection, None), alpn=connection.selected_alpn_protocol())
    with printing:
        print(json.dumps(told | {"hello": hello}), flush=True)


def talk_http(connection, client, hello):
    report(connection, client, hello)
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        more = connection.recv(1 << 14)
        if not more:
            return
        request += more
    path = request.split(b" ")[1].decode().lstrip("/")
    body = b"x" * (int(path) if path.isdigit() else 2)
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    try:
        connection.unwrap()
    except OSError:
        pass


def relay(connection, client, hello):
    with socket.create_connection(("127.0.0.1", int(backend))) as behind:
        report(connection, client, hello, behind.getsockname()[1])
        while True:
            ready = [connection] if connection.pending() else select.select([connection, behind], [], [])[0]
            for end, other in ((connection, behind), (behind, connection)):
                if end in ready:
                    try:
                        data = end.recv(1 << 16)
                    except OSError:
                        return
                    if not data:
                        return
                    other.sendall(data)


listener = socket.create_server(("127.0.0.1", 0), backlog=256)
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=listener.accept(), daemon=True).start()

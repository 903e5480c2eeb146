"""Answers each TLS connection with one line, also where PostgreSQL's request for TLS comes first; says its port at the start.
Arguments: certificate with key, highest version, key log."""
import socket, ssl, sys, threading

REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
context.maximum_version = ssl.TLSVersion[sys.argv[2]]
context.keylog_filename = sys.argv[3]
listener = socket.create_server(("127.0.0.1", 0), backlog=128)
print(listener.getsockname()[1], flush=True)


def serve(connection):
    try:
        if connection.recv(8, socket.MSG_PEEK) == REQUEST:
            connection.recv(8)
            connection.sendall(b"S")
        with context.wrap_socket(connection, server_side=True) as tls:
            asked = tls.recv(4096)
            if asked.startswith(b"GET"):
                tls.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nyes")
            elif asked.startswith(b"hello"):
                tls.sendall(b"yes\n")
            tls.settimeout(5)
            tls.unwrap()
    except OSError:
        pass


while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()

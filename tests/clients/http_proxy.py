"""A proxy that makes tunnels (CONNECT), and nothing else. Prints its port."""

import socket
import threading

server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def serve(client):
    head = b""
    while b"\r\n\r\n" not in head:
        data = client.recv(4096)
        if not data:
            return
        head += data
    host, port = head.split(b" ")[1].rsplit(b":", 1)
    far = socket.create_connection((host.decode(), int(port)))
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    threading.Thread(target=pump, args=(far, client), daemon=True).start()
    pump(client, far)


while True:
    client, _ = server.accept()
    threading.Thread(target=serve, args=(client,), daemon=True).start()

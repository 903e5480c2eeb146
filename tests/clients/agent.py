"""An agent that does what it is told, line by line, so that a test can change the world between two of its steps.

connect NAME ADDRESS PORT, send NAME TEXT, close NAME, attempt ADDRESS PORT, unix PATH. Answers each with one word.
"""

import errno
import os
import socket
import sys

LIMIT = 2

print(f"pid {os.getpid()}", file=sys.stderr, flush=True)
sockets = {}


def connected(address, port):
    return socket.create_connection((address, int(port)), timeout=LIMIT)


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
    else:
        return "what?"
    return "ok"


for line in sys.stdin:
    try:
        answer = obey(*line.split())
    except TimeoutError:
        answer = "timeout"
    except OSError as error:
        answer = errno.errorcode.get(error.errno, str(error.errno))
    print(answer, flush=True)

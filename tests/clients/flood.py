"""Agents that do one thing as fast as they can, and one that is quiet: which is named by the first argument.

Each prints one JSON object, and its process id on stderr. They know nothing of the auditor.
"""

import _thread
import collections
import errno
import json
import os
import socket
import sys
import time

HOST = "127.0.0.1"


def until(seconds):
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        yield


def connects(port, seconds):
    """Sockets that are connected to where they may, one after the other: UDP, where nobody has to answer."""
    results = collections.Counter()
    for _ in until(seconds):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect((HOST, int(port)))
                results["ok"] += 1
            except OSError as error:
                results[errno.errorcode.get(error.errno, str(error.errno))] += 1
    return results


def forks(seconds):
    """Tasks that end at once, by four processes: a few programs between many threads, which are quicker to make."""
    _thread.stack_size(1 << 16)
    first = os.getpid()
    for _ in range(3):
        if os.getpid() == first:
            os.fork()
    programs = 0
    for _ in until(seconds):
        for _ in range(256):
            try:
                _thread.start_new_thread(int, ())
            except RuntimeError:
                break
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        programs += 1
    if os.getpid() != first:
        os._exit(0)
    return {"programs": programs}


def spill(port, seconds):
    """Bytes at full speed to somebody who takes them all."""
    count = 0
    with socket.create_connection((HOST, int(port))) as sock:
        sock.settimeout(10)
        block = bytes(1 << 16)
        for _ in until(seconds):
            count += sock.send(block)
    return {"bytes": count}


def quiet(target, seconds):
    """Now and then a connection with a statement of its own. What fails is not tried again."""
    import psycopg

    results = collections.Counter()
    errors = []
    number = 0
    for _ in until(seconds):
        try:
            with psycopg.connect(target, autocommit=True, connect_timeout=20) as connection:
                for _ in range(5):
                    connection.execute("select %s::int4 as quiet", (number,)).fetchall()
                    number += 1
            results["ok"] += 1
        except Exception as error:
            results["failed"] += 1
            errors.append(str(error))
        time.sleep(0.05)
    return {"connections": results, "statements": number, "errors": errors[:3]}


if __name__ == "__main__":
    floods = {"connects": connects, "forks": forks, "spill": spill, "quiet": quiet}
    print("pid", os.getpid(), file=sys.stderr, flush=True)
    json.dump(floods[sys.argv[1]](*sys.argv[2:]), sys.stdout)

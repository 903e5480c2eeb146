"""Has a PostgreSQL server execute texts by names that an auditor may have lost: one of more than it keeps, names longer than the server
tells apart, SQL's EXECUTE and FETCH of what the protocol prepared, and the same from within a function.

PORT KEPT (statements that are kept)"""

import socket
import struct
import sys

port, kept = map(int, sys.argv[1:])
server = socket.create_connection(("127.0.0.1", port))
answers = server.makefile("rb")


def message(kind, *parts):
    body = b"".join(parts)
    return kind + struct.pack("!I", len(body) + 4) + body


def text(said):
    return said.encode() + b"\0"


def say(*messages):
    server.sendall(b"".join(messages))
    while True:
        kind, length = struct.unpack("!cI", answers.read(5))
        body = answers.read(length - 4)
        if kind == b"E":
            sys.exit(body.decode(errors="replace"))
        if kind == b"Z":
            return


def parse(name, sql):
    return message(b"P", text(name), text(sql), b"\0\0")


def bind(portal, name):
    return message(b"B", text(portal), text(name), bytes(6))


def execute(portal):
    return message(b"E", text(portal), bytes(4))


def query(sql):
    return message(b"Q", text(sql))


def insert(word):
    return f"insert into said values ('{word}')"


SYNC = message(b"S")
LOGIN = b"user\0postgres\0database\0postgres\0\0"
server.sendall(struct.pack("!II", len(LOGIN) + 8, 196608) + LOGIN)
say()
say(*(parse(f"p{number}", insert(f"kept {number}")) for number in range(kept + 1)), SYNC)
say(bind("", "p0"), execute(""), SYNC)
say(*(parse(f"r{number}", insert(f"pipelined {number}")) for number in range(kept + 1)), bind("", "r0"), execute(""), SYNC)
say(parse("l" * 80, insert("long")), bind("", "l" * 80), execute(""), SYNC)
say(parse("x" * 63, insert("cut")), SYNC)
say(bind("", "x" * 64), execute(""), SYNC)
say(query("prepare q as select 1"))
say(query("execute q"))
say(message(b"C", b"S", text("q")), SYNC)
say(parse("q", insert("sql")), SYNC)
say(query("execute q"))
say(query("begin"))
say(parse("", insert("fetched") + " returning 1"), bind("c", ""), SYNC)
say(query("fetch c"))
say(query("commit"))
say(parse("f", insert("function")), SYNC)
say(query("do $$ begin execute 'exec' || 'ute f'; end $$"))

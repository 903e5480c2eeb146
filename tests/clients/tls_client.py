"""A client over TLS, with one of many drivers: each has another copy of a TLS library, or uses it in another way.

DRIVER WAY HOST PORT AUTHORITY CONNECTIONS STATEMENTS TAG

Ways: `together` opens all connections, then talks on all of them at once; `storm` opens, talks and closes, eight at a time. Statements
are all different, so that one on a wrong connection is seen. SSLKEYLOGFILE is honoured where the library can.
"""

import asyncio
import itertools
import os
import socket
import ssl
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

driver, way, host, port, authority = sys.argv[1:6]
connections, statements, tag = int(sys.argv[6]), int(sys.argv[7]), sys.argv[8]
print(f"pid {os.getpid()}", file=sys.stderr, flush=True)


def text(number, count):
    return f"select '{tag} {number}/{count} ☃'"


class Psycopg:
    """psycopg 3: libpq's TLS, in a wheel or the system's (PSYCOPG_IMPL)."""

    numbers = itertools.count()

    def __init__(self):
        import psycopg

        # libpq writes a line and its end apart, so connections that share a log mix them up: each has a log of its own.
        path = f"{os.environ.get('SSLKEYLOGFILE')}.{next(self.numbers)}"
        log = {"sslkeylogfile": path} if "LIBPQ_KEYLOG" in os.environ else {}
        target = dict(host=host, port=port, user="postgres", dbname="postgres", sslmode="verify-full", sslrootcert=authority)
        self.connection = psycopg.connect(**target, **log, autocommit=True)

    def talk(self, number, count):
        self.connection.execute(text(number, count)).fetchall()
        self.connection.execute(text(number, count) + " || %s", ("bound",)).fetchall()

    def close(self):
        self.connection.close()


class Psycopg2:
    """psycopg2-binary: a libssl of its own in the wheel."""

    def __init__(self):
        import psycopg2

        target = dict(host=host, port=port, user="postgres", dbname="postgres", sslmode="verify-full", sslrootcert=authority)
        self.connection = psycopg2.connect(**target)
        self.connection.autocommit = True

    def talk(self, number, count):
        with self.connection.cursor() as cursor:
            cursor.execute(text(number, count))
            cursor.fetchall()

    def close(self):
        self.connection.close()


class Tlslite:
    """TLS in pure Python: no library that anybody could probe."""

    def __init__(self):
        from tlslite.api import TLSConnection

        plain = socket.create_connection((host, int(port)))
        plain.sendall(struct.pack("!II", 8, 80877103))
        assert plain.recv(1) == b"S"
        self.connection = TLSConnection(plain)
        self.connection.handshakeClientCert(serverName="localhost")
        startup = struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0"
        self.connection.sendall(struct.pack("!I", len(startup) + 4) + startup)
        self.ready()

    def exactly(self, length):
        read = b""
        while len(read) < length:
            read += self.connection.recv(length - len(read))
        return bytes(read)

    def ready(self):
        while True:
            kind, length = struct.unpack("!cI", self.exactly(5))
            body = self.exactly(length - 4)
            assert kind != b"E", body
            if kind == b"Z":
                return

    def talk(self, number, count):
        query = text(number, count).encode() + b"\0"
        self.connection.sendall(struct.pack("!cI", b"Q", len(query) + 4) + query)
        self.ready()

    def close(self):
        self.connection.sendall(struct.pack("!cI", b"X", 4))
        self.connection.close()


def pool():
    """SQLAlchemy with fewer connections than threads: connections change hands."""
    import sqlalchemy

    target = f"postgresql+psycopg2://postgres@{host}:{port}/postgres"
    arguments = dict(sslmode="verify-full", sslrootcert=authority)
    engine = sqlalchemy.create_engine(target, pool_size=4, max_overflow=2, connect_args=arguments, isolation_level="AUTOCOMMIT")

    def work(number):
        for count in range(statements):
            with engine.connect() as connection:
                connection.execute(sqlalchemy.text(text(number, count))).all()

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(connections)))
    engine.dispose()


async def memory_bio():
    """asyncpg: asyncio's TLS works in memory, so the library never sees a socket."""
    import asyncpg

    context = ssl.create_default_context(cafile=authority)
    if "SSLKEYLOGFILE" in os.environ:
        context.keylog_filename = os.environ["SSLKEYLOGFILE"]

    def connect():
        return asyncpg.connect(host=host, port=int(port), user="postgres", database="postgres", ssl=context, timeout=60)

    async def talk(connection, number, count):
        await connection.fetch(text(number, count))
        await connection.fetch(text(number, count) + " || $1", "bound")

    if way == "together":
        everyone = await asyncio.gather(*(connect() for _ in range(connections)))

        async def work(number):
            for count in range(statements):
                await talk(everyone[number], number, count)

        await asyncio.gather(*(work(number) for number in range(connections)))
        await asyncio.gather(*(connection.close() for connection in everyone))
        return

    few = asyncio.Semaphore(8)

    async def storm(number):
        async with few:
            connection = await connect()
            for count in range(statements):
                await talk(connection, number, count)
            await connection.close()

    await asyncio.gather(*(storm(number) for number in range(connections)))


def threads(make):
    def one(number, wait):
        connection = make()
        wait()
        for count in range(statements):
            connection.talk(number, count)
        connection.close()

    width, wait = (connections, threading.Barrier(connections).wait) if way == "together" else (8, lambda: None)
    with ThreadPoolExecutor(width) as workers:
        list(workers.map(one, range(connections), [wait] * connections))


if driver == "sqlalchemy":
    pool()
elif driver == "asyncpg":
    asyncio.run(memory_bio())
else:
    threads({"psycopg": Psycopg, "psycopg2": Psycopg2, "tlslite": Tlslite}[driver])

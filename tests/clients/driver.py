"""A client as programs are: psycopg with parameters, prepared statements, a pipeline, COPY and a server-side cursor."""

import datetime
import os
import sys

import psycopg

print(f"pid {os.getpid()}", file=sys.stderr, flush=True)

with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    connection.execute("create table orders (id bigint primary key, customer text, total numeric, placed timestamptz, raw bytea)")
    placed = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone.utc)
    insert = "insert into orders values (%s, %s, %s, %s, %s)"
    for number in range(20):
        connection.execute(insert, (number, f"o'Hara ☃ {number}", None if number % 3 else "12.50", placed, b"\x00\xff'"))
    for number in range(20):
        connection.execute("select customer from orders where id = %s", (number,), prepare=True).fetchall()
    connection.execute("select %t::text, %b::int4, %s::bool, %s::float8", ("text", 7, True, 1.5)).fetchall()

    for bad in ("select * from missing where id = %s", "select %s::int4 / 0"):
        try:
            connection.execute(bad, (1,))
        except psycopg.Error:
            pass
    try:
        connection.execute("select %t::int4 as bound_badly", ("not a number",))
    except psycopg.Error:
        pass

    with connection.pipeline():
        for number in range(100, 200):
            connection.execute("insert into orders (id, customer) values (%s, %s)", (number, "piped"))
    try:
        with connection.pipeline():
            connection.execute("select %s::int4 as before_the_error", (1,))
            connection.execute("insert into orders (id) values (%s)", (100,))
            connection.execute("select %s::int4 as never_executed", (2,))
    except psycopg.Error:
        pass

    with connection.cursor() as cursor:
        with cursor.copy("copy orders (id, customer) from stdin") as copy:
            for number in range(1000, 3000):
                copy.write_row((number, f"copied\t{number}"))
        with cursor.copy("copy (select id, customer from orders order by id) to stdout") as copy:
            print("copied out", sum(1 for _ in copy.rows()))

    with connection.transaction():
        with connection.cursor(name="by hundreds") as cursor:
            cursor.itersize = 100
            cursor.execute("select id from orders order by id limit %s", (550,))
            print("fetched", sum(1 for _ in cursor))

    connection.execute("select " + ", ".join(f"{number} as c{number}" for number in range(800))).fetchall()

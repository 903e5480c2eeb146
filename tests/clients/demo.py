"""The agent of the demo: a prepared statement with parameters, then a destination that nobody approved."""

import socket
import sys

import psycopg

target, elsewhere, port = sys.argv[1:]
with psycopg.connect(target, autocommit=True) as connection:
    lookup = "select cents from payments where customer = %s and cents > %s"
    for customer in ("Ada", "Grace", "o'Hara"):
        connection.execute(lookup, (customer, 1000), prepare=True).fetchall()
try:
    socket.create_connection((elsewhere, int(port)), timeout=3)
except OSError as error:
    print(f"the agent, trying {elsewhere} port {port}: {error}")
else:
    sys.exit("the agent reached a destination that policy does not name")

"""Talks to MariaDB with PyMySQL or mysql-connector-python, and prints what came of each statement: rows, or a SQLSTATE.

DRIVER (pymysql, connector) WAY (plain, compressed, tls) TARGET (HOST:PORT, or a socket's path) FOLDER AUTHORITY"""

import datetime
import decimal
import os
import sys

driver, way, target, folder, authority = sys.argv[1:]
print(f"pid {os.getpid()}", file=sys.stderr, flush=True)
login = {"user": "shopkeeper", "password": "not-in-any-record", "database": "shop"}
if target.startswith("/"):
    login["unix_socket"] = target
else:
    host, port = target.rsplit(":", 1)
    login |= {"host": host, "port": int(port)}


def said(what):
    print("said", what, flush=True)


def attempt(cursor, text, values=None):
    try:
        cursor.execute(text) if values is None else cursor.execute(text, values)
        rows = cursor.fetchall() if cursor.description else None
        said(cursor.rowcount if rows is None else len(rows))
    except Exception as error:
        said(getattr(error, "sqlstate", None) or "failed")


def with_pymysql():
    import pymysql

    if way == "tls":
        login["ssl"] = {"ca": authority, "check_hostname": False}
    multi = pymysql.constants.CLIENT.MULTI_STATEMENTS
    connection = pymysql.connect(**login, client_flag=multi, local_infile=True, autocommit=True, program_name="tests")
    cursor = connection.cursor()
    attempt(cursor, "select %s, %s, 'grün ☃'", ("a'b", None))
    attempt(cursor, "drop table if exists lines_; create table lines_ (a int, b text); insert into lines_ values (1, 'x'), (2, 'y')")
    while cursor.nextset():
        pass
    path = os.path.join(folder, "in.csv")
    with open(path, "w") as file:
        file.writelines(f"{number},row {number}\n" for number in range(3000))
    attempt(cursor, f"load data local infile '{path}' into table lines_ fields terminated by ','")
    attempt(cursor, "select * from nowhere")
    connection.ping()
    connection.select_db("mysql")
    connection.select_db("shop")
    attempt(cursor, "select '" + "0123456789abcdef" * 6000 + "'")
    attempt(cursor, "select seq from seq_1_to_2000")
    for number in range(200):
        attempt(cursor, f"insert into lines_ values ({number}, 'number {number}')")
        attempt(cursor, f"select * from lines_ where a = {number} limit 1")
    # Longer than one packet holds.
    attempt(cursor, "select length('" + "y" * (17 << 20) + "')")
    connection.close()


def with_connector():
    import mysql.connector

    login["use_pure"] = True
    login["compress"] = way == "compressed"
    if way == "tls":
        login |= {"ssl_ca": authority, "ssl_verify_identity": False}
    else:
        login["ssl_disabled"] = True
    connection = mysql.connector.connect(**login, charset="utf8mb4", collation="utf8mb4_general_ci")
    cursor = connection.cursor()
    attempt(cursor, "create temporary table goods2 (id int primary key auto_increment, name varchar(40), price decimal(8,2), made datetime(6))")
    prepared = connection.cursor(prepared=True)
    insert = "insert into goods2 (name, price, made) values (?, ?, ?)"
    attempt(prepared, insert, ("ann 'quoted'", decimal.Decimal("9.99"), datetime.datetime(2026, 11, 21, 10, 11, 12, 345678)))
    attempt(prepared, insert, ("bob", None, datetime.datetime(2026, 1, 2)))
    attempt(prepared, "select id, name, ? + 1 from goods2 where id > ?", (-5, 0))
    attempt(prepared, "select ?, ?, ?, ?", (datetime.date(2026, 2, 3), 1.5, 2**40, "grün ☃"))
    for number in range(100):
        attempt(prepared, "select ? as number", (number,))
    attempt(prepared, "select * from nowhere where a = ?", (1,))
    attempt(cursor, "select repeat('x', 300000), 'y'")
    attempt(cursor, "insert into goods2 (name) values ('" + "z" * 40 + "')")
    connection.cmd_ping()
    connection.cmd_init_db("mysql")
    connection.cmd_reset_connection()
    if way != "compressed":
        connection.cmd_change_user(login["user"], login["password"], "shop", 45)
    attempt(connection.cursor(), "select database(), user()")
    connection.close()


with_pymysql() if driver == "pymysql" else with_connector()

"""Has a MariaDB server execute statements by numbers of which there are more than an auditor keeps. HOST PORT KEPT"""

import struct
import sys

import pymysql

host, port, kept = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
connection = pymysql.connect(
    host=host, port=port, user="shopkeeper", password="not-in-any-record", database="shop", autocommit=True
)


def say(command, body):
    connection._execute_command(command, body)
    return connection._read_packet().get_all_data()


def prepare(word):
    # No values and no rows: nothing follows.
    (number,) = struct.unpack("<I", say(0x16, f"insert into said values ('{word}')")[1:5])
    return number


def execute(number):
    say(0x17, struct.pack("<IBI", number, 0, 1))


numbers = [prepare(f"kept {number}") for number in range(kept + 2)]
execute(numbers[0])
execute(numbers[-1])
execute(numbers[1])

"""What a program sends to Redis with redis-py: host, port."""

import os
import sys

import redis

host, port = sys.argv[1], int(sys.argv[2])
print("pid", os.getpid(), file=sys.stderr)


def refused(call):
    try:
        call()
    except redis.RedisError:
        return
    raise SystemExit("not refused")


for protocol in (2, 3):
    r = redis.Redis(host, port, protocol=protocol)
    r.set(f"k{protocol}", b"\x00\xff binary \r\n value")
    assert r.get(f"k{protocol}") == b"\x00\xff binary \r\n value"
    r.set("long", "x" * 300_000)
    assert len(r.get("long")) == 300_000
    refused(lambda: r.lpush("long", 1))
    with r.pipeline(transaction=False) as p:
        for number in range(2000):
            p.set(f"p:{number}", number)
            p.get(f"p:{number}")
        p.execute()
    with r.pipeline() as p:
        p.incr("counter")
        p.lpush("list", "a", "b")
        p.incr("list")
        try:
            p.execute()
        except redis.ResponseError:
            pass
    with r.pipeline() as p:
        p.watch("counter")
        r.incr("counter")
        p.multi()
        p.set("counter", 0)
        try:
            p.execute()
        except redis.WatchError:
            pass
    script = r.register_script("return {KEYS[1], ARGV[1], redis.call('incr', KEYS[1])}")
    script(keys=["scripted"], args=["äöü"])
    refused(lambda: r.eval("return nonsense(", 0))
    r.hset("h", mapping={"a": 1, "b": "two words", "c": ""})
    r.hgetall("h")
    r.zadd("z", {"m": 1.5, "n": 2})
    r.zrange("z", 0, -1, withscores=True)
    r.xadd("stream", {"f": "v"})
    r.xread({"stream": 0}, count=10)
    list(r.scan_iter("p:1*", count=500))
    r.blpop(["nothing"], timeout=0.1)
    refused(lambda: r.execute_command("NOSUCH", "a"))
    refused(lambda: r.execute_command("GET"))
    listener = r.pubsub()
    listener.subscribe("one", "two")
    listener.psubscribe("t*")
    assert [listener.get_message(timeout=5)["type"] for _ in range(3)] == ["subscribe", "subscribe", "psubscribe"]
    r.publish("one", "hi")
    r.publish("two", "hi")
    assert [listener.get_message(timeout=5)["type"] for _ in range(3)] == ["message", "message", "pmessage"]
    listener.unsubscribe()
    listener.punsubscribe()
    for _ in range(3):
        listener.get_message(timeout=5)
    listener.close()
    r.close()

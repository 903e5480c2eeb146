"""Calls the server of grpc_server.py: PORT and how often."""

import sys
from concurrent import futures

import grpc

target, rounds = f"127.0.0.1:{sys.argv[1]}", int(sys.argv[2])
with grpc.insecure_channel(target) as channel, futures.ThreadPoolExecutor(4) as pool:
    unary = channel.unary_unary("/test.Echo/Unary")
    fail = channel.unary_unary("/test.Echo/Fail")
    stream = channel.stream_stream("/test.Echo/Stream")

    def turn(number):
        secret = (("authorization", "Bearer s3cret"),)
        assert unary(b"u" * number, metadata=secret) == b"u" * number
        try:
            fail(b"f")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND
        assert len(list(stream(iter([b"s" * 1000] * number)))) == number

    list(pool.map(turn, range(rounds)))

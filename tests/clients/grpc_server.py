"""A gRPC server on a port of its own, which it prints first; then a line of JSON for each call that it has answered."""

import json
import threading
from concurrent import futures

import grpc

lock = threading.Lock()


def tell(method, code, taken, given):
    with lock:
        print(json.dumps({"method": method, "code": code, "taken": taken, "given": given}), flush=True)


def echo(request, context):
    tell("/test.Echo/Unary", 0, len(request) + 5, len(request) + 5)
    return request


def fail(request, context):
    tell("/test.Echo/Fail", 5, len(request) + 5, 0)
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: \u00e4")


def stream(requests, context):
    size = 0
    for request in requests:
        size += len(request) + 5
        yield request
    tell("/test.Echo/Stream", 0, size, size)


class Methods(grpc.GenericRpcHandler):
    def service(self, details):
        same = {"request_deserializer": None, "response_serializer": None}
        return {
            "/test.Echo/Unary": grpc.unary_unary_rpc_method_handler(echo, **same),
            "/test.Echo/Fail": grpc.unary_unary_rpc_method_handler(fail, **same),
            "/test.Echo/Stream": grpc.stream_stream_rpc_method_handler(stream, **same),
        }.get(details.method)


server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Methods(),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()

"""Asks an HTTP server with httpx: BASE, 1 or 2 (the version), how often, and a file with an authority's certificate or nothing.

Prints how many requests were made.
"""

import asyncio
import sys

import httpx

base, version, rounds, authority = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
two = version == "2"
secrets = {"authorization": "Bearer s3cret", "x-api-key": "s3cret", "cookie": "sid=s3cret"}


async def pieces():
    for _ in range(20):
        yield b"x" * 500


async def main():
    made = 0
    verify = authority if authority else True
    async with httpx.AsyncClient(http1=not two, http2=two, verify=verify, timeout=60) as client:
        for turn in range(rounds):
            asked = [
                client.get(f"{base}/short.txt?turn={turn}&token=s3cret", headers=secrets),
                client.get(f"{base}/long.txt", headers={"accept-encoding": "identity"}),
                client.get(f"{base}/long.txt"),
                client.head(f"{base}/short.txt"),
                client.get(f"{base}/gone?turn={turn}", headers=secrets),
                client.get(f"{base}/nothing"),
                client.get(f"{base}/away"),
                client.post(f"{base}/take", content=b"y" * (1000 * turn), headers={"content-type": "a/b"}),
                client.put(f"{base}/take?a=b", content=pieces()),
                client.delete(f"{base}/nothing"),
                client.request("PROPFIND", f"{base}/gone"),
            ]
            if two:
                answers = await asyncio.gather(*asked)
            else:
                answers = [await one for one in asked]
            made += len(answers)
    print(made)


asyncio.run(main())

"""A file system (FUSE) with one file in it, which is quick for everybody but for one process: that waits for ever.
Arguments: where to mount it, the file that it shows, the process. Says when it is there."""
import ctypes, errno, os, struct, sys

place, shown, shunned = sys.argv[1:]
content = open(shown, "rb").read()
device = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f"fd={device},rootmode=40755,user_id=0,group_id=0,allow_other".encode()
if libc.mount(b"test", place.encode(), b"fuse.test", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))

ROOT, FILE = 1, 2
INIT, LOOKUP, FORGET, GETATTR, STATFS, OPEN, READ, RELEASE, FLUSH, INTERRUPT, OPENDIR, RELEASEDIR = 26, 1, 2, 3, 17, 14, 15, 18, 25, 36, 27, 29


def attributes(node):
    mode, size = (0o40755, 0) if node == ROOT else (0o100755, len(content))
    return struct.pack("<6Q10I", node, size, (size + 511) // 512, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(unique, data=b"", error=0):
    os.write(device, struct.pack("<IiQ", 16 + len(data), -error, unique) + data)


def is_shunned(thread):
    try:
        return f"\nTgid:\t{shunned}\n" in open(f"/proc/{thread}/status").read()
    except OSError:
        return False


print("READY", flush=True)
while True:
    request = os.read(device, 1 << 20)
    _, kind, unique, node, _, _, thread = struct.unpack_from("<IIQQIII", request)
    body = request[40:]
    if kind in (OPEN, READ, STATFS) and is_shunned(thread):
        continue
    if kind == INIT:
        major, minor, ahead, flags = struct.unpack_from("<4I", body)
        answer(unique, struct.pack("<4IHHII2HI7I", 7, 31, ahead, 0, 16, 8, 1 << 17, 1, 0, 0, 0, *[0] * 7))
    elif kind == LOOKUP:
        if body.rstrip(b"\0") == b"program":
            answer(unique, struct.pack("<4Q2I", FILE, 1, 3600, 3600, 0, 0) + attributes(FILE))
        else:
            answer(unique, error=errno.ENOENT)
    elif kind == GETATTR:
        answer(unique, struct.pack("<QII", 3600, 0, 0) + attributes(node))
    elif kind in (OPEN, OPENDIR):
        answer(unique, struct.pack("<QII", 1, 2, 0))
    elif kind == STATFS:
        answer(unique, struct.pack("<5Q4I24x", 1, 0, 0, 1, 0, 4096, 255, 4096, 0))
    elif kind == READ:
        _, offset, size = struct.unpack_from("<QQI", body)
        answer(unique, content[offset : offset + size])
    elif kind in (RELEASE, RELEASEDIR, FLUSH):
        answer(unique)
    elif kind in (FORGET, INTERRUPT):
        pass
    else:
        answer(unique, error=errno.ENOSYS)

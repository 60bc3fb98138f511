#!/usr/bin/env python3
"""Writes a file atomically through atomic4d, with nothing but the standard library.

    example.py SOCKET FILE      FILE lies on the mounted volume that SOCKET's daemon serves
"""
import itertools
import os
import socket
import struct
import sys

HELLO, OPEN, WRITE, READ = 1, 3, 4, 6
OPEN_READ, OPEN_WRITE = 1, 2
tags = itertools.count(1)


def call(daemon, kind, body, fds=()):
    """Sends a request and returns the body of its answer."""
    tag = next(tags)
    packet = struct.pack("<HHIQ", kind, 0, 16 + len(body), tag) + body
    socket.send_fds(daemon, [packet], list(fds))
    answer = daemon.recv(1 << 17)
    _kind, _flags, _length, answered, error, reason = struct.unpack_from("<HHIQII", answer)
    assert answered == tag
    if error:
        raise OSError(error, answer[24:24 + reason].decode())
    return answer[24:]


daemon = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
daemon.connect(sys.argv[1])
version, _target, uuid, block = struct.unpack_from("<II16sI", call(
    daemon, HELLO, struct.pack("<8sII", b"A4SOCKET", 1, 1)))
print(f"version {version}, volume {uuid.hex()}, blocks of {block} bytes")

fd = os.open(sys.argv[2], os.O_RDWR)
handle, inode, _generation = struct.unpack("<QII", call(
    daemon, OPEN, struct.pack("<IIII", OPEN_READ | OPEN_WRITE, 0, 0, 0), [fd]))

page = os.urandom(16384)
engine, acknowledged = struct.unpack("<II", call(
    daemon, WRITE, struct.pack("<QQQQII", handle, 0, len(page), 0, 0, 0) + page))
print(f"inode {inode}: {len(page)} bytes are durable, all or nothing:",
      ("", "native", "logged")[engine], ("", "exclusive", "strict")[acknowledged])

back = call(daemon, READ, struct.pack("<QQQQII", handle, 0, len(page), 0, 0, 0))[8:]
print("read back:", "the same" if back == page else "different!")

#!/usr/bin/env python3
"""Writes a file atomically through atomic4d, with nothing but the standard library.

    example.py SOCKET FILE      FILE lies on the mounted volume that SOCKET's daemon serves
"""
import os
import socket
import struct
import sys

HELLO, OPEN, WRITE, READ = 1, 3, 4, 6


def call(kind, body, *descriptors):
    """Sends a request and returns the body of its answer."""
    # Only who asks several things at once needs tags to tell the answers apart.
    packet = struct.pack("<HHIQ", kind, 0, 16 + len(body), 0) + body
    socket.send_fds(daemon, [packet], descriptors)
    answer = daemon.recv(1 << 17)
    error, reason = struct.unpack_from("<II", answer, 16)
    if error:
        raise OSError(error, answer[24:24 + reason].decode())
    return answer[24:]


daemon = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
daemon.connect(sys.argv[1])
hello = call(HELLO, struct.pack("<8sII", b"A4SOCKET", 1, 1))
version, _, uuid, block = struct.unpack_from("<II16sI", hello)
print(f"version {version}, volume {uuid.hex()}, blocks of {block} bytes")

fd = os.open(sys.argv[2], os.O_RDWR)
handle, inode, _ = struct.unpack("<QII", call(OPEN, struct.pack("<IIII", 1 | 2, 0, 0, 0), fd))
page = os.urandom(16384)
where = struct.pack("<QQQQII", handle, 0, len(page), 0, 0, 0)
engine, ack = struct.unpack("<II", call(WRITE, where + page))
print(f"inode {inode}: {len(page)} bytes are durable, all or nothing:",
      ("", "native", "logged")[engine], ("", "exclusive", "strict")[ack])
print("read back:", "the same" if call(READ, where)[8:] == page else "different!")

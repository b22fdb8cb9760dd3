#!/usr/bin/env python3
"""Keeps many UDP flows alive through a tunnel: flows.py ADDRESS COUNT. Runs until it is ended; prints a line when all have begun.

Each flow gets a byte every 40 seconds, which is less than the minute for which a flow without an answer is remembered.
"""

import socket
import sys
import time

address, count = sys.argv[1], int(sys.argv[2])
PORTS = 2_000
sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(-(-count // PORTS))]
first = True
while True:
    begun = time.monotonic()
    period = count / 20_000 if first else 40.0
    for number in range(count):
        try:
            sockets[number // PORTS].sendto(b"x", (address, 20_000 + number % PORTS))
        except OSError:
            pass  # nobody listens there, and the kernel says so
        if number % 50 == 49:
            time.sleep(max(0.0, begun + period * (number + 1) / count - time.monotonic()))
    if first:
        print("all have begun", flush=True)
    first = False

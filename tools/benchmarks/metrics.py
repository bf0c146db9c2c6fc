"""What mvm counts while it runs, by its control socket."""

import json
import os
import socket

NAME = "bench"


def use_directory(work):
    """Has the VMs that are started from here on keep their directories in `work`."""
    os.environ["XDG_RUNTIME_DIR"] = work


def read(work):
    """All counters of the VM that is called NAME: by kind, device and counter."""
    base = os.path.join(work, "mvm")
    path = os.path.join(base, os.readlink(os.path.join(base, "names", NAME)), "control.sock")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b"GET /metrics.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := connection.recv(1 << 16):
            answer += data
    return json.loads(answer.partition(b"\r\n\r\n")[2])["counters"]


def total(counters, kind, *names):
    """The sum of these counters over all devices of a kind."""
    return sum(device[name] for device in counters.get(kind, {}).values() for name in names)


def device_exits(counters):
    """Exits from the guest to the VMM for the registers of virtio devices."""
    return total(counters, "vcpu", "mmio_read_exits", "mmio_write_exits")

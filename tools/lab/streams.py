"""The threads that move data between the host and the lab."""

import contextlib
import os
import queue
import select
import signal
import socket
import threading
import time

# QEMU's emulation loses an interrupt now and then: when it leaves a nested guest, it changes the processor's pending
# requests without the lock that devices take for that. What was lost stays pending in the local APIC, and shows with
# the next interrupt of any kind. So the lab is given one at this interval, and answers each.
NUDGE_INTERVAL = 0.1  # seconds

# What the threads report to the one that waits: (what, value).
events = queue.SimpleQueue()


def write_all(descriptor, data):
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def pass_output(port, descriptor, mark):
    """Copies the lab's stream up to the mark, which is its very last part."""
    held = b""
    try:
        while data := port.recv(1 << 18):
            held += data
            if held.endswith(mark):
                write_all(descriptor, held[: -len(mark)])
                events.put(("end", descriptor))
                return
            # Only what may be the start of the mark waits.
            keep = next((n for n in range(len(mark) - 1, 0, -1) if held.endswith(mark[:n])), 0)
            write_all(descriptor, held[: len(held) - keep])
            held = held[len(held) - keep :]
    except BrokenPipeError:
        events.put(("signal", signal.SIGPIPE))
    except OSError as error:
        events.put(("fail", f"cannot write the command's output: {error}"))


def pass_input(port):
    try:
        while data := os.read(0, 1 << 16):
            port.sendall(data)
    except OSError:
        pass
    try:
        port.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def control(port):
    with contextlib.suppress(ConnectionResetError), port.makefile("rb") as lines:  # the lab has ended
        for line in lines:
            word, _, rest = line.decode(errors="replace").strip().partition(" ")
            if word == "clock":
                port.sendall(b"%.6f\n" % time.time())
            else:
                events.put((word, rest))


def nudge(port):
    try:
        while True:
            port.sendall(b"\n")
            time.sleep(NUDGE_INTERVAL)
    except OSError:
        pass  # the lab has ended


def watch(process, name):
    code = process.wait()
    # virtiofsd ends in peace when QEMU has ended, which is what to report then.
    if (name, code) != ("virtiofsd", 0):
        events.put(("fail", f"{name} ended before the command did, with {code}"))


def collect(read, into, show):
    while data := read(1 << 16):
        into += data
        del into[: -(1 << 16)]
        if show:
            write_all(2, data)


def start_thread(*call):
    thread = threading.Thread(target=call[0], args=call[1:], daemon=True)
    thread.start()
    return thread

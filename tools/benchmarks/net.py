"""One stream of TCP over a tap, or of vsock, between the guest and its host."""

import contextlib
import os
import select
import socket
import subprocess

from . import linux, metrics
from .process import LIMIT, in_turns, running
from .report import row
from .vmms import mvm_commands, qemu

MEMORY = 256  # MiB
SIZE = 32 << 20  # bytes in each direction
ROUND_TRIPS = 200
TAP = "mvmbench"
HOST, GUEST = "10.77.0.1", "10.77.0.2"
PORT = 7000
HOST_CID = 2
# Linux makes small packets for who is far away. By the time that a round trip takes in the KVM lab, some milliseconds,
# the other side would seem to be; with this, packets are of 64 KiB from the start, as they are on hardware.
NEAR_FILE, NEAR = "/proc/sys/net/ipv4/tcp_tso_rtt_log", "18"
NETWORK_UP = f"echo {NEAR} >{NEAR_FILE}; ip addr add {GUEST}/24 dev eth0; ip link set eth0 up"
# In this order: the first also brings the two addresses together.
TCP = [("ping", ROUND_TRIPS), ("send", SIZE), ("receive", SIZE)]
VSOCK = [("send", SIZE), ("receive", SIZE)]


@contextlib.contextmanager
def tap():
    """A tap with one queue and the host's address, as both VMMs take it. Needs root."""

    def ip(*words):
        subprocess.run(["ip", *words], check=True)

    if os.environ.get("MVM_KVM_LAB"):
        with open(NEAR_FILE, "w", encoding="ascii") as file:
            file.write(NEAR)
    ip("tuntap", "add", TAP, "mode", "tap")
    try:
        ip("addr", "add", f"{HOST}/24", "dev", TAP)
        ip("link", "set", TAP, "up")
        yield TAP
    finally:
        ip("link", "del", TAP)


@contextlib.contextmanager
def listener(address):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
        yield listening
    if family == socket.AF_UNIX:
        os.unlink(address)


def vsock_listener(path):
    """Where mvm connects to when the guest does."""
    return listener(f"{path}_{PORT}")


def tcp_lines(steps):
    """What the guest runs."""
    return [f"transfer tcp {HOST} {PORT} {what} {count}" for what, count in steps]


def vsock_lines(steps):
    return [f"transfer vsock {HOST_CID} {PORT} {what} {count}" for what, count in steps]


def accept(process, listening):
    """The guest's connection."""
    ready, _, _ = select.select([listening], [], [], LIMIT)
    if not ready:
        raise RuntimeError(f"no connection from {' '.join(process.command)}:\n{process.said()}")
    return listening.accept()[0]


def serve(job, process, listening, what, count, exits=lambda: 0):
    """Serves one step; returns its seconds, those that the VMM took of a processor, without its guest's, and what
    `exits` grew by."""
    with accept(process, listening) as connection:
        exits_before, before = exits(), process.own_seconds()
        command = [job["transfer"], "serve", what, str(count)]
        result = subprocess.run(command, stdin=connection, stdout=subprocess.PIPE, text=True, check=True, timeout=LIMIT)
        used = process.own_seconds() - before
        return float(result.stdout), used, exits() - exits_before


def measure(job):
    machine = linux.machine(job, MEMORY)
    machine.tap = TAP
    path = os.path.join(job["work"], "vsock")
    # QEMU's guest has no vsock, so that its last two steps end at once.
    machine.disks += [linux.script(job, [NETWORK_UP, *tcp_lines(TCP), *vsock_lines(VSOCK), "read line"])]
    commands = {"qemu": qemu(machine)}
    metrics.use_directory(job["work"])
    machine.vsock, machine.name = path, metrics.NAME
    commands |= mvm_commands(job, machine)
    times, processor, exits = {}, {}, {}
    with tap(), listener((HOST, PORT)) as tcp, vsock_listener(path) as vsock:
        for _, vmm, command in in_turns(commands, job["runs"], warm_up=False):
            with running(command) as process:
                steps = [("tcp", tcp, *step) for step in TCP]
                steps += [("vsock", vsock, *step) for step in VSOCK] if vmm != "qemu" else []
                for family, listening, what, count in steps:
                    counter = [] if vmm == "qemu" else [lambda: metrics.device_exits(metrics.read(job["work"]))]
                    seconds, used, more = serve(job, process, listening, what, count, *counter)
                    if counter:
                        exits.setdefault((vmm, family, what), []).append(more)
                    times.setdefault((vmm, family, what), []).append(seconds)
                    processor.setdefault((vmm, family, what), []).append(used * 1e9 / count)
    return rows(times, processor, exits), []


def rows(times, processor, exits):
    def rates(*key):
        return [SIZE / (1 << 20) / seconds for seconds in times.get(key, [])]

    def latencies(vmm):
        return [seconds * 1e6 / ROUND_TRIPS for seconds in times.get((vmm, "tcp", "ping"), [])]

    ways = [("send", "guest to host"), ("receive", "host to guest")]
    all_vmms = ("mvm", "qemu", "before")
    found = []
    for what, way in ways:
        runs = [rates(vmm, "tcp", what) for vmm in all_vmms]
        found.append(row(f"TCP, {way}", "MiB/s", *runs, ratio_at_least=1.2, before_at_least=0.97))
    runs = map(latencies, all_vmms)
    # A round trip that is 1.1 times as quick.
    found.append(row("TCP, round trip of a byte", "µs", *runs, ratio_at_most=0.9, before_at_most=0.91))
    trips = [[count / ROUND_TRIPS for count in exits.get((vmm, "tcp", "ping"), [])] for vmm in all_vmms]
    found.append(row("exits for each round trip", "", *trips, before_at_most=0.5))
    for what, way in ways:
        used = [processor.get((vmm, "tcp", what), []) for vmm in all_vmms]
        aims = {"ratio_at_most": 0.8, "before_at_most": 0.95}
        found.append(row(f"processor time of the VMM, TCP, {way}", "s/GB", *used, **aims))
    for what, way in ways:
        megabytes = [[count / SIZE * 1e6 for count in exits.get((vmm, "tcp", what), [])] for vmm in all_vmms]
        found.append(row(f"exits for each megabyte, TCP, {way}", "", *megabytes, before_at_most=0.5))
    for what, way in ways:
        runs = [rates("mvm", "vsock", what), rates("qemu", "tcp", what), rates("before", "vsock", what)]
        found.append(row(f"vsock, {way}; peer: TCP", "MiB/s", *runs, ratio_at_least=0.8, before_at_least=0.97))
    return found

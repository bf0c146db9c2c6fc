"""The memory of mvm with all of its devices, and that of an image that two VMs have as persistent memory."""

import contextlib
import os
import subprocess
import time

from . import linux, net
from .memory import SETTLE, beyond_ram, mappings
from .process import running
from .report import row
from .vmms import Disk, mvm

MEMORY = 128  # MiB
SIZE = 8 << 20  # bytes that go through each device
IMAGE_SIZE = 32 << 20
PMEM_UNIT = 2 << 20  # the size of a file for --pmem is a multiple of it
DONE = b"bench: done"
READ_IMAGE = "mount -t erofs -o ro,dax=always /dev/pmem0 /mnt && cat /mnt/data >/dev/null || poweroff -f"
STEPS = [("send", SIZE), ("receive", SIZE)]


def erofs_image(job):
    """A file system with one file of random bytes, not compressed, so that a guest may map it."""
    tree, image = os.path.join(job["work"], "tree"), os.path.join(job["work"], "erofs.img")
    if not os.path.exists(image):
        os.mkdir(tree)
        linux.random_image(os.path.join(tree, "data"), IMAGE_SIZE)
        subprocess.run(["mkfs.erofs", image, tree], stdout=subprocess.DEVNULL, check=True)
        os.truncate(image, -(-os.path.getsize(image) // PMEM_UNIT) * PMEM_UNIT)
    return image


def measure_memory(job):
    """All devices that are in mvm's own process, after something has gone through each."""
    data = os.path.join(job["work"], "data.img")
    linux.random_image(data, SIZE)
    path = os.path.join(job["work"], "vsock")
    machine = linux.machine(job, MEMORY, console="hvc0")
    lines = [net.NETWORK_UP, *net.tcp_lines(STEPS), *net.vsock_lines(STEPS), linux.find_disk("data")]
    lines += ["dd if=$disk of=/dev/null bs=128k iflag=direct; dd if=/dev/zero of=$disk bs=128k count=64 oflag=direct"]
    lines += [READ_IMAGE, "dd if=/dev/hwrng of=/dev/null bs=4k count=4", f"echo {DONE.decode()}; read line"]
    machine.disks += [Disk(data, id="data"), linux.script(job, lines)]
    machine.tap, machine.vsock, machine.balloon, machine.pmem = net.TAP, path, True, erofs_image(job)
    machine.virtio_console, machine.name = True, "bench"
    runs, detail = [], ""
    with net.tap(), net.listener((net.HOST, net.PORT)) as tcp, net.vsock_listener(path) as vsock:
        for _ in range(job["runs"]):
            with running(mvm(job["mvm"], machine)) as process:
                for listening in (tcp, vsock):
                    for what, count in STEPS:
                        net.serve(job, process, listening, what, count)
                process.wait_for(DONE)
                time.sleep(SETTLE)
                size, detail = beyond_ram(process, machine)
            runs.append(size)
    name = "memory beyond RAM, all devices in use"
    return [row(name, "MiB", runs, mvm_at_most=6)], [f"{name}:\n{detail}"]


def measure_sharing(job):
    """Two VMs at a time that have read all of an image: what each is charged for it, of what each has of it."""
    machine = linux.machine(job, MEMORY)
    machine.disks += [linux.script(job, [READ_IMAGE, f"echo {DONE.decode()}; read line"])]
    machine.pmem = erofs_image(job)
    runs = []
    for _ in range(job["runs"]):
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(running(mvm(job["mvm"], machine))) for _ in range(2)]
            for process in processes:
                process.wait_for(DONE)
            for process in processes:
                found = [mapping for mapping in mappings(process.pid) if mapping.name == machine.pmem]
                rss, pss = (sum(mapping.fields[key] for mapping in found) for key in ("Rss", "Pss"))
                if rss << 10 < IMAGE_SIZE:
                    raise RuntimeError(f"{rss} KiB of the image are mapped:\n{process.said()}")
                runs.append(pss / rss)
    return [row("PSS of a pmem image against RSS, two VMs", "", runs, mvm_at_most=0.55)], []

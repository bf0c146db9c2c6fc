"""fio in the guest, on a raw image in the host's memory."""

import os
import re

from . import linux, metrics
from .process import in_turns, running
from .report import row
from .vmms import Disk, mvm_commands, qemu

MEMORY = 256  # MiB
IMAGE_SIZE = 256 << 20
SECONDS = 3  # for each kind of access
OPERATIONS = ("read_operations", "write_operations")
BEGINS, DONE = "bench: begins {}", "bench: done {}"
# name, fio's access, block size, depth, unit, and what the throughput is to be of that of mvm before
ACCESSES = [
    ("sequential read", "read", "1m", 8, "MiB/s", 0.97),
    ("sequential write", "write", "1m", 8, "MiB/s", 0.97),
    ("random read", "randread", "4k", 32, "IOPS", 1.05),
    ("random write", "randwrite", "4k", 32, "IOPS", 1.05),
]
# Fields of fio's terse output, version 3, counted from 1: KiB, KiB/s and IOPS of reads, and of writes.
FIELDS = "6,7,8,47,48,49"
# One processor has one column of counts.
INTERRUPTS = "grep virtio /proc/interrupts | tr -s ' ' | cut -d' ' -f3 | tr '\\n' ' '"


def script():
    """What the guest runs."""
    lines = [linux.find_disk("data")]
    for _, access, block, depth, *_ in ACCESSES:
        options = f"--rw={access} --bs={block} --iodepth={depth} --ioengine=io_uring --direct=1 --thread"
        options += f" --time_based --runtime={SECONDS} --size=100% --randrepeat=1 --norandommap"
        fio = f"fio --name=x --filename=$disk {options} --output-format=terse --terse-version=3"
        lines.append(f"echo {access} has had $({INTERRUPTS})")
        lines.append(f"echo {BEGINS.format(access)}")
        # One line each: a console is slow.
        lines.append(f"echo fio {access} $({fio} 2>&1 | tail -n 1 | cut -d';' -f{FIELDS})")
        lines.append(f"echo {access} has $({INTERRUPTS})")
        lines.append(f"echo {DONE.format(access)}")
    return lines


def figures(output, access, unit):
    """The throughput, and the gigabytes that were moved."""
    match = re.search(rf"fio {access} (\d+);(\d+);(\d+);(\d+);(\d+);(\d+)", output)
    if not match:
        raise RuntimeError(f"fio said nothing of {access}:\n{output}")
    read_size, read, read_iops, write_size, write, write_iops = map(int, match.groups())
    throughput = (read + write) / 1024 if unit == "MiB/s" else read_iops + write_iops
    return throughput, (read_size + write_size) * 1024 / 1e9


def interrupts(output, access):
    """How many the guest's virtio devices had meanwhile."""
    had, has = (re.search(rf"{access} {word} ([\d ]+)", output)[1].split() for word in ("has had", "has"))
    return sum(map(int, has)) - sum(map(int, had))


def measure(job):
    metrics.use_directory(job["work"])
    image = os.path.join(job["work"], "data.img")
    linux.random_image(image, IMAGE_SIZE)
    machine = linux.machine(job, MEMORY)
    machine.disks += [Disk(image, id="data"), linux.script(job, script())]
    machine.name = metrics.NAME
    commands = mvm_commands(job, machine) | {"qemu": qemu(machine)}
    names = [*commands, "before"]
    throughput, processor, for_request, for_interrupt = (
        {(vmm, entry[1]): [] for vmm in names for entry in ACCESSES} for _ in range(4)
    )
    for _, vmm, command in in_turns(commands, job["runs"], warm_up=False):
        with running(command) as process:
            for _, access, _, _, unit, _ in ACCESSES:
                process.wait_for(BEGINS.format(access).encode())
                before = process.own_seconds()
                counted = metrics.read(job["work"]) if vmm != "qemu" else None
                process.wait_for(DONE.format(access).encode())
                seconds = process.own_seconds() - before
                output = process.output.decode(errors="replace")
                rate, gigabytes = figures(output, access, unit)
                throughput[vmm, access].append(rate)
                processor[vmm, access].append(seconds / gigabytes)
                if counted:
                    now = metrics.read(job["work"])
                    exits = metrics.device_exits(now) - metrics.device_exits(counted)
                    requests = metrics.total(now, "block", *OPERATIONS) - metrics.total(counted, "block", *OPERATIONS)
                    for_request[vmm, access].append(exits / requests)
                    for_interrupt[vmm, access].append(exits / interrupts(output, access))
    os.unlink(image)


    def compared(figure, unit, runs, access, **aims):
        return row(figure, unit, *(runs.get((vmm, access), []) for vmm in ("mvm", "qemu", "before")), **aims)

    rows = []
    for name, access, block, _, unit, to_before in ACCESSES:
        aims = {"ratio_at_least": 1.1, "before_at_least": to_before}
        rows.append(compared(f"disk, {name}, {block}", unit, throughput, access, **aims))
    for name, access, *_ in ACCESSES:
        aims = {"ratio_at_most": 0.8, "before_at_most": 0.95}
        rows.append(compared(f"processor time of the VMM, {name}", "s/GB", processor, access, **aims))
    for name, access, block, *_ in ACCESSES:
        rows.append(compared(f"exits for each request, {name}", "", for_request, access, before_at_most=0.5))
    # Only what fills the disk's time has an interrupt for each few requests and nothing else.
    for name, access, *_ in ACCESSES[2:]:
        rows.append(compared(f"exits for each interrupt, {name}", "", for_interrupt, access, mvm_at_most=0.05))
    return rows, []

"""fio in the guest, on a raw image in the host's memory."""

import os
import re

from . import linux
from .process import in_turns, running
from .report import row
from .vmms import Disk, mvm, qemu

MEMORY = 256  # MiB
IMAGE_SIZE = 256 << 20
SECONDS = 3  # for each kind of access
BEGINS, DONE = "bench: begins {}", "bench: done {}"
# name, fio's access, block size, depth, unit
ACCESSES = [
    ("sequential read", "read", "1m", 8, "MiB/s"),
    ("sequential write", "write", "1m", 8, "MiB/s"),
    ("random read", "randread", "4k", 32, "IOPS"),
    ("random write", "randwrite", "4k", 32, "IOPS"),
]
# Fields of fio's terse output, version 3, counted from 1: KiB, KiB/s and IOPS of reads, and of writes.
FIELDS = "6,7,8,47,48,49"


def script():
    """What the guest runs."""
    lines = [linux.find_disk("data")]
    for _, access, block, depth, _ in ACCESSES:
        options = f"--rw={access} --bs={block} --iodepth={depth} --ioengine=io_uring --direct=1 --thread"
        options += f" --time_based --runtime={SECONDS} --size=100% --randrepeat=1 --norandommap"
        fio = f"fio --name=x --filename=$disk {options} --output-format=terse --terse-version=3"
        lines.append(f"echo {BEGINS.format(access)}")
        # One line each: a console is slow.
        lines.append(f"echo fio {access} $({fio} 2>&1 | tail -n 1 | cut -d';' -f{FIELDS})")
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


def measure(job):
    image = os.path.join(job["work"], "data.img")
    linux.random_image(image, IMAGE_SIZE)
    machine = linux.machine(job, MEMORY)
    machine.disks += [Disk(image, id="data"), linux.script(job, script())]
    commands = {"mvm": mvm(job["mvm"], machine), "qemu": qemu(machine)}
    throughput, processor = ({(vmm, entry[1]): [] for vmm in commands for entry in ACCESSES} for _ in range(2))
    for _, vmm, command in in_turns(commands, job["runs"], warm_up=False):
        with running(command) as process:
            for _, access, _, _, unit in ACCESSES:
                process.wait_for(BEGINS.format(access).encode())
                before = process.own_seconds()
                process.wait_for(DONE.format(access).encode())
                seconds = process.own_seconds() - before
                rate, gigabytes = figures(process.output.decode(errors="replace"), access, unit)
                throughput[vmm, access].append(rate)
                processor[vmm, access].append(seconds / gigabytes)
    os.unlink(image)
    return [
        row(f"disk, {name}, {block}", unit, throughput["mvm", access], throughput["qemu", access], ratio_at_least=1.1)
        for name, access, block, _, unit in ACCESSES
    ] + [
        row(
            f"processor time of the VMM, {name}",
            "s/GB",
            processor["mvm", access],
            processor["qemu", access],
            ratio_at_most=0.8,
        )
        for name, access, _, _, _ in ACCESSES
    ], []

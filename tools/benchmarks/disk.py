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
DONE = b"bench: done"
# name, fio's access, block size, depth, unit
ACCESSES = [
    ("sequential read", "read", "1m", 8, "MiB/s"),
    ("sequential write", "write", "1m", 8, "MiB/s"),
    ("random read", "randread", "4k", 32, "IOPS"),
    ("random write", "randwrite", "4k", 32, "IOPS"),
]
# Fields of fio's terse output, version 3, counted from 1: KiB/s and IOPS of reads, and of writes.
FIELDS = "7,8,48,49"


def script():
    """What the guest runs, as a disk that it finds by its ID."""
    lines = ["for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = data ] && disk=/dev/${d##*/}; done"]
    for _, access, block, depth, _ in ACCESSES:
        options = f"--rw={access} --bs={block} --iodepth={depth} --ioengine=io_uring --direct=1 --thread"
        options += f" --time_based --runtime={SECONDS} --size=100% --randrepeat=1 --norandommap"
        fio = f"fio --name=x --filename=$disk {options} --output-format=terse --terse-version=3"
        # One line each: a console is slow.
        lines.append(f"echo fio {access} $({fio} 2>&1 | tail -n 1 | cut -d';' -f{FIELDS})")
    lines.append(f"echo {DONE.decode()}; poweroff -f")
    text = "\n".join(lines + ["exit", ""])
    return text.ljust(-(-len(text) // 512) * 512, "\n").encode()


def throughput(output, access, unit):
    match = re.search(rf"fio {access} (\d+);(\d+);(\d+);(\d+)", output)
    if not match:
        raise RuntimeError(f"fio said nothing of {access}:\n{output}")
    read, read_iops, write, write_iops = map(int, match.groups())
    return (read + write) / 1024 if unit == "MiB/s" else read_iops + write_iops


def measure(job):
    image, script_disk = (os.path.join(job["work"], name) for name in ("data.img", "script.img"))
    with open(image, "wb") as file:
        # Blocks that are there: holes would be read from nowhere.
        for _ in range(IMAGE_SIZE >> 20):
            file.write(os.urandom(4096) * 256)
    with open(script_disk, "wb") as file:
        file.write(script())
    machine = linux.machine(job, MEMORY)
    machine.disks += [Disk(image, id="data"), Disk(script_disk, read_only=True, id="script")]
    commands = {"mvm": mvm(job["mvm"], machine), "qemu": qemu(machine)}
    runs = {(vmm, access): [] for vmm in commands for _, access, _, _, _ in ACCESSES}
    for _, vmm, command in in_turns(commands, job["runs"], warm_up=False):
        with running(command) as process:
            process.wait_for(DONE)
            output = process.output.decode(errors="replace")
        for _, access, _, _, unit in ACCESSES:
            runs[vmm, access].append(throughput(output, access, unit))
    os.unlink(image)
    return [
        row(f"disk, {name}, {block}", unit, runs["mvm", access], runs["qemu", access], ratio_at_least=1)
        for name, access, block, _, unit in ACCESSES
    ], []

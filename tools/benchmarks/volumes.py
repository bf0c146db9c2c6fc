"""fio on a volume and on the root of a container, beside the same on a raw disk of a VM of `mvm boot`: all in the host's
memory."""

import os
import re
import subprocess

from . import linux
from .process import in_turns
from .programs import write_root
from .report import row
from .vmms import Disk, mvm_commands

MEMORY = 256  # MiB
SIZE = 192  # MiB that are read and written
IMAGE = "localhost/fio"
VOLUME = "bench"
SECONDS = 3  # for each kind of access
# name, fio's access, block size, depth, unit
ACCESSES = [
    ("sequential read", "read", "1m", 8, "MiB/s"),
    ("sequential write", "write", "1m", 8, "MiB/s"),
    ("random read", "randread", "4k", 32, "IOPS"),
    ("random write", "randwrite", "4k", 32, "IOPS"),
]
# Fields of fio's terse output, version 3, counted from 1: KiB/s and IOPS of reads, and of writes.
FIELDS = "7,8,48,49"


def lines(target):
    """What fio does to `target`, a line of figures for each access."""
    for _, access, block, depth, _ in ACCESSES:
        options = f"--rw={access} --bs={block} --iodepth={depth} --ioengine=io_uring --direct=1 --thread"
        options += f" --time_based --runtime={SECONDS} --size={SIZE}m --randrepeat=1 --norandommap"
        fio = f"fio --name=x --filename={target} {options} --output-format=terse --terse-version=3"
        yield f"echo fio {access} $({fio} 2>&1 | tail -n 1 | cut -d';' -f{FIELDS})"


def figures(output, access, unit):
    match = re.search(rf"fio {access} (\d+);(\d+);(\d+);(\d+)", output)
    if not match:
        raise RuntimeError(f"fio said nothing of {access}:\n{output}")
    read, read_iops, write, write_iops = map(int, match.groups())
    return (read + write) / 1024 if unit == "MiB/s" else read_iops + write_iops


def measure(job):
    os.environ.update(MVM_DATA_DIR=os.path.join(job["work"], "data"), MVM_ASSETS=job["assets"])
    root = os.path.join(job["work"], "fio.tar")
    write_root(job["image"], ["fio"], root)
    load = [job["mvm"], "import", "--change", "ENV PATH=/bin", root, IMAGE]
    subprocess.run(load, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    os.unlink(root)
    raw = os.path.join(job["work"], "data.img")
    linux.random_image(raw, SIZE << 20)
    machine = linux.machine(job, MEMORY)
    machine.disks += [Disk(raw, id="data"), linux.script(job, [linux.find_disk("data"), *lines("$disk")])]
    # The blocks of the file are there before, as those of the disk are.
    def container(path):
        fill = f"dd if=/dev/urandom of={path} bs=1M count={SIZE} conv=fsync 2>/dev/null"
        script = "\n".join([f"[ -e {path} ] || {fill}", *lines(path)])
        run = [job["mvm"], "run", "--rm", "--network", "none", "-m", f"{MEMORY}m", "--cpus", "1"]
        return [*run, "--security-opt", "seccomp=unconfined", "-v", f"{VOLUME}:/data", IMAGE, "sh", "-c", script]

    commands = {"volume": container("/data/file"), "root": container("/file"), "disk": mvm_commands(job, machine)["mvm"]}
    throughput = {(name, entry[1]): [] for name in commands for entry in ACCESSES}
    for counts, name, command in in_turns(commands, job["runs"]):
        run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
        if counts:
            output = run.stdout.decode(errors="replace")
            for _, access, _, _, unit in ACCESSES:
                throughput[name, access].append(figures(output, access, unit))
    return [
        row(
            f"{place}, {name}, {block}; peer: a raw disk",
            unit,
            throughput[place, access],
            throughput["disk", access],
            ratio_at_least=0.9,
        )
        for place in ("volume", "root")
        for name, access, block, _, unit in ACCESSES
    ], []

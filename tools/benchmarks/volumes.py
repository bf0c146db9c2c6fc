"""fio on a volume of a container, beside the same on a raw disk of a VM of `mvm boot`: both in the host's memory."""

import io
import os
import re
import shutil
import subprocess
import tarfile

from . import linux
from .process import in_turns
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


def libraries(program):
    """The files that a program needs, with itself."""
    listed = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [program, *re.findall(r"(/\S+) \(0x", listed)]


def load_image(job):
    """Busybox and fio in one image."""
    with tarfile.open(job["image"]) as archive:
        files = {entry.name.removeprefix("./"): archive.extractfile(entry).read() for entry in archive if entry.isfile()}
    largest = max((content for name, content in files.items() if name.startswith("blobs/")), key=len)
    path = os.path.join(job["work"], "fio.tar")
    with tarfile.open(fileobj=io.BytesIO(largest)) as layer, tarfile.open(path, "w") as out:
        for entry in layer:
            out.addfile(entry, layer.extractfile(entry) if entry.isfile() else None)
        for name in libraries(shutil.which("fio")):
            content = os.path.realpath(name)
            entry = out.gettarinfo(content, arcname=("bin/fio" if name.endswith("/fio") else name.lstrip("/")))
            with open(content, "rb") as file:
                out.addfile(entry, file)
    command = [job["mvm"], "import", "--change", "ENV PATH=/bin", path, IMAGE]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    os.unlink(path)


def figures(output, access, unit):
    match = re.search(rf"fio {access} (\d+);(\d+);(\d+);(\d+)", output)
    if not match:
        raise RuntimeError(f"fio said nothing of {access}:\n{output}")
    read, read_iops, write, write_iops = map(int, match.groups())
    return (read + write) / 1024 if unit == "MiB/s" else read_iops + write_iops


def measure(job):
    os.environ.update(MVM_DATA_DIR=os.path.join(job["work"], "data"), MVM_ASSETS=job["assets"])
    load_image(job)
    raw = os.path.join(job["work"], "data.img")
    linux.random_image(raw, SIZE << 20)
    machine = linux.machine(job, MEMORY)
    machine.disks += [Disk(raw, id="data"), linux.script(job, [linux.find_disk("data"), *lines("$disk")])]
    # The blocks of the file are there before, as those of the disk are.
    fill = f"dd if=/dev/urandom of=/data/file bs=1M count={SIZE} conv=fsync 2>/dev/null"
    script = "\n".join([f"[ -e /data/file ] || {fill}", *lines("/data/file")])
    volume = [job["mvm"], "run", "--rm", "--network", "none", "-m", f"{MEMORY}m", "--cpus", "1"]
    volume += ["--security-opt", "seccomp=unconfined", "-v", f"{VOLUME}:/data", IMAGE, "sh", "-c", script]
    commands = {"volume": volume, "disk": mvm_commands(job, machine)["mvm"]}
    throughput = {(name, entry[1]): [] for name in commands for entry in ACCESSES}
    for counts, name, command in in_turns(commands, job["runs"]):
        run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
        if counts:
            output = run.stdout.decode(errors="replace")
            for _, access, _, _, unit in ACCESSES:
                throughput[name, access].append(figures(output, access, unit))
    return [
        row(
            f"volume, {name}, {block}; peer: a raw disk",
            unit,
            throughput["volume", access],
            throughput["disk", access],
            ratio_at_least=0.9,
        )
        for name, access, block, _, unit in ACCESSES
    ], []

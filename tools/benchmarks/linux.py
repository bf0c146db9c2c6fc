"""The Linux guest: the same kernel, root file system and arguments for both."""

import os
import shutil

from .vmms import Disk, Machine

STARTED = b"init: started"
# `tools/rootfs` makes a small init that says so.
ARGUMENTS = "console={} panic=-1 root=/dev/vda ro"


def machine(job, memory, arguments="quiet", console="ttyS0"):
    """A machine whose files are in the working directory, which is in memory."""
    paths = []
    for source in (job["kernel"], job["rootfs"]):
        path = os.path.join(job["work"], os.path.basename(source))
        if not os.path.exists(path):
            shutil.copyfile(source, path)
        paths.append(path)
    kernel, rootfs = paths
    cmdline = f"{ARGUMENTS.format(console)} {arguments}".strip()
    return Machine(kernel, memory, cmdline, [Disk(rootfs, read_only=True)])


def script(job, lines):
    """A disk that the init of the guest finds by its ID, with the lines that it runs."""
    path = os.path.join(job["work"], "script.img")
    text = "\n".join([*lines, "exit", ""])
    with open(path, "wb") as file:
        file.write(text.ljust(-(-len(text) // 512) * 512, "\n").encode())
    return Disk(path, read_only=True, id="script")


def find_disk(name):
    """A line of a script that sets `disk` to the device with that ID."""
    return f'for d in /sys/block/vd*; do [ "$(cat $d/serial 2>/dev/null)" = {name} ] && disk=/dev/${{d##*/}}; done'


def random_image(path, size):
    """A file of blocks that are there: holes would be read from nowhere."""
    with open(path, "wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(4096) * 256)

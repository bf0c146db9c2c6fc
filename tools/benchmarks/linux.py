"""The Linux guest: the same kernel, root file system and arguments for both."""

import os
import shutil

from .vmms import Disk, Machine

STARTED = b"init: started"
# `tools/rootfs` makes a small init that says so.
ARGUMENTS = "console=ttyS0 panic=-1 root=/dev/vda ro"


def machine(job, memory, arguments="quiet"):
    """A machine whose files are in the working directory, which is in memory."""
    paths = []
    for source in (job["kernel"], job["rootfs"]):
        path = os.path.join(job["work"], os.path.basename(source))
        if not os.path.exists(path):
            shutil.copyfile(source, path)
        paths.append(path)
    kernel, rootfs = paths
    return Machine(kernel, memory, f"{ARGUMENTS} {arguments}".strip(), [Disk(rootfs, read_only=True)])

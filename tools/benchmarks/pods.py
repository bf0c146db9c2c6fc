"""Pods: three containers in one VM beside three VMs."""

import os
import subprocess
import time

from .container_vms import available, proportional
from .process import in_turns
from .report import row

IMAGE = "localhost/busybox"
COUNT = 3
# Of each container, and of all of a pod, so that the VMs have about as much memory as they need.
LIMIT = "30m"
SETTLE = 5  # seconds for a guest to come to rest
POD = "bench"


def mvm(job, *arguments):
    run = subprocess.run([job["mvm"], *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, text=True)
    return run.stdout.strip()


def start(job, *options):
    """Starts the containers, one after the other; their names."""
    names = [f"c{number}" for number in range(COUNT)]
    for name in names:
        mvm(job, "run", "-d", "--name", name, "-m", LIMIT, *options, IMAGE, "sleep", "100000")
    return names


def keepers(job, names):
    pids = [mvm(job, "inspect", "-f", "{{.State.Pid}}", name) for name in names]
    if mvm(job, "pod", "ps", "-q"):
        pids.append(mvm(job, "pod", "inspect", "-f", "{{.Pid}}", POD))
    return [int(pid) for pid in pids]


def in_vms(job):
    return start(job, "--network", "none")


def in_pod(job):
    mvm(job, "pod", "create", "--network", "none", "-m", f"{COUNT * 30}m", POD)
    return start(job, "--pod", POD)


def end(job, names):
    mvm(job, "rm", "--force", *names)
    if mvm(job, "pod", "ps", "-q"):
        mvm(job, "pod", "rm", "--force", POD)


def measure(job):
    os.environ.update(MVM_DATA_DIR=os.path.join(job["work"], "data"), MVM_ASSETS=job["assets"])
    mvm(job, "load", "-i", job["image"])
    ways = {"pod": in_pod, "vms": in_vms}
    took, memory, lost = ({name: [] for name in ways} for _ in range(3))
    for counts, name, way in in_turns(ways, job["runs"]):
        before = available()
        began = time.monotonic()
        names = way(job)
        seconds = time.monotonic() - began
        time.sleep(SETTLE)
        if counts:
            took[name].append(seconds)
            memory[name].append(sum(proportional(pid) for pid in keepers(job, names)))
            lost[name].append(before - available())
        end(job, names)
    return [
        row(f"start of {COUNT} containers in a pod; peer: in VMs of their own", "s", took["pod"], took["vms"], ratio_at_most=0.5),
        row(f"memory of {COUNT} idle containers in a pod; peer: in VMs", "MiB", memory["pod"], memory["vms"]),
        row("the host's available memory, less for them; peer: in VMs", "MiB", lost["pod"], lost["vms"]),
    ], []

"""Containers' VMs by themselves: starts with few and many layers, with a disk for changes and without; memory of idle ones."""

import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import time

from . import linux
from .process import in_turns, running
from .report import row
from .vmms import Disk, mvm_commands

IMAGE = "localhost/busybox"
LAYERS = (1, 20, 127)
FILES = 10  # in each layer
IDLE = 4  # VMs at once, of which the first has the page cache's misses
# With what the kernel and the agent get, a VM of 128 MiB.
LIMIT = "30m"
SETTLE = 5  # seconds for a guest to come to rest
SLOTS = 12
READY = b"ready"


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def layer(number):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for file in range(FILES):
            add(archive, f"srv/{number}/{file}", os.urandom(4096))
    return out.getvalue()


def with_layers(image, count, path):
    """Writes an archive of that image with as many layers, the further ones small; returns its name."""
    with tarfile.open(image) as archive:
        files = {entry.name.removeprefix("./"): archive.extractfile(entry).read() for entry in archive if entry.isfile()}
    name = f"localhost/layers:{count}"
    index = json.loads(files["index.json"])

    def blob(digest):
        return files[f"blobs/{digest.replace(':', '/')}"]

    def put(content):
        digest = hashlib.sha256(content).hexdigest()
        files[f"blobs/sha256/{digest}"] = content
        return {"digest": f"sha256:{digest}", "size": len(content)}

    manifest = json.loads(blob(index["manifests"][0]["digest"]))
    config = json.loads(blob(manifest["config"]["digest"]))
    for number in range(1, count):
        place = put(layer(number))
        manifest["layers"].append({"mediaType": "application/vnd.oci.image.layer.v1.tar", **place})
        config["rootfs"]["diff_ids"].append(place["digest"])
    manifest["config"].update(put(json.dumps(config).encode()))
    index["manifests"][0].update(put(json.dumps(manifest).encode()))
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": name}
    files["index.json"] = json.dumps(index).encode()
    with tarfile.open(path, "w") as archive:
        for file, content in files.items():
            add(archive, file, content)
    return name


def times(commands, runs):
    took = {name: [] for name in commands}
    for counts, name, command in in_turns(commands, runs):
        start = time.monotonic()
        subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
        if counts:
            took[name].append(time.monotonic() - start)
    return took


def measure_starts(job):
    run = [job["mvm"], "run", "--network", "none"]
    commands = {count: [*run, with_layers_loaded(job, count), "true"] for count in LAYERS}
    commands["memory"] = [*run, "--storage-opt", "memory", commands[1][-2], "true"]
    took = times(commands, job["runs"])
    rows = [
        row(f"run of true, {count} layers; peer: 1 layer", "s", took[count], took[1], ratio_at_most=1.1)
        for count in LAYERS[1:]
    ]
    name = "run of true, a disk for changes; peer: in memory"
    return [*rows, row(name, "s", took[1], took["memory"])]


def with_layers_loaded(job, count):
    path = os.path.join(job["work"], "layers.tar")
    name = with_layers(job["image"], count, path)
    subprocess.run([job["mvm"], "load", "-i", path], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    os.unlink(path)
    return name


def proportional(pid):
    """MiB of memory that a process and its children have, where what is shared is divided among those that have it."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        own = int(re.search(r"^Pss:\s+(\d+) kB$", file.read(), re.MULTILINE)[1]) / 1024
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return own + sum(proportional(int(child)) for child in file.read().split())


def available():
    """MiB of the host's memory that is free, or is when it is needed."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return int(re.search(r"^MemAvailable:\s+(\d+) kB$", file.read(), re.MULTILINE)[1]) / 1024


def measure_memory(job, prefix=(), what="idle VM of 128 MiB", at_most=36):
    """What each VM adds to the memory of all."""
    command = [*prefix, job["mvm"], "run", "--network", "none", "-m", LIMIT, IMAGE]
    command += ["sh", "-c", "echo ready; exec sleep 100000"]
    sizes, lost = [], []
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(IDLE):
            before = available()
            processes.append(stack.enter_context(running(command)))
            processes[-1].wait_for(READY)
            time.sleep(SETTLE)
            sizes.append(sum(proportional(process.pid) for process in processes))
            lost.append(before - available())
    further = [after - before for before, after in zip(sizes, sizes[1:])]
    return [
        row(f"memory of each further {what}", "MiB", further, mvm_at_most=at_most),
        row(f"the host's available memory, less for each {what}", "MiB", lost[1:]),
    ]


def measure_slots(job):
    """What disks that a guest does not use cost: time of its boot, memory of its VMM, and of its own."""
    plain, slots = (linux.machine(job, 128) for _ in range(2))
    for machine in (plain, slots):
        machine.disks.append(linux.script(job, ["grep MemFree: /proc/meminfo", "echo seen", "sleep 100000"]))
    for number in range(SLOTS):
        path = os.path.join(job["work"], f"slot{number}")
        with open(path, "wb") as file:
            file.truncate(1 << 20)
        slots.disks.append(Disk(path))
    commands = {name: mvm_commands(job, machine)["mvm"] for name, machine in (("none", plain), ("slots", slots))}
    took, of_process, free = ({name: [] for name in commands} for _ in range(3))
    for counts, name, command in in_turns(commands, job["runs"]):
        with running(command) as process:
            seconds = process.wait_for(linux.STARTED)
            process.wait_for(b"seen")
            memory = int(re.search(rb"MemFree:\s+(\d+) kB", process.output)[1]) / 1024
            time.sleep(SETTLE)
            whole = proportional(process.pid)
        if counts:
            took[name].append(seconds)
            of_process[name].append(whole)
            free[name].append(memory)
    what = f"with {SLOTS} disks of no use; peer: without"
    return [
        row(f"boot {what}", "s", took["slots"], took["none"]),
        row(f"memory of the VMM and its guest {what}", "MiB", of_process["slots"], of_process["none"]),
        row(f"free memory of the guest {what}", "MiB", free["slots"], free["none"]),
    ]


def measure(job):
    os.environ.update(MVM_DATA_DIR=os.path.join(job["work"], "data"), MVM_ASSETS=job["assets"])
    load = [job["mvm"], "load", "-i", job["image"]]
    subprocess.run(load, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return [*measure_starts(job), *measure_memory(job), *measure_slots(job)], []

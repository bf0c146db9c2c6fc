"""Containers beside podman's: a whole run, and what goes through standard output."""

import hashlib
import os
import shutil
import subprocess
import time

from .container_vms import LIMIT, measure_memory
from .process import in_turns
from .report import row

IMAGE = "localhost/busybox"
# MiB of two runs, the difference of which is without start and end.
OUTPUTS = (8, 40)
# Bytes at least of the run whose output is looked at.
LARGE = 1_000_000_000


def commands(job, *arguments, options=()):
    work = job["work"]
    os.environ.update(MVM_DATA_DIR=os.path.join(work, "images"), MVM_ASSETS=job["assets"])
    podman = ["podman", "--root", os.path.join(work, "podman"), "--runroot", os.path.join(work, "podman-run")]
    podman += ["--cgroup-manager", "cgroupfs", "--events-backend", "none"]
    run = ["run", "--rm", "--network", "none", *options]
    return {
        "mvm": [job["mvm"], *run, IMAGE, *arguments],
        "podman": [*podman, *run, "--log-driver", "none", IMAGE, *arguments],
    }, [[job["mvm"], "load", "-i", job["image"]], [*podman, "load", "-i", job["image"]]]


def seconds(command, **options):
    start = time.monotonic()
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True, **options)
    return time.monotonic() - start


def measure(job):
    runs, loads = commands(job, "true")
    for load in loads:
        subprocess.run(load, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    whole, rate = ({"mvm": [], "podman": []} for _ in range(2))
    for counts, name, command in in_turns(runs, job["runs"]):
        took = seconds(command)
        if counts:
            whole[name].append(took)
    runs, _ = commands(job, "head", "-c")
    for counts, name, command in in_turns(runs, max(1, job["runs"] // 2)):
        small, large = (
            seconds([*command, str(size << 20), "/dev/zero"], stdout=subprocess.DEVNULL) for size in OUTPUTS
        )
        if counts:
            rate[name].append((OUTPUTS[1] - OUTPUTS[0]) / (large - small))
    return [
        row("container's run of true; peer: podman", "s", whole["mvm"], whole["podman"], ratio_at_most=0.7),
        row("container's output; peer: podman", "MiB/s", rate["mvm"], rate["podman"], ratio_at_least=1.0),
    ], []


def measure_warm(job):
    """A whole run from a template, beside podman's and one that boots."""
    runs, loads = commands(job, "true")
    warm = ["env", "-u", "MVM_COLD"]
    os.environ["MVM_VIRTIOFSD"] = job["virtiofsd"]
    shared = commands(job, "cat", "/given/file", options=["-v", given(job) + ":/given"])[0]["mvm"]
    runs = {
        "warm": [*warm, *runs["mvm"]],
        "cold": runs["mvm"],
        "podman": runs["podman"],
        "warm, folder": [*warm, *shared],
        "cold, folder": shared,
    }
    build = [job["mvm"], "template", "build", "--network", "none"]
    of_image = ["--rm", IMAGE]
    builds = [[*build, *of_image], [*build, "--folders", *of_image], [*build, "-m", LIMIT, IMAGE]]
    for load in [*loads, *builds]:
        subprocess.run(load, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    whole = {name: [] for name in runs}
    for counts, name, command in in_turns(runs, job["runs"]):
        took = seconds(command, stdout=subprocess.DEVNULL)
        if counts:
            whole[name].append(took)
    what = "run with a folder of the host from a template; peer: mvm that boots"
    return [
        row("run of true from a template; peer: podman", "s", whole["warm"], whole["podman"], ratio_at_most=0.25),
        row("run of true from a template; peer: mvm that boots", "s", whole["warm"], whole["cold"], ratio_at_most=0.35),
        row(what, "s", whole["warm, folder"], whole["cold, folder"], ratio_at_most=0.5),
        *measure_memory(job, warm, "idle VM of 128 MiB from a template", 12),
    ], []


def given(job):
    """A folder with a file."""
    path = os.path.join(job["work"], "given")
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "file"), "w", encoding="ascii") as file:
        file.write("given\n")
    return path


def measure_output(job):
    """A large output, of which each byte counts: the image's own program, again and again."""
    with open(shutil.which("busybox"), "rb") as file:
        content = file.read()
    times = -(-LARGE // len(content))
    script = f"i=0; while [ $i -lt {times} ]; do cat /bin/busybox; i=$((i + 1)); done"
    runs, loads = commands(job, "sh", "-c", script)
    for load in loads:
        subprocess.run(load, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    whole = hashlib.sha256()
    for _ in range(times):
        whole.update(content)
    expected = whole.hexdigest()
    rate = {name: [] for name in runs}
    for _, name, command in in_turns(runs, job["runs"], warm_up=False):
        start = time.monotonic()
        seen = hashlib.sha256()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            while block := process.stdout.read1(1 << 20):
                seen.update(block)
        if process.returncode != 0 or seen.hexdigest() != expected:
            raise RuntimeError(f"{name} ended with {process.returncode}, and its output is {seen.hexdigest()}, not {expected}")
        rate[name].append(times * len(content) / 1e6 / (time.monotonic() - start))
    what = "1 GB of a container's output, checksum compared; peer: podman"
    return [row(what, "MB/s", rate["mvm"], rate["podman"], ratio_at_least=1.0)], []

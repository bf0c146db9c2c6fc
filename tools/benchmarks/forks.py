"""Copies of what runs: what each costs, and how long the first one stands still."""

import glob
import os
import re
import shutil
import subprocess
import time

from . import tiny
from .container_vms import IMAGE, LIMIT, SETTLE, available
from .containers import commands
from .lives import QUIETLY, run
from .report import row

COPIES = 100


def measure_copies(mvm):
    """An idle container's copies, all of one moment and one by one."""
    names = [f"bench-{number}" for number in range(1, COPIES + 1)]
    start = [mvm, "run", "-d", "--network", "none", "-m", LIMIT, "--name", "bench", IMAGE, "sleep", "100000"]
    run(*start, **QUIETLY)
    try:
        time.sleep(SETTLE)
        before, spent, began = available(), os.times(), time.monotonic()
        run(mvm, "fork", "bench", "--count", str(COPIES), "--name", "bench", **QUIETLY)
        took, used = time.monotonic() - began, os.times()
        time.sleep(SETTLE)
        lost = (before - available()) / COPIES
        for name in (names[0], names[-1]):
            run(mvm, "exec", name, "true")
        outside = used.children_user + used.children_system - spent.children_user - spent.children_system
        run(mvm, "rm", "-f", *names, **QUIETLY)
        one = []
        for _ in range(3):
            began = time.monotonic()
            run(mvm, "fork", "bench", "--name", names[0], **QUIETLY)
            one.append(time.monotonic() - began)
            run(mvm, "rm", "-f", names[0], **QUIETLY)
    finally:
        subprocess.run([mvm, "rm", "-f", "bench", *names], stdin=subprocess.DEVNULL, check=False, **QUIETLY)
    count = f"{COPIES} copies of an idle container VM of 128 MiB"
    return [
        row(f"{count}: the host's available memory, less for each", "MiB", [lost], mvm_at_most=3),
        row(f"{count}: time for each", "s", [took / COPIES]),
        row(f"{count}: processor time of the command for each", "ms", [1000 * outside / COPIES]),
        row("fork of a container until the copy's agent has answered", "s", one),
    ]


def measure_pause(job):
    """How long a VM stands still that has used a GiB, in huge pages where the host has them."""
    *_, fills = tiny.write(job["work"])
    place, data = os.path.join(job["work"], "saved"), os.path.join(job["work"], "data")
    options = {"env": os.environ | {"MVM_DATA_DIR": data}, **QUIETLY}
    command = [job["mvm"], "--log-level", "info", "boot", "-d", "--name", "bench", "--kernel", fills]
    run(*command, "--memory", "1G", "--console", "stdio", "--ready", tiny.SAYS.decode(), **options)
    try:
        for _ in range(job["runs"]):
            run(job["mvm"], "snapshot", "bench", place, **options)
            shutil.rmtree(place)
        [log] = glob.glob(os.path.join(data, "instances", "*", "mvm.log"))
        with open(log, encoding="utf-8") as messages:
            pauses = [float(pause) for pause in re.findall(r"the VM stood still for ([0-9.]+) ms", messages.read())]
    finally:
        subprocess.run([job["mvm"], "rm", "-f", "bench"], stdin=subprocess.DEVNULL, check=False, **options)
    return [row("a VM's pause for a snapshot, 1 GiB used", "ms", pauses, mvm_at_most=2)], []


def measure(job):
    _, loads = commands(job, "true")
    for load in loads:
        run(*load, **QUIETLY)
    return measure_copies(job["mvm"]), []

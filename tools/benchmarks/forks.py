"""Copies of what runs: what each costs, and how long the first one stands still."""

import os
import subprocess
import time

from .container_vms import IMAGE, LIMIT, SETTLE, available
from .containers import commands
from .lives import QUIETLY, run
from .report import row

COPIES = 20


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


def measure(job):
    _, loads = commands(job, "true")
    for load in loads:
        run(*load, **QUIETLY)
    return measure_copies(job["mvm"]), []

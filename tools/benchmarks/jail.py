"""What confinement of a VM's process costs: the same tiny guest with and without it."""

import os
import statistics
import time

from . import memory, metrics, tiny
from .process import in_turns, running
from .report import row
from .start import PAUSE, TRACED_RUNS, system_calls
from .vmms import Machine, mvm

MEMORY_RUNS = 5


def differences(runs):
    """Of each pair: the jail's, less that without."""
    return [jailed - free for jailed, free in zip(runs["jailed"], runs["free"])]


def with_and_without(job, kernel):
    command = mvm(job["mvm"], Machine(kernel, memory.MEMORY))
    return {"jailed": [*command, "--jail", "best-effort"], "free": [*command, "--jail", "off"]}


def measure(job):
    ends, idles, *_ = tiny.write(job["work"])
    metrics.use_directory(job["work"])
    commands = with_and_without(job, ends)
    cpu = {name: [] for name in commands}
    for counts, name, command in in_turns(commands, job["runs"]):
        with running(command) as process:
            _, used = process.wait()
        time.sleep(PAUSE)
        if counts:
            cpu[name].append(used * 1e3)
    calls = {name: [system_calls(job, command) for _ in range(TRACED_RUNS)] for name, command in commands.items()}
    rows = [
        row("processor time, start to end; peer: --jail off", "ms", cpu["jailed"], cpu["free"]),
        row("processor time of the jail, by pairs of runs", "ms", differences(cpu), mvm_at_most=1),
        row("system calls, start to end; peer: --jail off", "", calls["jailed"], calls["free"]),
        row(
            "system calls of the jail",
            "",
            [statistics.median(calls["jailed"]) - statistics.median(calls["free"])],
            mvm_at_most=60,
        ),
    ]
    # Only root sees the mappings of a process without dumps.
    if os.geteuid() != 0:
        return rows, ["memory of the jail: it takes root to see"]
    return [*rows, *measure_memory(job, idles)], []


def measure_memory(job, kernel):
    commands = with_and_without(job, kernel)
    runs = {name: [] for name in commands}
    for _, name, command in in_turns(commands, MEMORY_RUNS, warm_up=False):
        with running(command) as process:
            process.wait_for(tiny.SAYS)
            time.sleep(memory.SETTLE)
            size, _ = memory.beyond_ram(process, Machine(kernel, memory.MEMORY))
        runs[name].append(size)
    return [
        row("memory of keeper and VM beyond RAM; peer: --jail off", "MiB", runs["jailed"], runs["free"]),
        row("memory of the jail, by pairs of runs", "MiB", differences(runs), mvm_at_most=0.3),
    ]

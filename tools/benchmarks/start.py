"""From the start of the process to its end, with a guest of a few instructions."""

import os
import re
import subprocess
import time

from . import metrics, tiny
from .process import in_turns, running
from .report import row
from .vmms import Machine, mvm_commands, qemu

MEMORY = 128  # MiB
TRACED_RUNS = 3
# Between runs: the kernel still frees the VM of the last one.
PAUSE = 0.05  # seconds


def system_calls(job, command):
    """How many system calls all threads of a run make."""
    path = os.path.join(job["work"], "strace")
    trace = ["strace", "-f", "-c", "-o", path, "--", *command]
    subprocess.run(trace, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    with open(path, encoding="ascii") as file:
        # % time, seconds, usecs/call, calls, errors where there are any, "total"
        return int(re.search(r"^\s*\S+\s+\S+\s+\S+\s+(\d+)(?:\s+\d+)? total$", file.read(), re.MULTILINE)[1])


def measure(job):
    ends, _, firmware, code, _ = tiny.write(job["work"])
    # In memory, as /run and $XDG_RUNTIME_DIR are under systemd, which a container or a bare CI machine may lack.
    metrics.use_directory(job["work"])
    machine = Machine(ends, MEMORY)
    ours = mvm_commands(job, machine)
    commands = ours | {
        "qemu": qemu(machine),
        "qemu firmware": qemu(machine, firmware),
        "plain": [job["plain_vm"], code, "close"],
        "plain io_uring": [job["plain_vm"], code, "io_uring"],
    }
    first, end, cpu = ({name: [] for name in [*commands, "before"]} for _ in range(3))
    for counts, name, command in in_turns(commands, job["runs"]):
        with running(command) as process:
            said = process.wait_for(tiny.SAYS)
            ended, used = process.wait()
        time.sleep(PAUSE)
        for figures, seconds in ((first, said), (end, ended), (cpu, used)) if counts else ():
            figures[name].append(seconds * 1e3)
    calls = {name: [system_calls(job, command) for _ in range(TRACED_RUNS)] for name, command in ours.items()}

    def compared(figure, runs, peer, **aims):
        return row(figure, "ms", runs["mvm"], runs[peer], runs["before"], **aims)

    return [
        compared("first guest byte", first, "qemu", ratio_at_most=0.2),
        compared("first guest byte; peer: QEMU without a boot loader", first, "qemu firmware"),
        compared("process start to process end", end, "qemu"),
        compared("process start to process end; peer: a plain C program", end, "plain", ratio_at_most=0.2),
        compared("process start to process end; peer: the same, freed by io_uring", end, "plain io_uring"),
        compared("processor time, start to end", cpu, "qemu", mvm_at_most=2.5),
        compared("processor time, start to end; peer: a plain C program", cpu, "plain"),
        row("system calls, start to end", "", calls["mvm"], before=calls.get("before", ()), mvm_at_most=120),
    ], []

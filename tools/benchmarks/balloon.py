"""How soon memory that a guest frees is the host's again."""

import time

from . import linux
from .process import in_turns, running
from .report import row
from .vmms import mvm_commands, qemu

MEMORY = 1536  # MiB
TAKEN = 1 << 30
GIVEN_BACK = 0.95
PATIENCE = 60  # seconds
INTERVAL = 0.1  # seconds between two looks
SCRIPT = [
    "mount -t tmpfs -o size=1100M big /mnt; echo bench: started; read line",
    f"dd if=/dev/zero of=/mnt/file bs=1M count={TAKEN >> 20} 2>/dev/null; echo bench: taken; read line",
    "rm /mnt/file; echo bench: freed; read line",
]


def seconds_until_back(command):
    """From the guest's word that it has freed the memory, until nearly all that it took has left the process."""
    with running(command, takes_input=True) as process:
        process.wait_for(b"bench: started")
        before = process.resident()
        process.type(b"\n")
        process.wait_for(b"bench: taken")
        taken = process.resident() - before
        if taken < TAKEN * 0.9:
            raise RuntimeError(f"the guest took {taken} bytes only")
        process.type(b"\n")
        process.wait_for(b"bench: freed")
        freed = time.monotonic()
        while process.resident() - before > (1 - GIVEN_BACK) * taken:
            if time.monotonic() - freed > PATIENCE:
                raise RuntimeError(f"of {taken} bytes there are {process.resident() - before} after {PATIENCE} s")
            time.sleep(INTERVAL)
        return time.monotonic() - freed


def measure(job):
    machine = linux.machine(job, MEMORY)
    machine.disks += [linux.script(job, SCRIPT)]
    machine.balloon = True
    commands = mvm_commands(job, machine) | {"qemu": qemu(machine)}
    runs = {name: [] for name in [*commands, "before"]}
    for _, vmm, command in in_turns(commands, job["runs"], warm_up=False):
        runs[vmm].append(seconds_until_back(command))
    name = "95% of 1 GiB freed is the host's again"
    return [row(name, "s", runs["mvm"], runs["qemu"], runs["before"], mvm_at_most=10)], []

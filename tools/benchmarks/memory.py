"""The memory that a VMM takes beyond its guest's RAM: PSS of all mappings that are not guest RAM."""

import os
import re
import time
from dataclasses import dataclass

from . import linux, tiny
from .process import in_turns, running
from .report import row
from .vmms import Machine, mvm_commands, qemu

MEMORY = 128  # MiB
SETTLE = 2  # seconds for the guest to come to rest
SHOWN = 15  # mappings in the verbose output


@dataclass
class Mapping:
    """One of /proc/PID/smaps."""

    start: int
    end: int
    permissions: str
    name: str
    fields: dict  # KiB

    def describe(self):
        sizes = [(self.end - self.start) >> 10] + [self.fields[key] for key in ("Rss", "Pss", "Private_Dirty")]
        return "".join(f"{size:>9}" for size in sizes) + f"  {self.permissions} {self.name or 'anonymous'}"


def mappings(pid):
    found = []
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+\s*(.*)$", line):
                found.append(Mapping(int(match[1], 16), int(match[2], 16), match[3], match[4], {}))
            elif match := re.match(r"(\w+):\s+(\d+) kB$", line):
                found[-1].fields[match[1]] = int(match[2])
    return found


def guest_ram(all_mappings, size, kernel):
    """The neighbours that have `size` bytes together: RAM, and what of the kernel's file is mapped into it."""
    candidates = [
        mapping
        for mapping in all_mappings
        if mapping.permissions.startswith("rw") and (not mapping.name or mapping.name == os.path.realpath(kernel))
    ]
    for first, _ in enumerate(candidates):
        together = []
        for mapping in candidates[first:]:
            if together and mapping.start != together[-1].end:
                break
            together.append(mapping)
            if mapping.end - together[0].start >= size:
                break
        if together[-1].end - together[0].start == size:
            return together
    raise RuntimeError("the guest's RAM is not among the mappings")


def beyond_ram(process, machine):
    """MiB of PSS, and a table of the largest mappings."""
    found = [mapping for pid in process.processes() for mapping in mappings(pid)]
    ram = guest_ram(found, machine.memory << 20, machine.kernel)
    # Persistent memory is the guest's too, and the page cache's.
    rest = [mapping for mapping in found if mapping not in ram and (not machine.pmem or mapping.name != machine.pmem)]
    rest.sort(key=lambda mapping: -mapping.fields["Pss"])
    total = sum(mapping.fields["Pss"] for mapping in rest)
    lines = [f"{'KiB: size':>9}{'RSS':>9}{'PSS':>9}{'dirty':>9}", *(m.describe() for m in rest[:SHOWN])]
    return total / 1024, "\n".join([*lines, f"{total:>27}           all of {len(rest)} mappings"])


def measure(job, machine, marker, name):
    """The row, and what the memory of the last run is made of."""
    commands = mvm_commands(job, machine) | {"QEMU": qemu(machine)}
    runs = {name: [] for name in commands}
    details = {}
    for _, vmm, command in in_turns(commands, job["runs"], warm_up=False):
        with running(command) as process:
            process.wait_for(marker)
            time.sleep(SETTLE)
            size, details[vmm] = beyond_ram(process, machine)
        runs[vmm].append(size)
    notes = [f"{name}, {vmm}:\n{detail}" for vmm, detail in details.items()]
    return [row(name, "MiB", runs["mvm"], runs["QEMU"], runs.get("before", ()), mvm_at_most=3)], notes


def measure_tiny(job):
    _, idles, *_ = tiny.write(job["work"])
    return measure(job, Machine(idles, MEMORY), tiny.SAYS, "memory beyond RAM, halted guest")


def measure_linux(job):
    return measure(job, linux.machine(job, MEMORY), linux.STARTED, "memory beyond RAM, idle Linux")

"""From the start of the process to the guest's init."""

from . import linux
from .process import in_turns, running
from .report import row
from .vmms import mvm_commands, qemu

MEMORY = 256  # MiB


def run_in_turns(job, machine, runs):
    commands = mvm_commands(job, machine) | {"qemu": qemu(machine)}
    times = {name: [] for name in [*commands, "before"]}
    for counts, name, command in in_turns(commands, runs):
        with running(command) as process:
            seconds = process.wait_for(linux.STARTED)
        if counts:
            times[name].append(seconds)
    return times


def measure(job):
    quiet = run_in_turns(job, linux.machine(job, MEMORY), job["runs"])
    verbose = run_in_turns(job, linux.machine(job, MEMORY, ""), 1)
    return [
        row("boot to init, quiet", "s", quiet["mvm"], quiet["qemu"], quiet["before"], ratio_at_most=0.55),
        row("boot to init, messages on the console", "s", verbose["mvm"], verbose["qemu"], verbose["before"]),
    ], []

"""From the start of the process to the guest's first instruction, with a guest of a few instructions."""

from . import tiny
from .process import in_turns, running
from .report import row
from .vmms import Machine, mvm, qemu

MEMORY = 128  # MiB


def measure(job):
    ends, _, firmware = tiny.write(job["work"])
    machine = Machine(ends, MEMORY)
    commands = {
        "mvm": mvm(job["mvm"], machine),
        "qemu": qemu(machine),
        "qemu firmware": qemu(machine, firmware),
    }
    first, end, cpu = ({name: [] for name in commands} for _ in range(3))
    for counts, name, command in in_turns(commands, job["runs"]):
        with running(command) as process:
            said = process.wait_for(tiny.SAYS)
            ended, used = process.wait()
        for figures, seconds in ((first, said), (end, ended), (cpu, used)) if counts else ():
            figures[name].append(seconds * 1e3)
    return [
        row("first guest byte", "ms", first["mvm"], first["qemu"], ratio_at_most=0.2),
        row("first guest byte, QEMU without a boot loader", "ms", first["mvm"], first["qemu firmware"]),
        row("process start to process end", "ms", end["mvm"], end["qemu"]),
        row("processor time, start to end", "ms", cpu["mvm"], cpu["qemu"], mvm_at_most=2),
    ], []

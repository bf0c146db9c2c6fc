"""The two programs that are compared, as command lines for the same virtual machine."""

import subprocess
from dataclasses import dataclass, field

QEMU = "qemu-system-x86_64"
# Without the RTC, Linux waits for it. With the PIT and the PIC it boots no faster.
MACHINE = "microvm,acpi=on,rtc=on,pit=off,pic=off,isa-serial=on,auto-kernel-cmdline=off"
# Some hosts' KVM offers this feature and then refuses its register.
PROCESSOR = "host,-arch-capabilities"
# Where a tiny guest ends QEMU; mvm ends on its reset register.
DEBUG_EXIT_PORT = 0x501


@dataclass
class Disk:
    """A raw image."""

    path: str
    read_only: bool = False
    id: str = ""


@dataclass
class Machine:
    """A virtual machine with one processor."""

    kernel: str
    memory: int  # MiB
    cmdline: str = ""
    disks: list = field(default_factory=list)


def mvm(program, machine):
    command = [program, "boot", "--kernel", machine.kernel, "--memory", f"{machine.memory}M"]
    command += ["--cmdline", machine.cmdline]
    for disk in machine.disks:
        options = ",readonly" if disk.read_only else ""
        options += f",id={disk.id}" if disk.id else ""
        command += ["--disk", disk.path + options]
    return command


def qemu(machine, firmware=None):
    command = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-monitor", "none"]
    command += ["-machine", MACHINE, "-accel", "kvm", "-cpu", PROCESSOR, "-smp", "1", "-m", f"{machine.memory}M"]
    command += ["-serial", "stdio", "-device", f"isa-debug-exit,iobase={DEBUG_EXIT_PORT:#x},iosize=1"]
    if firmware:
        return command + ["-bios", firmware]
    command += ["-kernel", machine.kernel]
    if machine.cmdline:
        command += ["-append", machine.cmdline]
    command += ["-device", "virtio-rng-device"]
    for number, disk in enumerate(machine.disks):
        options = ",readonly=on" if disk.read_only else ""
        # As mvm: through the host's page cache, by io_uring.
        drive = f"if=none,id=d{number},file={disk.path},format=raw,cache=writeback,aio=io_uring"
        command += ["-drive", drive + options]
        command += ["-device", f"virtio-blk-device,drive=d{number}" + (f",serial={disk.id}" if disk.id else "")]
    return command


def qemu_version():
    result = subprocess.run([QEMU, "--version"], stdout=subprocess.PIPE, text=True, check=False)
    return result.stdout.splitlines()[0].split(" (")[0].removeprefix("QEMU emulator version ")

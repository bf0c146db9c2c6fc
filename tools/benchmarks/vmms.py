"""The programs that are compared, as command lines for the same virtual machine."""

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
    tap: str = ""
    balloon: bool = False
    # Of mvm only: the path of its vsock, an image, hvc0 in place of the serial port, and a name for its control socket.
    vsock: str = ""
    pmem: str = ""
    virtio_console: bool = False
    name: str = ""


def mvm(program, machine):
    command = [program, "boot", "--kernel", machine.kernel, "--memory", f"{machine.memory}M"]
    command += ["--cmdline", machine.cmdline]
    for disk in machine.disks:
        options = ",readonly" if disk.read_only else ""
        options += f",id={disk.id}" if disk.id else ""
        command += ["--disk", disk.path + options]
    command += ["--net", f"tap={machine.tap}"] if machine.tap else []
    command += ["--balloon"] if machine.balloon else []
    command += ["--vsock", machine.vsock] if machine.vsock else []
    command += ["--pmem", f"{machine.pmem},readonly"] if machine.pmem else []
    command += ["--console", "virtio"] if machine.virtio_console else []
    command += ["--name", machine.name] if machine.name else []
    return command


def mvm_commands(job, machine):
    """mvm, and mvm before where that is measured too."""
    return {name: mvm(job[name], machine) for name in ("mvm", "before") if job.get(name)}


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
    if machine.tap:
        # As mvm: without vhost. The checksum and segment offloads are on for both.
        command += ["-netdev", f"tap,id=n0,ifname={machine.tap},script=no,downscript=no,vhost=off"]
        command += ["-device", "virtio-net-device,netdev=n0"]
    if machine.balloon:
        command += ["-device", "virtio-balloon-device,free-page-reporting=on"]
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

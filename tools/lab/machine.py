"""One run of the lab: QEMU and virtiofsd, from their start to their end."""

import os
import queue
import re
import resource
import secrets
import shutil
import socket
import subprocess
import time

from lab.common import LAB, TOOLS, Failure, Stopped, memory_size, output_of, say
from lab.image import initramfs
from lab.job import job
from lab.streams import collect, control, events, nudge, pass_input, pass_output, start_thread, watch, write_all

QEMU = "qemu-system-x86_64"
# What QEMU and the kernel complain of in each start.
NOISE = ["TCG doesn't support requested feature", "PCI: Fatal: No config space access function found"]
CONSOLE_LINES = 25  # shown when the lab fails
START_LIMIT = 300  # seconds; a start takes a few
SILENCE_LIMIT = 90  # seconds

KERNEL_PARAMETERS = [
    "console=ttyS0",
    "loglevel=4",  # warnings: what is printed costs time
    "panic=-1",  # reboot, which ends QEMU
    "reboot=t",
    "mitigations=off",
    "audit=0",
    "edd=off",
    "nokaslr",
    "no_timer_check",
    "cryptomgr.notests",
    "random.trust_cpu=on",
    "rcupdate.rcu_expedited=1",
    # The time stamp counter is the host's. Where the host is busy, checks of it against other clocks fail.
    "tsc=reliable",
]


def clock_parameters():
    """What the kernel would measure about the time stamp counter, in a time that depends on the host's load."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        cpuinfo = file.read()
    bogomips = re.search(r"^bogomips\s*:\s*([\d.]+)$", cpuinfo, re.MULTILINE)
    # With a constant counter, Linux derives this figure from its frequency.
    if not bogomips or "constant_tsc" not in cpuinfo:
        return []
    khz = float(bogomips[1]) * 500
    return [f"tsc_early_khz={khz:.0f}", f"lpj={khz * 1000 / 250:.0f}"]


class Lab:
    def __init__(self, options):
        self.options = options
        self.processes = []
        self.console = bytearray()
        self.messages = bytearray()
        self.collectors = []
        self.ports = {}

    def spawn(self, name, command, descriptors):
        # Neither a terminal's signals nor a kill of this process leave the others behind.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL"] + command,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        )
        self.processes.append(process)
        start_thread(watch, process, name)
        self.collectors.append(start_thread(collect, process.stderr.read1, self.messages, self.options.console))

    def start(self):
        kernel = output_of(os.path.join(LAB, "debian-kernel"), self.options.kernel)
        virtiofsd = output_of(os.path.join(LAB, "virtiofsd"))
        missing = [p for c, p in ((QEMU, "qemu-system-x86"), ("busybox", "busybox-static")) if not shutil.which(c)]
        if missing:
            subprocess.run([os.path.join(TOOLS, "need")] + missing, stdout=2, check=True)
        with open(os.path.join(kernel, "release"), encoding="ascii") as file:
            self.release = file.read().strip()
        common = initramfs(kernel, self.release, shutil.which("busybox"))

        # All files and sockets of a run are descriptors without a name: there is nothing to clean up.
        mark = "\x1e" + secrets.token_hex(16)
        stdin = not os.isatty(0) and not os.path.samestat(os.fstat(0), os.stat("/dev/null"))
        initrd = os.memfd_create("initrd", 0)
        with open(common, "rb") as file:
            write_all(initrd, file.read() + job(self.options, kernel, mark, stdin))

        ends = {}
        ours = {}
        for name in ("stdin", "stdout", "stderr", "control", "console"):
            ours[name], ends[name] = socket.socketpair()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("")  # the kernel chooses a name that is not in the file system
        listener.listen()
        ends["fs"] = socket.socket(socket.AF_UNIX)
        ends["fs"].connect(listener.getsockname())

        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        self.began = time.monotonic()
        self.spawn(
            "virtiofsd",
            [virtiofsd, f"--fd={listener.fileno()}", "--shared-dir=/", "--sandbox=none", "--announce-submounts"]
            + ["--cache=always", "--xattr", "--allow-direct-io", "--inode-file-handles=never", "--rlimit-nofile=0"]
            + ["--log-level=error"],
            [listener.fileno()],
        )
        command = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-monitor", "none"]
        command += ["-machine", "microvm,pcie=on,rtc=on,memory-backend=memory"]
        # No processor has AVX without XSAVE, and programs that find AVX use it.
        model = "EPYC,+svm,+npt,-xsave,-avx,-avx2,-f16c,-fma"
        command += ["-accel", "tcg,thread=multi,tb-size=1024", "-cpu", model]
        command += ["-smp", str(self.options.cpus), "-m", self.options.memory]
        command += ["-object", f"memory-backend-memfd,id=memory,size={self.options.memory},share=on"]
        command += ["-kernel", os.path.join(kernel, "vmlinuz"), "-initrd", f"/proc/self/fd/{initrd}"]
        command += ["-append", " ".join(KERNEL_PARAMETERS + clock_parameters())]
        for name, end in ends.items():
            command += ["-chardev", f"socket,id={name},fd={end.fileno()}"]
        command += ["-serial", "chardev:console"]
        command += ["-device", "virtio-serial-pci"]  # first, as the guest's names count from there
        for number, name in enumerate(("stdin", "stdout", "stderr", "control"), 1):
            command += ["-device", f"virtserialport,chardev={name},nr={number},name={name}"]
        command += ["-device", "vhost-user-fs-pci,chardev=fs,tag=host,queue-size=1024", "-device", "virtio-rng-pci"]
        self.spawn("QEMU", command, [initrd] + [end.fileno() for end in ends.values()])
        for descriptor in [listener, *ends.values()]:
            descriptor.close()
        os.close(initrd)

        self.ports = ours  # to close one early would have QEMU drop what it has not read
        self.collectors.append(start_thread(collect, ours["console"].recv, self.console, self.options.console))
        start_thread(pass_output, ours["stdout"], 1, mark.encode())
        start_thread(pass_output, ours["stderr"], 2, mark.encode())
        start_thread(control, ours["control"])
        if stdin:
            start_thread(pass_input, ours["stdin"])

    def wait(self):
        """Returns the command's exit code, or raises."""
        options = self.options
        ready = False
        beat = self.began
        status = None
        ended = 0
        while status is None or ended < 2:
            # What comes first: the end of the caller's patience, or no sign of life for too long.
            over = self.began + options.timeout if options.timeout else float("inf")
            dead = beat + SILENCE_LIMIT if ready else self.began + START_LIMIT
            try:
                event, value = events.get(timeout=max(0, min(over, dead) - time.monotonic()))
            except queue.Empty:
                if over <= dead:
                    say(f"killed after {options.timeout:g} s")
                    return 124
                if not ready:
                    raise Failure(f"not ready after {START_LIMIT} s") from None
                raise Failure(f"the lab hangs: no sign of life for {SILENCE_LIMIT} s") from None
            beat = time.monotonic()
            if event == "ready":
                ready = True
                start_thread(nudge, self.ports["control"])
                took = time.monotonic() - self.began
                size = f"{memory_size(options.memory) >> 20} MiB"
                say(f"ready in {took:.1f} s ({options.cpus} CPUs, {size}, kernel {self.release})")
            elif event == "end":
                ended += 1
            elif event == "exit":
                status = int(value)
            elif event == "signal":
                raise Stopped(value)
            elif event == "fail":
                raise Failure(value)
        return status

    def kill(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def explain(self, why):
        """Says why the lab failed, with the end of the console and of QEMU's messages."""
        for thread in self.collectors:
            thread.join(1)
        lines = (self.console + b"\n" + self.messages).decode(errors="replace").splitlines()
        lines = [line.rstrip() for line in lines if line and not any(noise in line for noise in NOISE)]
        start = max(0, len(lines) - CONSOLE_LINES)
        for number, line in enumerate(lines):
            if "Kernel panic" in line:
                # What led to it is worth more than the registers after it.
                why = "the lab's kernel panicked: " + re.sub(r".*not syncing: ", "", line)
                start = min(start, max(0, number - 5))
                break
        say(why)
        for line in lines[start : start + CONSOLE_LINES]:
            os.write(2, f"  | {line}\n".encode())

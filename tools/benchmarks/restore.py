"""VMs that go on from where they were saved: until their guests answer, and how often these leave their processors for pages."""

import glob
import json
import os
import shutil
import socket
import subprocess

from . import linux
from .containers import IMAGE, commands
from .lives import QUIETLY, run
from .process import in_turns, running
from .report import row
from .vmms import mvm, qemu

MEMORY = 256  # MiB
ANSWERS = ["echo waiting", 'while read -r word; do echo "answer=$word."; done']
DEBUG = "/sys/kernel/debug"


class Monitor:
    """QEMU's, on a socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(120)
        self.socket.connect(path)
        self.lines = self.socket.makefile("r", encoding="utf-8")
        self.lines.readline()
        self.does("qmp_capabilities")

    def does(self, command, **arguments):
        """What it answers to a command; events are passed over."""
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while "event" in (answer := json.loads(self.lines.readline())):
            pass
        return answer["return"]


def save_mvm(job, machine, place):
    machine.name = "bench-saved"
    with running(mvm(job["mvm"], machine)) as process:
        process.wait_for(b"waiting")
        run(job["mvm"], "snapshot", machine.name, place, **QUIETLY)


def save_qemu(machine, place, monitor):
    with running([*qemu(machine), "-qmp", f"unix:{monitor},server=on,wait=off"]) as process:
        process.wait_for(b"waiting")
        control = Monitor(monitor)
        control.does("migrate", uri=f"exec:cat >{place}")
        while (status := control.does("query-migrate")["status"]) != "completed":
            if status in ("failed", "cancelled"):
                raise RuntimeError(f"QEMU's migration to a file: {status}")


def measure(job):
    """Both go on from files in memory."""
    at = {name: os.path.join(job["work"], name) for name in ("mvm.snapshot", "qemu.saved", "qmp")}
    machine = linux.machine(job, MEMORY)
    machine.disks.append(linux.script(job, ANSWERS))
    save_qemu(machine, at["qemu.saved"], at["qmp"])
    save_mvm(job, machine, at["mvm.snapshot"])
    goes_on = {
        "mvm": [job["mvm"], "restore", at["mvm.snapshot"]],
        "qemu": [*qemu(machine), "-incoming", f"exec:cat {at['qemu.saved']}"],
    }
    times = {name: [] for name in goes_on}
    for counts, name, command in in_turns(goes_on, job["runs"]):
        with running(command, takes_input=True) as process:
            process.type(b"word\n")
            seconds = process.wait_for(b"answer=word.")
        if counts:
            times[name].append(seconds)
    what = "restore until the guest answers; peer: QEMU -incoming"
    return [row(what, "s", times["mvm"], times["qemu"], ratio_at_most=0.3)], []


def faults():
    """How often the guest of the only VM has left its processor for a page."""
    [path] = glob.glob(f"{DEBUG}/kvm/*/pf_taken")
    with open(path, encoding="ascii") as file:
        return int(file.read())


def measure_faults(job):
    """Of a container's VM from its template until the container has started, with and without what is known to be used."""
    if not os.path.isdir(f"{DEBUG}/kvm"):
        run("mount", "-t", "debugfs", "none", DEBUG)
    _, loads = commands(job, "true")
    run(*loads[0], **QUIETLY)
    run(job["mvm"], "template", "build", "--network", "none", IMAGE, **QUIETLY)
    [touched] = glob.glob(os.path.join(os.environ["MVM_DATA_DIR"], "templates", "*none-*", "touched"))
    away = os.path.join(job["work"], "touched")
    start = ["env", "-u", "MVM_COLD", job["mvm"], "run", "-d", "--network", "none", "--name", "bench", IMAGE, "sleep", "100000"]
    counted = {"prefetch": [], "lazy": []}
    for _, name, command in in_turns({"prefetch": start, "lazy": start}, job["runs"]):
        if name == "lazy":
            shutil.move(touched, away)
        try:
            run(*command, **QUIETLY)
            counted[name].append(faults())
        finally:
            if name == "lazy":
                shutil.move(away, touched)
            subprocess.run([job["mvm"], "rm", "-f", "bench"], stdin=subprocess.DEVNULL, check=False, **QUIETLY)
    what = "page faults of the guest until a warm container has started; peer: without prefetch"
    return [row(what, "", counted["prefetch"], counted["lazy"], ratio_at_most=0.3)], []

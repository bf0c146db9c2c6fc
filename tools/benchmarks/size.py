"""How large the program is, and how many crates it is made of."""

import os
import re
import shutil
import subprocess

from .report import row
from .vmms import QEMU


def with_libraries(program):
    """Bytes of a program and of the shared libraries that it is linked with."""
    # Of a static program, ldd says on standard error that it has nothing to list.
    result = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    files = {os.path.realpath(path) for path in re.findall(r"(/\S+) \(0x", result.stdout)}
    return sum(os.path.getsize(path) for path in files | {os.path.realpath(program)})


def crates(root):
    command = ["cargo", "tree", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"]
    command += ["--package", "mvm"]
    result = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return len({line.removesuffix(" (*)") for line in result.stdout.splitlines() if line.strip()})


def measure(job):
    programs = [job["mvm"], shutil.which(QEMU), *filter(None, [job.get("before")])]
    sizes = [with_libraries(program) / 1e6 for program in programs]
    return [
        row("program and its libraries", "MB", sizes[:1], sizes[1:2], sizes[2:], mvm_at_most=10),
        row("crates in it", "", [crates(job["root"])]),
    ], []

"""Containers that run: further commands beside podman's, a tree of files in a folder of the host, and what other commands
take while a VM does not react."""

import contextlib
import os
import signal
import subprocess

from .containers import IMAGE, commands, seconds
from .process import in_turns
from .programs import write_root
from .report import row

EXECS = 5  # in each run
# Ends on SIGTERM, so that `stop` does not wait for it.
SLEEPER = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"
TOOLS = "localhost/tools"
FOLDERS, FILES = 100, 100
# A working tree of a repository in a folder of the host, what is made of each of its files, and its end.
STEPS = {
    "git clone": "git clone -q /tree/repository /tree/clone",
    "build": "cd /tree/clone; for d in */; do cat $d* > $d/all.o || exit; done; git status --porcelain | wc -l",
    "rm -rf": "rm -rf /tree/clone",
}
QUIETLY = {"stdout": subprocess.DEVNULL}


def run(*command, **options):
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=True, **options)


def repository(path):
    """One of FOLDERS times FILES files, in a single commit."""
    for folder in range(FOLDERS):
        os.makedirs(os.path.join(path, str(folder)))
        for file in range(FILES):
            with open(os.path.join(path, str(folder), f"{file}.c"), "w", encoding="ascii") as out:
                out.write("".join(f"int f{folder}_{file}_{line}(void);\n" for line in range(32)))
    git = ["git", "-C", path, "-c", "user.name=x", "-c", "user.email=x@y", "-c", "gc.auto=0"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        run(*git, *arguments, **QUIETLY)


@contextlib.contextmanager
def containers(programs, *arguments):
    """A container of each, called `bench`, that is gone at the end of the block."""
    try:
        for program in programs.values():
            run(*program, "run", "-d", "--name", "bench", "--network", "none", *arguments, **QUIETLY)
        yield
    finally:
        for program in programs.values():
            subprocess.run([*program, "rm", "-f", "bench"], stdin=subprocess.DEVNULL, check=False, **QUIETLY)


def measure_execs(programs, runs):
    took = {name: [] for name in programs}
    with containers(programs, IMAGE, "sh", "-c", SLEEPER):
        for counts, name, program in in_turns(programs, runs):
            spent = [seconds([*program, "exec", "bench", "true"]) for _ in range(EXECS)]
            if counts:
                took[name] += spent
    return [row("exec of true in a container; peer: podman", "s", took["mvm"], took["podman"], ratio_at_most=0.2)]


@contextlib.contextmanager
def file_system(work):
    """A folder on an ext4 of its own. What is deleted from a directory of tmpfs while a FUSE server reads it hides other
    entries from the server before Linux 6.6, and `rm -rf` fails."""
    image, folder = os.path.join(work, "tree.ext4"), os.path.join(work, "tree")
    run("truncate", "--size", "1G", image)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    os.mkdir(folder)
    run("mount", "-o", "loop", image, folder)
    try:
        yield folder
    finally:
        run("umount", folder)
        os.remove(image)


def measure_tree(job, programs, runs):
    """A tree of files in a folder of the host."""
    with file_system(job["work"]) as tree:
        return measure_tree_in(tree, job, programs, runs)


def measure_tree_in(tree, job, programs, runs):
    root = os.path.join(job["work"], "tools.tar")
    repository(os.path.join(tree, "repository"))
    write_root(job["image"], ["git"], root)
    for program in programs.values():
        run(*program, "import", "--change", "ENV PATH=/bin", root, TOOLS, **QUIETLY)
    took = {(name, step): [] for name in programs for step in STEPS}
    # git's own name for the command that it runs for the other end, and no question whose folder that is.
    prepare = "ln -s git /bin/git-upload-pack; git config --system safe.directory '*'"
    options = ["-v", f"{tree}:/tree", "-e", "HOME=/root", "-e", "GIT_CONFIG_SYSTEM=/gitconfig"]
    with containers(programs, *options, TOOLS, "sh", "-c", SLEEPER):
        for program in programs.values():
            run(*program, "exec", "bench", "sh", "-c", prepare)
        for counts, name, program in in_turns(programs, runs, warm_up=False):
            for step, script in STEPS.items():
                spent = seconds([*program, "exec", "bench", "sh", "-c", script], **QUIETLY)
                if counts:
                    took[name, step].append(spent)
    count = FOLDERS * FILES
    return [
        row(f"{step} of {count} files in a folder of the host; peer: podman", "s", took["mvm", step], took["podman", step])
        for step in STEPS
    ]


def measure_stopped(mvm, runs):
    """Other commands while a VM's process is stopped."""
    took = {"ps": [], "stats": [], "stop": []}
    vms = []
    start = [mvm, "run", "-d", "--network", "none", "-m", "30m", "--name"]
    try:
        run(*start, "stuck", IMAGE, "sleep", "100000", **QUIETLY)
        pid = run(mvm, "inspect", "-f", "{{.State.Pid}}", "stuck", stdout=subprocess.PIPE, text=True).stdout
        vms = run("pgrep", "-P", pid.strip(), stdout=subprocess.PIPE, text=True).stdout.split()
        for vm in vms:
            os.kill(int(vm), signal.SIGSTOP)
        for _ in range(runs):
            run(*start, "other", IMAGE, "sh", "-c", SLEEPER, **QUIETLY)
            took["ps"].append(seconds([mvm, "ps"], **QUIETLY))
            took["stats"].append(seconds([mvm, "stats", "--no-stream"], **QUIETLY))
            took["stop"].append(seconds([mvm, "stop", "-t", "1", "other"], **QUIETLY))
            run(mvm, "rm", "other", **QUIETLY)
    finally:
        for vm in vms:
            os.kill(int(vm), signal.SIGCONT)
        subprocess.run([mvm, "rm", "-f", "stuck", "other"], stdin=subprocess.DEVNULL, check=False, **QUIETLY)
    words = {"ps": "ps", "stats": "stats --no-stream", "stop": "stop -t 1 of another"}
    return [row(f"{words[name]} beside a VM that is stopped", "s", spent, mvm_at_most=1) for name, spent in took.items()]


def loaded(job):
    """How each program is called, with the image in its store."""
    runs, loads = commands(job, "true")
    for load in loads:
        run(*load, **QUIETLY)
    return {name: command[: command.index("run")] for name, command in runs.items()}


def measure(job):
    programs = loaded(job)
    return measure_execs(programs, job["runs"]) + measure_stopped(job["mvm"], job["runs"]), []


def measure_folder(job):
    os.environ["MVM_VIRTIOFSD"] = job["virtiofsd"]
    return measure_tree(job, loaded(job), job["runs"]), []

"""A VMM's process: started, watched for what its guest says, and measured."""

import contextlib
import os
import select
import shutil
import signal
import time

LIMIT = 300  # seconds for a guest to say what is waited for


class Process:
    """Its guest's console is its standard output, and its standard input where it takes any."""

    def __init__(self, command, takes_input=False):
        self.command = command
        self.output = b""
        read, write = os.pipe()
        # Descriptors of Python's are closed in a new program, but for those that dup2 makes.
        typed, self.input = os.pipe() if takes_input else (os.open(os.devnull, os.O_RDONLY), None)
        actions = [
            (os.POSIX_SPAWN_DUP2, typed, 0),
            (os.POSIX_SPAWN_DUP2, write, 1),
        ]
        program = shutil.which(command[0])
        self.started = time.monotonic()
        self.pid = os.posix_spawn(program, command, os.environ, file_actions=actions)
        os.close(write)
        os.close(typed)
        self.pipe = read

    def wait_for(self, text):
        """Seconds from the start until the guest has written `text`."""
        while text not in self.output:
            ready, _, _ = select.select([self.pipe], [], [], LIMIT)
            data = os.read(self.pipe, 1 << 16) if ready else b""
            now = time.monotonic()
            if not data:
                raise RuntimeError(f"no {text.decode()!r} from {' '.join(self.command)}:\n{self.said()}")
            self.output += data
        return now - self.started

    def said(self):
        """The last that the guest wrote, what has not been waited for included."""
        while select.select([self.pipe], [], [], 0)[0] and (data := os.read(self.pipe, 1 << 16)):
            self.output += data
        return self.output[-2000:].decode(errors="replace")

    def type(self, text):
        """Writes to the guest's console."""
        os.write(self.input, text)

    def processes(self):
        """It, and the process of the same program that it keeps: mvm runs a guest in one of its own."""
        with open(f"/proc/{self.pid}/task/{self.pid}/children", encoding="ascii") as file:
            children = [int(child) for child in file.read().split()]
        program = name_of(self.pid)
        return [self.pid, *(child for child in children if name_of(child) == program)]

    def own_seconds(self):
        """Processor time of all threads so far, user and system, without what its guest ran."""
        ticks = 0
        for pid in self.processes():
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            # From the third field of proc(5) on: of 14, utime, which has 43 in it, guest_time; and of 15, stime.
            ticks += int(fields[11]) + int(fields[12]) - int(fields[40])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident(self):
        """Bytes of memory that it has. What two processes share is counted twice."""
        pages = 0
        for pid in self.processes():
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                pages += int(file.read().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def wait(self):
        """Waits for the end; returns seconds since the start, and of processor time, the guest's included."""
        while data := os.read(self.pipe, 1 << 16):
            self.output += data
        os.close(self.pipe)
        if self.input is not None:
            os.close(self.input)
        _, _, usage = os.wait4(self.pid, 0)
        self.pid = None
        return time.monotonic() - self.started, usage.ru_utime + usage.ru_stime

    def kill(self):
        """Ends it where it still runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def name_of(pid):
    """The name of a process's program."""
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip()


@contextlib.contextmanager
def running(command, takes_input=False):
    """A process that is gone at the end of the block."""
    process = Process(command, takes_input)
    try:
        yield process
    finally:
        process.kill()


def in_turns(commands, runs, warm_up=True):
    """(counts, name, command) of each run: every other round the other way round, as a run may slow the next.

    What does not count is the first round, which brings the programs into the page cache.
    """
    for number in range(0 if warm_up else 1, runs + 1):
        order = list(commands.items())
        for name, command in order if number % 2 else reversed(order):
            yield number > 0, name, command

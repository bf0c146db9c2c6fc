"""A VMM's process: started, watched for what its guest says, and measured."""

import contextlib
import os
import select
import shutil
import signal
import time

LIMIT = 300  # seconds for a guest to say what is waited for


class Process:
    """Its guest's console is its standard output; it has no input."""

    def __init__(self, command):
        self.command = command
        self.output = b""
        read, write = os.pipe()
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, write, 1),
            (os.POSIX_SPAWN_CLOSE, read),
            (os.POSIX_SPAWN_CLOSE, write),
        ]
        program = shutil.which(command[0])
        self.started = time.monotonic()
        self.pid = os.posix_spawn(program, command, os.environ, file_actions=actions)
        os.close(write)
        self.pipe = read

    def wait_for(self, text):
        """Seconds from the start until the guest has written `text`."""
        while text not in self.output:
            ready, _, _ = select.select([self.pipe], [], [], LIMIT)
            data = os.read(self.pipe, 1 << 16) if ready else b""
            now = time.monotonic()
            if not data:
                tail = self.output[-2000:].decode(errors="replace")
                raise RuntimeError(f"no {text.decode()!r} from {' '.join(self.command)}:\n{tail}")
            self.output += data
        return now - self.started

    def wait(self):
        """Waits for the end; returns seconds since the start, and of processor time, the guest's included."""
        while data := os.read(self.pipe, 1 << 16):
            self.output += data
        os.close(self.pipe)
        _, _, usage = os.wait4(self.pid, 0)
        self.pid = None
        return time.monotonic() - self.started, usage.ru_utime + usage.ru_stime

    def kill(self):
        """Ends it where it still runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


@contextlib.contextmanager
def running(command):
    """A process that is gone at the end of the block."""
    process = Process(command)
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

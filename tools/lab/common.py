"""What all parts of the lab use."""

import argparse
import os
import re
import subprocess

LAB = os.path.dirname(os.path.realpath(__file__))
TOOLS = os.path.dirname(LAB)


class Failure(Exception):
    """The lab failed; the text says why."""


class Stopped(Exception):
    """A signal ends this process."""


def say(text):
    os.write(2, f"kvm-lab: {text}\n".encode())


def output_of(*command):
    result = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if result.returncode != 0:
        raise Failure(f"{command[0]} failed")
    return result.stdout.decode().strip()


def memory_size(size):
    match = re.fullmatch(r"(\d+)([KMGT]?)(?:iB|B)?", size, re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"not a size: {size}")
    return int(match[1]) << {"": 20, "K": 10, "M": 20, "G": 30, "T": 40}[match[2].upper()]

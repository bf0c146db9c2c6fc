"""The part of the initramfs that is one run's own: the command, its environment, what it sees of /tmp and /run."""

import os
import re
from shlex import quote

from lab.image import cpio, text

# Variables that name what the lab does not have: the host's sockets, and open files of a calling make or cargo.
DROPPED_VARIABLES = {
    "_",
    "OLDPWD",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "SSH_AUTH_SOCK",
    "DBUS_SESSION_BUS_ADDRESS",
    "XDG_RUNTIME_DIR",
    "NOTIFY_SOCKET",
    "JOURNAL_STREAM",
    "INVOCATION_ID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "MAKEFLAGS",
    "MFLAGS",
    "CARGO_MAKEFLAGS",
}


def shared_paths(cwd, command, environment, asked):
    """What lies directly in /tmp or /run and is to stay visible in the lab."""
    found = set()
    values = [os.path.abspath(path) for path in asked] + [cwd] + command
    for name, value in environment.items():
        # A directory for temporary files is to be as new as /tmp.
        if name != "TMPDIR":
            values.append(value)
    for value in values:
        # Also in lists and options, such as A:/tmp/B or --kernel=/tmp/C.
        for base, entry in re.findall(r"(?<![^:=,\s])/(tmp|run)/+([^/:=,\s][^/]*)", value):
            for path in (f"/{base}/{entry}", f"/{base}/" + re.split(r"[:=,\s]", entry)[0]):
                if os.path.exists(path) and os.path.basename(path) not in (".", ".."):
                    found.add(path)
    return sorted(path for path in found if "\n" not in path)


def job(options, kernel, mark, stdin):
    """The part of the initramfs that is this run's own."""
    cwd = os.getcwd()
    environment = {name: value for name, value in os.environ.items() if name not in DROPPED_VARIABLES}
    # In the lab, KVM is there to be used directly.
    environment.update(PWD=cwd, MVM_KVM="direct", MVM_KVM_LAB="1")
    if os.getuid() != 0:
        # The command runs as root, on files that are this user's; this has git accept that.
        environment["SUDO_UID"] = str(os.getuid())
    script = [f"cd {quote(cwd)} || exit 125"]
    if temporary := environment.get("TMPDIR"):
        script.append(f"mkdir -p {quote(temporary)}")
    # The host's env: busybox has applets of its own that would go before the host's commands.
    words = [f"{name}={value}" for name, value in environment.items()] + options.command
    script.append("exec /usr/bin/env -i " + " ".join(map(quote, words)))
    settings = {"cwd": cwd, "kernel": kernel, "mark": mark, "stdin": "yes" if stdin else "no"}
    return cpio(
        [
            text("lab/job/settings", [f"{name}={quote(value)}" for name, value in settings.items()]),
            text("lab/job/shared", shared_paths(cwd, options.command, environment, options.share)),
            text("lab/job/command", script),
        ]
    )

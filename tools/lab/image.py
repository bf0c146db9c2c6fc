"""The part of the initramfs that is the same for each run, and the archive format of both parts."""

import fcntl
import hashlib
import os
import stat

from lab.common import LAB, output_of

FORMAT = 1  # of the initramfs; a change of this program that matters to it counts it up

# Loaded before the host's file system is there, and after it; each with what it depends on.
BOOT_MODULES = ["virtio_pci", "virtio_console", "virtiofs", "virtio-rng"]
KVM_MODULES = ["kvm-amd"]


def cpio(entries):
    """A newc archive, as the kernel unpacks it, of (name, mode, contents)."""
    out = bytearray()
    for number, (name, mode, data) in enumerate(entries + [("TRAILER!!!", 0, b"")], 1):
        path = name.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0]
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def directory(name):
    return (name, stat.S_IFDIR | 0o755, b"")


def text(name, lines):
    return (name, stat.S_IFREG | 0o644, os.fsencode("".join(line + "\n" for line in lines)))


def load_order(modules, names):
    """The files of these modules below `modules`, each after those it depends on; without those in the kernel itself."""
    needs = {}
    with open(os.path.join(modules, "modules.builtin"), encoding="ascii") as file:
        in_kernel = {os.path.basename(line.strip()) for line in file}
    with open(os.path.join(modules, "modules.dep"), encoding="ascii") as dep:
        for line in dep:
            path, _, rest = line.partition(":")
            needs[path] = rest.split()
    order = []

    def add(path):
        if path not in order:
            for need in needs[path]:
                add(need)
            order.append(path)

    for file in (name + ".ko" for name in names):
        if file not in in_kernel:
            add(next(path for path in needs if os.path.basename(path) == file))
    return order


def initramfs(kernel, release, busybox):
    """The path of the part of the initramfs that is the same for each run."""
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "mvm")
    key = hashlib.sha256(repr((FORMAT, kernel, BOOT_MODULES, KVM_MODULES)).encode())
    for source in (busybox, os.path.join(LAB, "init"), os.path.join(LAB, "modprobe")):
        with open(source, "rb") as file:
            key.update(hashlib.sha256(file.read()).digest())
    path = os.path.join(cache, f"lab-initramfs-{key.hexdigest()[:16]}")
    if os.path.exists(path):
        return path

    executable = stat.S_IFREG | 0o755

    def read(name):
        with open(name, "rb") as file:
            return file.read()

    modules = os.path.join(kernel, "lib/modules", release)
    entries = [directory(d) for d in ("proc", "dev", "host", "fresh", "fresh/tmp", "fresh/run", "lab")]
    entries += [directory(d) for d in ("lab/bin", "lab/job", "lab/modules", "lab/lib", "lab/lib/modules")]
    entries.append(("dev/console", stat.S_IFREG | 0o600, b""))
    entries.append(("lab/bin/busybox", executable, read(busybox)))
    for applet in output_of(busybox, "--list").split():
        if applet != "busybox":
            entries.append((f"lab/bin/{applet}", stat.S_IFLNK | 0o777, b"busybox"))
    entries.append(("lab/init", executable, read(os.path.join(LAB, "init"))))
    entries.append(("lab/modprobe", executable, read(os.path.join(LAB, "modprobe"))))
    entries.append(("init", stat.S_IFLNK | 0o777, b"lab/init"))
    loaded = []
    for name, wanted in (("boot", BOOT_MODULES), ("kvm", KVM_MODULES)):
        order = [path for path in load_order(modules, wanted) if path not in loaded]
        loaded += order
        entries.append(text(f"lab/modules/{name}", map(os.path.basename, order)))
    for module in loaded:
        entries.append((f"lab/modules/{os.path.basename(module)}", executable, read(os.path.join(modules, module))))

    os.makedirs(cache, exist_ok=True)
    with open(os.path.join(cache, "lab-initramfs.lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new = os.path.join(cache, ".lab-initramfs")
        with open(new, "wb") as file:
            file.write(cpio(entries))
        os.rename(new, path)
    return path

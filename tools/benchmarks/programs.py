"""A root file system of busybox and programs of this machine, for images of containers."""

import io
import os
import re
import shutil
import subprocess
import tarfile


def libraries(program):
    """The files that a program needs, with itself."""
    listed = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [program, *re.findall(r"(/\S+) \(0x", listed)]


def write_root(busybox, programs, path):
    """Writes a tar archive of the image in the layout `busybox` with `programs` and their libraries; those are in /bin."""
    with tarfile.open(busybox) as archive:
        files = {entry.name.removeprefix("./"): archive.extractfile(entry).read() for entry in archive if entry.isfile()}
    largest = max((content for name, content in files.items() if name.startswith("blobs/")), key=len)
    programs = {shutil.which(program): f"bin/{program}" for program in programs}
    with tarfile.open(fileobj=io.BytesIO(largest)) as layer, tarfile.open(path, "w") as out:
        for entry in layer:
            out.addfile(entry, layer.extractfile(entry) if entry.isfile() else None)
        for name in dict.fromkeys(file for program in programs for file in libraries(program)):
            content = os.path.realpath(name)
            entry = out.gettarinfo(content, arcname=programs.get(name, name.lstrip("/")))
            with open(content, "rb") as file:
                out.addfile(entry, file)

"""The store of images: how long an archive takes to load, beside podman, and what images with a common layer take."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile

from .containers import seconds
from .process import in_turns
from .report import row

LAYERS = 20
SIZE = 200 << 20  # bytes in all layers
NAME = "localhost/many-layers:latest"


def blob(layout, digest):
    return os.path.join(layout, "blobs", digest.replace(":", "/"))


def read(layout, digest):
    with open(blob(layout, digest), "rb") as file:
        return json.load(file)


def layers(layout):
    """The digests of all layers of a layout's images, each once."""
    with open(os.path.join(layout, "index.json"), "rb") as file:
        manifests = [read(layout, entry["digest"]) for entry in json.load(file)["manifests"]]
    return list(dict.fromkeys(layer["digest"] for manifest in manifests for layer in manifest["layers"]))


def files(layout):
    """The files of Debian's packages, again and again."""
    contents = []
    for digest in layers(layout):
        with gzip.open(blob(layout, digest)) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            contents += [(entry.name.removeprefix("./"), archive.extractfile(entry).read()) for entry in archive if entry.isfile()]
    number = 0
    while True:
        yield from ((f"srv/{number}/{name}", content) for name, content in contents)
        number += 1


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def write_archive(layout, path):
    """An archive as `docker save` makes it, whose layers have SIZE bytes of files together."""
    source, names, diff_ids = files(layout), [], []
    with tarfile.open(path, "w") as archive:
        for number in range(LAYERS):
            out, left = io.BytesIO(), SIZE // LAYERS
            with tarfile.open(fileobj=out, mode="w") as layer:
                while left > 0:
                    name, content = next(source)
                    add(layer, f"{number}/{name}", content)
                    left -= len(content)
            names.append(f"{number}/layer.tar")
            diff_ids.append(f"sha256:{hashlib.sha256(out.getvalue()).hexdigest()}")
            add(archive, names[-1], out.getvalue())
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        add(archive, "config.json", json.dumps(config).encode())
        manifest = [{"Config": "config.json", "RepoTags": [NAME], "Layers": names}]
        add(archive, "manifest.json", json.dumps(manifest).encode())


def on_disk(path):
    """Bytes that the files below a directory take."""
    names = (os.path.join(directory, name) for directory, _, names in os.walk(path) for name in names)
    return sum({(status := os.lstat(name)).st_ino: status.st_blocks * 512 for name in names}.values())


def unpacked(layout, digest):
    size = 0
    with gzip.open(blob(layout, digest)) as stream:
        while block := stream.read(1 << 20):
            size += len(block)
    return size


def measure(job):
    work, layout = job["work"], job["debian_containers"]
    archive = os.path.join(work, "archive.tar")
    write_archive(layout, archive)
    stores = {name: os.path.join(work, f"store-{name}") for name in ("mvm", "podman")}
    os.environ["MVM_DATA_DIR"] = stores["mvm"]
    podman = ["podman", "--root", stores["podman"], "--runroot", os.path.join(work, "run-podman")]
    commands = {"mvm": [job["mvm"], "load", "-i", archive], "podman": [*podman, "load", "-i", archive]}
    took = {name: [] for name in commands}
    for counts, name, command in in_turns(commands, job["runs"]):
        duration = seconds(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if counts:
            took[name].append(duration)
        shutil.rmtree(stores[name])
    subprocess.run([job["mvm"], "load", "-i", layout], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    size = on_disk(stores["mvm"]) / 2**20
    tars = sum(unpacked(layout, digest) for digest in layers(layout)) / 2**20
    return [
        row("load of 200 MiB in 20 layers; peer: podman", "s", took["mvm"], took["podman"], ratio_at_most=0.5),
        row("store of 3 images on Debian; peer: their layers' tars", "MiB", [size], [tars], ratio_at_most=1.15),
    ], []

# SPDX-License-Identifier: BSD-3-Clause
"""The parts of a Xen machine that QEMU boots, made of Debian's packages and kept in the cache: a hypervisor with memory
paging, which Debian's own lacks, a small dom0 and a guest. Nothing is installed on this machine."""
import contextlib
import fcntl
import glob
import hashlib
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import bootlib
from bootlib import VmError, run

ROOT = pathlib.Path(__file__).resolve().parent.parent
XEN_RELEASE = "4.17"
SUITE = "bookworm"
KERNEL_META = "linux-image-amd64"  # the cloud kernel cannot be a dom0
# In dom0: Xen's tools, and what our programs are linked with and load.
PACKAGES = ("kmod", "iproute2", "procps", "python3", "xenstore-utils", f"xen-utils-{XEN_RELEASE}", "xen-utils-common",
            "libfmt9", "libspdlog1.10", "libisal2", "libipsec-mb1", "libssl3", "libprotobuf-lite32", "libseccomp2", "libtbb12",
            "libtomlplusplus3", "librte-bus-vdev23", "librte-mempool-ring23", "librte-net-af-packet23", "librte-telemetry23")
HYPERVISOR_CONFIG = """CONFIG_UNSUPPORTED=y
CONFIG_EXPERT=y
CONFIG_MEM_PAGING=y
# CONFIG_XSM is not set
# CONFIG_LIVEPATCH is not set
# CONFIG_DEBUG is not set
"""
# To reach dom0's root; and in dom0, where bridges and virtual links are for DPDK's packet sockets.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "overlay", "9pnet_virtio", "9p")
DOM0_MODULES = ("xen_evtchn", "xen_gntdev", "xen_gntalloc", "xen_privcmd", "xenfs", "veth", "bridge", "virtio_net")
GUEST_PROGRAMS = {
    "init": ["tools/guest/xen_guest.c"],
    "sf-xen-agent": [f"tools/guest/sf_{part}.c" for part in ("xen_agent", "xenbus", "shared_bitmap", "free_scan")]}
GUEST_HEADERS = ["xen-glue/guest_bitmap_layout.h",
                 *(f"tools/guest/sf_{part}.h" for part in ("xenbus", "shared_bitmap", "free_scan"))]
DOM0_MB = 1200  # of its disk, sparse

BOOT_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in {modules}; do insmod "/modules/$module" || echo "init: cannot load $module"; done
n=0; while [ ! -b /dev/vda ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done
mkdir -p /disk /own /root; mount -t ext4 -o ro /dev/vda /disk && mount -t tmpfs tmpfs /own && mkdir /own/files /own/work &&
  mount -t overlay -o lowerdir=/disk,upperdir=/own/files,workdir=/own/work overlay /root || exec sh
mount --move /proc /root/proc; mount --move /sys /root/sys; mount --move /dev /root/dev
exec switch_root /root /sbin/testbed-init
"""

# Up to the line that ends its wait all is the same in every run: there the snapshot is taken, and QEMU takes none while
# a folder of the host is mounted. The job, its files and what comes of it are in such a folder, on /host.
DOM0_INIT = """#!/bin/bash
export PATH=/sbin:/usr/sbin:/bin:/usr/bin:/usr/lib/xen-{release}/bin HOME=/root TERM=vt100 LC_ALL=C
mkdir -p /host /dev/pts /var/log/xen /var/lib/xen /var/lib/xenstored
mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /run
mkdir -p /dev/shm /shared; mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/xen /run/xenstored /run/lock
for module in {modules}; do insmod "/modules/$module" || echo "testbed: cannot load $module"; done
mount -t xenfs xenfs /proc/xen
ip link set lo up
xenstored --pid-file /run/xen/xenstored.pid
for i in $(seq 100); do xenstore-read -s / >/dev/null 2>&1 && break; sleep 0.1; done
xen-init-dom0 >/dev/null
xenconsoled --pid-file=/run/xen/xenconsoled.pid --log=guest --log-dir=/var/log/xen
exec 3</dev/ttyS1  # what came before is lost
echo "testbed: dom0 is ready"
read -r now <&3
exec 3<&-
date -s "@$now" >/dev/null
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 host /host || echo "testbed: no /host"
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 shared /shared 2>/dev/null  # if there are other hosts
cd /host
timeout -k 10 "$(cat /host/job.seconds)" bash /host/job >/host/job.out 2>&1 </dev/null
echo $? >/host/job.status.new
mkdir -p /host/logs; cp /var/log/xen/* /host/logs/ 2>/dev/null; xl dmesg >/host/logs/xl-dmesg 2>/dev/null
mv /host/job.status.new /host/job.status
sync; echo o >/proc/sysrq-trigger; sleep 60
"""


def say(text):
    print(f"xen-testbed: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(what):
    """Says what is done and how long it took."""
    began = time.monotonic()
    say(f"{what} ...")
    yield
    say(f"{what}: {time.monotonic() - began:.0f} s")


def cache():
    path = bootlib.cache_dir() / "xen"
    path.mkdir(exist_ok=True)
    return path


def digest(*texts):
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


@contextlib.contextmanager
def made_once(target):
    """Yields a path to make `target` at, or None if it is there; what failed leaves nothing. Who comes while another
    process makes it waits."""
    with open(cache() / f".{target.name}.lock", "w") as lock, tempfile.TemporaryDirectory(dir=cache(), prefix="making-") as tmp:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            yield None
            return
        part = pathlib.Path(tmp) / "part"
        yield part
        os.rename(part, target)


# --- Debian's packages ------------------------------------------------------------------------------------------------


def index_targets(fields):
    """What apt's sources on this machine offer, each as the wanted fields."""
    lines = run(["apt-get", "indextargets", "--format", "|".join(f"$({f})" for f in fields), "Created-By: Packages"])
    return sorted({tuple(line.split("|")) for line in lines.splitlines()})


def mirror():
    for uri, release in index_targets(("REPO_URI", "RELEASE")):
        if release == SUITE:
            return uri
    raise VmError(f"apt has no source for Debian 12 ({SUITE}): a Xen test bed is made of its packages")


class SourceLists:
    """apt with the sources of this machine as deb-src, in a folder of its own: the machine's lists stay as they are."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        for sub in ("lists/partial", "cache/archives/partial", "parts"):
            (self.folder / sub).mkdir(parents=True)
        self._copy_sources(pathlib.Path("/etc/apt"))
        settings = ("Dir::Etc::SourceList=/dev/null", f"Dir::Etc::SourceParts={self.folder}/parts",
                    f"Dir::State::Lists={self.folder}/lists", f"Dir::Cache={self.folder}/cache", "Acquire::Retries=3")
        self.options = [word for setting in settings for word in ("-o", setting)]

    def _copy_sources(self, etc):
        for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
            if path.suffix == ".sources":
                text = re.sub(r"(?m)^Types:.*$", "Types: deb-src", path.read_text())
            elif path.suffix == ".list" and path.exists():
                text = "".join(f"deb-src{line[3:]}\n" for line in path.read_text().splitlines() if re.match(r"deb\s", line))
            else:
                continue
            (self.folder / "parts" / path.name).write_text(text)

    def versions(self, package):
        """Newest first."""
        run(["apt-get", "-qq", *self.options, "update"])
        shown = run(["apt-cache", *self.options, "showsrc", package])
        return list(dict.fromkeys(re.findall(r"^Version: (\S+)", shown, re.MULTILINE)))

    def fetch(self, package, version, folder):
        run(["apt-get", "-qq", *self.options, "source", f"{package}={version}"], cwd=folder)


def fetch_source(package, folder):
    """Unpacks the newest source that can be had (a mirror may know one that is gone). @return its folder"""
    with tempfile.TemporaryDirectory(prefix="snowfabric-apt-") as tmp:
        lists = SourceLists(tmp)
        why = VmError(f"apt knows no source of {package}")
        for version in lists.versions(package):
            try:
                lists.fetch(package, version, folder)
                return next(path for path in pathlib.Path(folder).iterdir() if path.is_dir())
            except VmError as error:
                why = error
        raise why


def fetch_kernel():
    return bootlib.fetch_kernel(KERNEL_META, cache())


# --- the parts --------------------------------------------------------------------------------------------------------


def hypervisor():
    """Xen with memory paging, as an ELF that QEMU boots."""
    target = cache() / f"hypervisor-{digest(HYPERVISOR_CONFIG)}.elf"
    with made_once(target) as part:
        if part is None:
            return target
        need("bison", "flex", "make", "gcc", "dpkg-source")
        with tempfile.TemporaryDirectory(dir=cache(), prefix="source-") as tmp, step("build the hypervisor"):
            tree = fetch_source("xen", tmp) / "xen"
            (tree / ".config").write_text(HYPERVISOR_CONFIG)
            options = ["XEN_TARGET_ARCH=x86_64", "debug=n"]
            run(["make", "olddefconfig", *options], cwd=tree)
            if "CONFIG_MEM_PAGING=y" not in (tree / ".config").read_text():
                raise VmError("this Xen cannot be configured with memory paging")
            run(["make", f"-j{os.cpu_count()}", *options], cwd=tree)
            shutil.copy2(tree / "xen", part)
    return target


def need(*programs):
    missing = [program for program in programs if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        raise VmError(f"{', '.join(missing)} missing: run tools/setup")


def unpacked(kernel):
    """The ELF in a compressed kernel, for a PVH guest."""
    data = kernel.read_bytes()
    at = data.find(b"\xfd7zXZ\0")
    if at < 0:
        raise VmError(f"{kernel} is not compressed by xz")
    return lzma.LZMADecompressor().decompress(data[at:])


def dom0():
    """A folder with vmlinuz, initrd.img and disk.ext4 of a PV dom0."""
    kernel = fetch_kernel()
    target = cache() / f"dom0-{kernel.name}-{digest(BOOT_INIT, DOM0_INIT, repr(PACKAGES), repr(BOOT_MODULES), repr(DOM0_MODULES))}"
    with made_once(target) as part:
        if part is None:
            return target
        part.mkdir()
        shutil.copy2(bootlib.vmlinuz(kernel), part / "vmlinuz")
        with tempfile.TemporaryDirectory() as tmp:
            root = bootlib.make_root(tmp)
            bootlib.write_init(root, BOOT_INIT, bootlib.module_files(kernel, BOOT_MODULES))
            bootlib.pack(root, part / "initrd.img")
        with step("make the disk of dom0"):
            make_dom0_disk(kernel, part / "disk.ext4")
    return target


def make_dom0_disk(kernel, out):
    need("debootstrap", "mke2fs")
    with tempfile.TemporaryDirectory(dir=cache(), prefix="dom0-") as tmp:
        root = pathlib.Path(tmp) / "root"
        run(["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, root, mirror()])
        for leftover in glob.glob(f"{root}/var/cache/apt/archives/*.deb") + glob.glob(f"{root}/etc/apt/sources.list*"):
            shutil.rmtree(leftover) if os.path.isdir(leftover) else os.unlink(leftover)
        bootlib.write_init(root, DOM0_INIT.replace("{release}", XEN_RELEASE),
                           bootlib.module_files(kernel, DOM0_MODULES), "sbin/testbed-init")
        with open(out, "wb") as disk:
            disk.truncate(DOM0_MB << 20)
        run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", root, out])


def guest():
    """A folder with the vmlinux and initrd.img of a PVH guest whose init checks its memory every second. It has
    sf-xen-agent too."""
    kernel = fetch_kernel()
    sources = sorted({ROOT / file for files in (*GUEST_PROGRAMS.values(), GUEST_HEADERS) for file in files})
    target = cache() / f"guest-{kernel.name}-{digest(*(source.read_text() for source in sources))}"
    with made_once(target) as part:
        if part is None:
            return target
        part.mkdir()
        (part / "vmlinux").write_bytes(unpacked(bootlib.vmlinuz(kernel)))
        with tempfile.TemporaryDirectory() as tmp:
            root = pathlib.Path(tmp)
            for name, files in GUEST_PROGRAMS.items():
                run(["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-static", "-pthread", "-Wall", "-Werror", "-I", ROOT, "-o", root / name,
                     *map(ROOT.joinpath, files)])
            bootlib.pack(root, part / "initrd.img")
    return target

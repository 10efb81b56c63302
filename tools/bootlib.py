# SPDX-License-Identifier: BSD-3-Clause
"""What a VM boots from: Debian's cloud kernel, fetched as files, and an initramfs around busybox."""
import gzip
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

KERNEL_META = "linux-image-cloud-amd64"
# What the devices of a VM that forks need (vmlib.machine_args). Debian's cloud kernel has no virtio built in.
MODULES = ("virtio_pci", "virtio_console", "virtio_net")

# SF_*: from the kernel's command line, which hands to init as environment what it does not know itself.
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in {modules}; do insmod "/modules/$module" || echo "init: cannot load $module"; done
hostname "${SF_HOSTNAME:-parent}"
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
  [ -z "$SF_IP" ] || ip addr add "$SF_IP" dev eth0
  ip link set eth0 up
fi
exec /bin/sf-agent
"""


class VmError(Exception):
    """Says what failed, on what, and what to do."""


def run(args, **kwargs):
    """Runs a command; its error output becomes the exception's text."""
    done = subprocess.run(args, capture_output=True, text=True, **kwargs)
    if done.returncode != 0:
        raise VmError(f"`{' '.join(map(str, args))}` failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def cache_dir():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = pathlib.Path(base) / "snowfabric"
    path.mkdir(parents=True, exist_ok=True)
    return path


def kernel_package(meta):
    """The package behind the meta package, by the apt lists; refreshes them if they do not know it."""
    for refresh in (False, True):
        if refresh:
            run(["apt-get", "-qq", "-o", "Acquire::Retries=3", "update"])
        depends = subprocess.run(["apt-cache", "depends", meta], capture_output=True, text=True).stdout
        found = re.search(r"Depends: (linux-image-\d\S+)", depends)
        if found:
            return found.group(1)
    raise VmError(f"apt knows no {meta}; is there a Debian mirror in /etc/apt? Or give --kernel DIR")


def fetch_kernel(meta=KERNEL_META, cache=None):
    """Folder with Debian's kernel unpacked as files: nothing is installed, the host's boot is not touched.
    @param cache  folder for kernels of this meta package alone"""
    cache = cache or cache_dir()
    ready = sorted(cache.glob("kernel-*/boot/vmlinuz-*"))
    if ready:
        return ready[-1].parent.parent
    with tempfile.TemporaryDirectory(dir=cache) as tmp:
        download_deb(kernel_package(meta), tmp)
        deb = next(pathlib.Path(tmp).glob("*.deb"))
        tree = pathlib.Path(tmp) / "tree"
        run(["dpkg", "-x", deb, tree])
        version = next(tree.glob("boot/vmlinuz-*")).name.removeprefix("vmlinuz-")
        target = cache / f"kernel-{version}"
        shutil.rmtree(target, ignore_errors=True)
        tree.rename(target)
    return target


def download_deb(package, folder, tries=3):
    for attempt in range(tries):
        try:
            run(["apt-get", "-qq", "-o", "Acquire::Retries=3", "download", package], cwd=folder)
            return
        except VmError:
            # Lists older than the mirror name a version that is gone.
            if attempt + 1 == tries:
                raise
            run(["apt-get", "-qq", "update"])


def vmlinuz(kernel):
    """The kernel itself in an unpacked package."""
    found = next(pathlib.Path(kernel).glob("boot/vmlinuz-*"), None)
    if found is None:
        raise VmError(f"no boot/vmlinuz-* under {kernel}")
    return found


def load_order(wanted, depends):
    """Modules in an order in which each finds what it needs. `depends(name)`: names it needs directly."""
    order = []

    def add(name, within=()):
        if name in within:
            raise VmError(f"kernel modules need each other: {' -> '.join([*within, name])}")
        if name in order:
            return
        for need in depends(name):
            add(need, (*within, name))
        order.append(name)

    for name in wanted:
        add(name)
    return order


def module_files(kernel, wanted):
    """Paths of modules and of what they need, in load order; those built into the kernel are left out."""
    files = {path.stem.replace("-", "_"): path for path in sorted(pathlib.Path(kernel).rglob("*.ko"))}
    builtin = {pathlib.Path(line).stem.replace("-", "_")
               for listing in pathlib.Path(kernel).rglob("modules.builtin") for line in listing.read_text().split()}

    def depends(name):
        if name not in files:
            if name in builtin:
                return []
            raise VmError(f"no kernel module {name} under {kernel}: remove that folder and try again")
        names = run(["modinfo", "-F", "depends", files[name]]).strip().split(",")
        return [need.replace("-", "_") for need in names if need]

    return [files[name] for name in load_order(wanted, depends) if name in files]


def make_root(folder):
    """A folder with busybox to become an initramfs; the caller adds an executable `init`."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise VmError("busybox is missing: run tools/setup")
    root = pathlib.Path(folder) / "root"
    for sub in ("bin", "proc", "sys", "dev", "tmp", "run"):
        (root / sub).mkdir(parents=True)
    shutil.copy2(busybox, root / "bin" / "busybox")
    return root


def write_init(root, text, modules=(), path="init"):
    """Makes the first program. "{modules}" in its text becomes the files that it finds in /modules, in load order."""
    if modules:
        (root / "modules").mkdir()
    for module in modules:
        shutil.copy2(module, root / "modules" / module.name)
    (root / path).write_text(text.replace("{modules}", " ".join(module.name for module in modules)))
    (root / path).chmod(0o755)


def pack(root, out):
    """Writes the folder as an initramfs and returns its path."""
    names = "\n".join(sorted(str(p.relative_to(root)) for p in root.rglob("*")))
    archive = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names.encode(),
                             capture_output=True, check=True).stdout
    out.write_bytes(gzip.compress(archive, 1))
    return out


def make_agent_initramfs(kernel, agent, out, spare=()):
    """The userland of a VM that forks: busybox, sf-agent as init's successor, sf-clone, the modules they need.
    @param spare  modules that lie in /modules beside those, and are not loaded"""
    if not os.access(agent, os.X_OK):
        raise VmError(f"{agent} is not there: build first (ninja tools/sf-agent)")
    modules = module_files(kernel, MODULES)
    with tempfile.TemporaryDirectory() as tmp:
        root = make_root(tmp)
        shutil.copy2(agent, root / "bin" / "sf-agent")
        (root / "bin" / "sf-clone").symlink_to("sf-agent")
        write_init(root, INIT, modules)
        for module in module_files(kernel, spare):
            shutil.copy2(module, root / "modules" / module.name)
        return pack(root, pathlib.Path(out))

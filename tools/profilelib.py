# SPDX-License-Identifier: BSD-3-Clause
"""Device profiles as pmd-config reads them, and which of them the lab can put on a bridge."""
import dataclasses
import os
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = [ROOT / "pmd-config/profiles", ROOT / "share/snowfabric/profiles"]
DEFAULT_MTU = 9000
# Devices of 22.11 that work on a kernel interface of the lab; the others join processes or real wires.
BRIDGED = ("net_af_packet", "net_af_xdp", "net_tap")
WHY_NOT = {
    "net_ring": "it lives inside one process (see the benchmarks)",
    "net_memif": "it joins exactly two processes",
}


class ProfileError(Exception):
    """Says what failed, on what, and what to do."""


# --- profiles: the same keys and rules as pmd-config/profile_keys.cpp -----------------------------

def whole(low, high):
    def check(value):
        if isinstance(value, bool) or not isinstance(value, int):
            return "must be a whole number"
        return None if low <= value <= high else f"{value} is not within {low}..{high}"
    return check


def gbps(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "must be a number"
    return None if 0.001 <= value <= 1600 else f"{value} is not within 0.001..1600"


def one_of(*names):
    return lambda value: None if value in names else f"must be one of {', '.join(names)}"


def text(value):
    return None if isinstance(value, str) else "must be a string"


def flag(value):
    return None if isinstance(value, bool) else "must be true or false"


def texts(value):
    if isinstance(value, list) and all(isinstance(element, str) for element in value):
        return None
    return "must be an array of strings"


def texts_of(*allowed):
    return lambda v: texts(v) or (None if set(v) <= set(allowed) else f"must be of {', '.join(allowed)}")


KEYS = {
    "base": text, "name": text, "description": text, "device": one_of("vdev", "pci"),
    "eal_args": texts, "hugepages_mb": whole(0, 1 << 20), "nb_rxd": whole(32, 32768),
    "nb_txd": whole(32, 32768), "nb_mbufs": whole(128, 1 << 22),
    "mbuf_room_bytes": whole(0, 65535), "mtu_by": one_of("kernel", "ethdev", "none"),
    "mtu": whole(0, 16000), "max_mtu": whole(576, 65535), "multi_segs": flag, "zero_copy": flag,
    "returns_mbufs": flag, "rx_interrupts": flag,
    "multicast": one_of("list", "socket", "allmulticast", "promiscuous", "software"),
    "link_wait_ms": whole(0, 600000), "idle": one_of("busy", "yield", "backoff"),
    "idle_pauses": whole(0, 1000000), "idle_yields": whole(0, 1000000),
    "rate_initial_gbps": gbps, "rate_max_gbps": gbps, "cannot": texts,
    "capabilities": texts_of("net_admin", "net_raw", "ipc_lock", "bpf", "kill"),
}
DEFAULTS = {"device": "vdev", "eal_args": [], "hugepages_mb": 0, "mtu_by": "ethdev", "mtu": 1500,
            "max_mtu": 9000, "multicast": "list", "idle": "backoff", "description": ""}


def profile_dirs():
    env = os.environ
    dirs = [Path(env["SNOWFABRIC_PROFILE_DIR"])] if env.get("SNOWFABRIC_PROFILE_DIR") else []
    config = env.get("XDG_CONFIG_HOME") or (env.get("HOME") and env["HOME"] + "/.config")
    if config:
        dirs.append(Path(config) / "snowfabric/profiles")
    return dirs + [Path("/etc/snowfabric/profiles")] + SHIPPED


def find_profile(name, beside, seen):
    """A profile may override the shipped one of its name: files being loaded are passed over."""
    if "/" in name or name.endswith(".toml"):
        return Path(os.path.normpath(Path.cwd() / beside / name))
    for folder in profile_dirs():
        file = Path(os.path.normpath(Path.cwd() / folder / f"{name}.toml"))
        if file.is_file() and file not in seen:
            return file
    raise ProfileError(f"no profile '{name}' in {', '.join(map(str, profile_dirs()))}")


def check_keys(file, source, table):
    for key, value in table.items():
        wrong = KEYS[key](value) if key in KEYS else "unknown key (docs/operations.md lists them)"
        if wrong:
            before = re.split(rf"(?m)^[ \t]*[\"']?{re.escape(key)}\b", source, maxsplit=1)[0]
            raise ProfileError(f"{file}:{before.count(chr(10)) + 1}: {key}: {wrong}")


def load_profile(name, beside=Path(), seen=None):
    """The profile as a dict, with `root`: the name at the end of its chain of bases."""
    seen = [] if seen is None else seen
    file = find_profile(name, beside, seen)
    if file in seen:
        raise ProfileError(f"{file}: `base` leads back to this file")
    seen.append(file)
    try:
        source = file.read_text()
        table = tomllib.loads(source)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{file}: {error}") from error
    check_keys(file, source, table)
    base = dict(DEFAULTS, root=file.stem)
    if "base" in table:
        base = load_profile(table["base"], file.parent, seen)
    return {**base, "name": file.stem, **table}


# --- profiles of the lab --------------------------------------------------------------------------

@dataclasses.dataclass
class Profile:
    name: str
    device: str
    max_mtu: int

    @property
    def tap(self):
        """The device makes its own kernel interface, which the lab bridges."""
        return self.device == "net_tap"

    def mtu_for_lab(self, wanted):
        if wanted is None:
            return min(DEFAULT_MTU, self.max_mtu)
        if wanted > self.max_mtu:
            raise ProfileError(f"profile {self.name} carries an MTU of at most {self.max_mtu}, not {wanted}")
        return wanted


def load(name):
    keys = load_profile(name)
    eal_args = " ".join(keys["eal_args"])
    device = next((d for d in BRIDGED if f"--vdev={d}" in eal_args), None)
    if device is None:
        kind = next((d for d in WHY_NOT if f"--vdev={d}" in eal_args or keys["root"] == d), None)
        why = WHY_NOT.get(kind, "it needs its own hardware")
        raise ProfileError(f"profile {name} cannot join virtual hosts over a bridge: {why}. "
                           f"Use one of: {', '.join(BRIDGED)}")
    return Profile(name, device, keys["max_mtu"])

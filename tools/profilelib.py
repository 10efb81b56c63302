# SPDX-License-Identifier: BSD-3-Clause
"""What the lab needs to know of a device profile: can it join hosts over a bridge, and at which MTU."""
import dataclasses
import os
import pathlib
import tomllib

SHIPPED = pathlib.Path(__file__).resolve().parent.parent / "pmd-config" / "profiles"
DEFAULT_MTU = 9000
# Devices of 22.11 that work on a kernel interface of the lab; the others join processes or real wires.
BRIDGED = ("net_af_packet", "net_af_xdp", "net_tap")
WHY_NOT = {
    "net_ring": "it lives inside one process (see the benchmarks)",
    "net_memif": "it joins exactly two processes",
}


class ProfileError(Exception):
    """Says what failed, on what, and what to do."""


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


def folders():
    """Where user profiles are looked for before the shipped ones."""
    user = [os.environ.get("SNOWFABRIC_PROFILE_DIR"), os.path.expanduser("~/.config/snowfabric/profiles"),
            "/etc/snowfabric/profiles"]
    return [pathlib.Path(folder) for folder in user if folder] + [SHIPPED]


def find(name):
    if "/" in name or name.endswith(".toml"):
        return pathlib.Path(name)
    for folder in folders():
        if (folder / f"{name}.toml").exists():
            return folder / f"{name}.toml"
    known = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.toml")))
    raise ProfileError(f"no profile '{name}'; shipped are: {known}")


def read(name, depth=0):
    """A profile's keys over those of its base."""
    path = find(name)
    try:
        keys = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ProfileError(f"profile {path}: {error}") from None
    base = keys.get("base")
    if base is None:
        return keys
    if depth > 8:
        raise ProfileError(f"profile {path}: bases without end")
    # `base` may name the shipped profile that this one shadows.
    shipped = SHIPPED / f"{base}.toml"
    return read(str(shipped) if shipped.exists() else base, depth + 1) | keys


def load(name):
    keys = read(name)
    eal_args = " ".join(map(str, keys.get("eal_args", [])))
    device = next((d for d in BRIDGED if f"--vdev={d}" in eal_args), None)
    if device is None:
        kind = next((d for d in WHY_NOT if f"--vdev={d}" in eal_args or name == d), None)
        why = WHY_NOT.get(kind, "it needs its own hardware")
        raise ProfileError(f"profile {name} cannot join virtual hosts over a bridge: {why}. "
                           f"Use one of: {', '.join(BRIDGED)}")
    return Profile(name, device, int(keys.get("max_mtu", DEFAULT_MTU)))

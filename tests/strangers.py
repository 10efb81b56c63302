# SPDX-License-Identifier: BSD-3-Clause
"""Users who should not get in."""
import contextlib
import os
import socket


def is_turned_away(path, uid):
    """Whether a process of that user may connect there, and then hears nothing but the end."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as stranger:
            os.setresuid(uid, uid, uid)
            stranger.settimeout(20)
            stranger.connect(str(path))
            os._exit(stranger.recv(9) != b"")
        os._exit(2)
    return os.waitpid(child, 0)[1] == 0

// SPDX-License-Identifier: BSD-3-Clause
#pragma once
/// How a program inside a VM forks that VM: libsf-fork.a. The lines behind it:
/// docs/guest-channel.md.
#include <stdbool.h>
#include <stddef.h>

/// Most clones of one call; a line of the channel with its end of string.
enum { SF_MAX_CLONES = 4096, SF_LINE_BYTES = 512 };

/// Forks this VM and waits until that is done and, in a clone, until the clone is somebody of its
/// own: random numbers reseeded, hostname, MAC and IP changed. Goes through sf-agent where one runs
/// (it holds the port), else straight to the port, and then needs root. Calls in several programs
/// take turns. What a program keeps for itself (random state, connections, cached addresses) is its
/// own to renew after this.
/// @param n  clones wanted, 1..SF_MAX_CLONES
/// @return 0 in the parent, 1..n in a clone; -1 with errno: EINVAL (n), ENODEV (the VM has no such
///         port), EBUSY (a program other than sf-agent holds it), ECANCELED (the host refused), or
///         the I/O's
int sf_clone(int n);

/// Which clone this program's last sf_clone (the agent's, in the agent) made of the VM: 0 until it
/// is one. Any thread.
int sf_id(void);

/// The guest's end of the channel. One thread at a time.
struct sf_port {
  int fd;
  size_t used;    // bytes of `text` that are not handed out yet
  bool skipping;  // within a line that was too long
  char text[SF_LINE_BYTES];
};

/// Opens the virtio-serial port org.snowfabric.0, or what the environment variable SF_PORT names
/// (for tests).
/// @return 0; -1 with errno: ENODEV (no such port), EBUSY (another program has it open), or open's
int sf_port_open(struct sf_port* port);

/// The same for a port of another name and environment variable.
int sf_port_open_as(struct sf_port* port, const char* name, const char* variable);

void sf_port_close(struct sf_port* port);

/// Reads once, blocks until there is something.
/// @return bytes read; 0 while the host's end is not connected (wait a little, go on); -1 with
/// errno
int sf_port_receive(struct sf_port* port);

/// Takes the next whole line, without its end.
/// @return 1 with `line` filled; 0: none yet; -1: one was longer than SF_LINE_BYTES - 1 and is
/// dropped
int sf_port_next(struct sf_port* port, char line[SF_LINE_BYTES]);

/// Sends one line, end of line added. Blocks while the host's end is not connected. Cut at
/// SF_LINE_BYTES - 1 bytes; bytes that are not printable become '?'.
/// @return 0; -1 with errno
int sf_port_say(struct sf_port* port, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

/// sf_clone over a port that the caller holds.
int sf_port_clone(struct sf_port* port, int n);

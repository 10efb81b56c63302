// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <stdbool.h>
#include <stddef.h>

/// xenstore as a guest sees it, through the kernel's /dev/xen/xenbus. Nodes are named from the
/// guest's own folder. Source: docs/misc/xenstore.txt and xen/io/xs_wire.h of Xen. One thread.

enum { SF_NODE_BYTES = 256 };

struct sf_xenbus {
  int fd;
  bool event;  // a watched node has changed; the caller clears it
};

/// @return 0; -1 with errno: ENOENT: this is no Xen guest; or open's
int sf_xenbus_open(struct sf_xenbus* bus);

/// @param value  gets a string
/// @return 0; -1 with errno: ENOENT: no such node; EMSGSIZE: longer than that; EPROTO; or the I/O's
int sf_xenbus_read(struct sf_xenbus* bus, const char* node, char value[SF_NODE_BYTES]);

int sf_xenbus_write(struct sf_xenbus* bus, const char* node, const char* value);

/// From now on each change of the node sets `event`; so does the first call, and the resume of a
/// guest that was suspended, in a clone too.
int sf_xenbus_watch(struct sf_xenbus* bus, const char* node);

/// Takes what has come without being asked for. Blocks if bus->fd is not readable.
int sf_xenbus_receive(struct sf_xenbus* bus);

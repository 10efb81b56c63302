// SPDX-License-Identifier: BSD-3-Clause
#include "tools/guest/sf_xenbus.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/// In front of every message. Source: struct xsd_sockmsg of xen/io/xs_wire.h.
struct message {
  uint32_t type, request, transaction, nb_bytes;
};
enum { kRead = 2, kWatch = 4, kWrite = 11, kWatchEvent = 15, kError = 16, kMaxBytes = 4096 };

int sf_xenbus_open(struct sf_xenbus* bus) {
  const char* path = secure_getenv("SF_XENBUS");  // for tests
  bus->event = false;
  bus->fd = open(path != NULL ? path : "/dev/xen/xenbus", O_RDWR | O_CLOEXEC | O_NOCTTY);
  return bus->fd < 0 ? -1 : 0;
}

static int read_all(int fd, char* to, size_t nb_bytes) {
  for (size_t done = 0; done < nb_bytes;) {
    ssize_t got = read(fd, to + done, nb_bytes - done);
    if (got == 0) errno = ECONNRESET;
    if (got == 0 || (got < 0 && errno != EINTR)) return -1;
    if (got > 0) done += (size_t)got;
  }
  return 0;
}

/// One message; `body` becomes a string.
static int take(struct sf_xenbus* bus, struct message* head, char body[kMaxBytes + 1]) {
  if (read_all(bus->fd, (char*)head, sizeof *head) != 0) return -1;
  if (head->nb_bytes > kMaxBytes) {
    errno = EPROTO;
    return -1;
  }
  if (read_all(bus->fd, body, head->nb_bytes) != 0) return -1;
  body[head->nb_bytes] = '\0';
  if (head->type == kWatchEvent) bus->event = true;
  return 0;
}

static int errno_of(const char* name) {
  static const struct {
    const char* name;
    int errnum;
  } known[] = {{"ENOENT", ENOENT}, {"EACCES", EACCES}, {"ENOSPC", ENOSPC}, {"EAGAIN", EAGAIN}};
  for (size_t i = 0; i < sizeof known / sizeof *known; ++i)
    if (strcmp(known[i].name, name) == 0) return known[i].errnum;
  return EPROTO;
}

/// Sends `node`, a NUL and `rest`, and waits for the answer. The kernel takes a message in one
/// piece.
static int ask(struct sf_xenbus* bus, uint32_t type, const char* node, const char* rest,
               size_t rest_bytes, char answer[kMaxBytes + 1]) {
  char out[sizeof(struct message) + 2 * SF_NODE_BYTES];
  size_t node_bytes = strlen(node) + 1;
  if (node_bytes > SF_NODE_BYTES || rest_bytes > SF_NODE_BYTES) {
    errno = EMSGSIZE;
    return -1;
  }
  struct message head = {.type = type, .nb_bytes = (uint32_t)(node_bytes + rest_bytes)};
  memcpy(out, &head, sizeof head);
  memcpy(out + sizeof head, node, node_bytes);
  memcpy(out + sizeof head + node_bytes, rest, rest_bytes);
  size_t nb_bytes = sizeof head + head.nb_bytes;
  if (write(bus->fd, out, nb_bytes) != (ssize_t)nb_bytes) return -1;
  do
    if (take(bus, &head, answer) != 0) return -1;
  while (head.type == kWatchEvent);
  if (head.type == kError) errno = errno_of(answer);
  if (head.type != kError && head.type != type) errno = EPROTO;
  return head.type == type ? 0 : -1;
}

int sf_xenbus_read(struct sf_xenbus* bus, const char* node, char value[SF_NODE_BYTES]) {
  char answer[kMaxBytes + 1];
  if (ask(bus, kRead, node, "", 0, answer) != 0) return -1;
  if (strlen(answer) >= SF_NODE_BYTES) {
    errno = EMSGSIZE;
    return -1;
  }
  strcpy(value, answer);
  return 0;
}

int sf_xenbus_write(struct sf_xenbus* bus, const char* node, const char* value) {
  char answer[kMaxBytes + 1];
  return ask(bus, kWrite, node, value, strlen(value), answer);
}

int sf_xenbus_watch(struct sf_xenbus* bus, const char* node) {
  char answer[kMaxBytes + 1];
  return ask(bus, kWatch, node, node, strlen(node) + 1, answer);  // the token: any string
}

int sf_xenbus_receive(struct sf_xenbus* bus) {
  struct message head;
  char body[kMaxBytes + 1];
  return take(bus, &head, body);
}

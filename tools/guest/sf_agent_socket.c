// SPDX-License-Identifier: BSD-3-Clause
#include "tools/guest/sf_agent_socket.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/socket.h>
#include <sys/un.h>

enum { kBacklog = 64 };

static int make_socket(struct sockaddr_un* address) {
  const char* path = secure_getenv("SF_AGENT_SOCKET");
  if (path == NULL) path = "/run/sf-agent.sock";
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  if (strlen(path) >= sizeof address->sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  strcpy(address->sun_path, path);
  return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static int give_up(int fd) {
  int error = errno;
  close(fd);
  errno = error;
  return -1;
}

int sf_agent_listen(void) {
  struct sockaddr_un address;
  int fd = make_socket(&address);
  if (fd < 0) return -1;
  unlink(address.sun_path);
  if (bind(fd, (struct sockaddr*)&address, sizeof address) != 0 || listen(fd, kBacklog) != 0)
    return give_up(fd);
  return fd;
}

int sf_agent_connect(void) {
  struct sockaddr_un address;
  int fd = make_socket(&address);
  if (fd < 0) return -1;
  if (connect(fd, (struct sockaddr*)&address, sizeof address) != 0) return give_up(fd);
  return fd;
}

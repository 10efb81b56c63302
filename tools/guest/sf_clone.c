// SPDX-License-Identifier: BSD-3-Clause
#include "tools/guest/sf_clone.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/socket.h>

#include "tools/guest/sf_agent_socket.h"
#include "tools/guest/sf_identity.h"

static const char kPortName[] = "org.snowfabric.0";
static const char kPortFolder[] = "/sys/class/virtio-ports";
enum { kWaitForHostUs = 2000 };

static atomic_int current_id;

int sf_id(void) { return atomic_load(&current_id); }

static bool has_name(const char* port, const char* wanted) {
  char path[300];
  char name[64] = "";
  snprintf(path, sizeof path, "%s/%s/name", kPortFolder, port);
  FILE* file = fopen(path, "re");
  if (file == NULL) return false;
  if (fgets(name, sizeof name, file) == NULL) name[0] = '\0';
  fclose(file);
  name[strcspn(name, "\n")] = '\0';
  return strcmp(name, wanted) == 0;
}

/// Path of a port's device. No udev is needed: /sys knows the ports' names.
static int find_port(const char* name, const char* variable, char* path, size_t size) {
  const char* given = secure_getenv(variable);
  if (given != NULL) {
    snprintf(path, size, "%s", given);
    return 0;
  }
  DIR* folder = opendir(kPortFolder);
  bool found = false;
  for (struct dirent* entry; folder != NULL && !found && (entry = readdir(folder)) != NULL;) {
    found = entry->d_name[0] != '.' && has_name(entry->d_name, name);
    if (found) snprintf(path, size, "/dev/%s", entry->d_name);
  }
  if (folder != NULL) closedir(folder);
  if (!found) errno = ENODEV;
  return found ? 0 : -1;
}

int sf_port_open(struct sf_port* port) { return sf_port_open_as(port, kPortName, "SF_PORT"); }

int sf_port_open_as(struct sf_port* port, const char* name, const char* variable) {
  char path[300];
  memset(port, 0, sizeof *port);
  port->fd = -1;
  if (find_port(name, variable, path, sizeof path) != 0) return -1;
  port->fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY);
  return port->fd < 0 ? -1 : 0;
}

void sf_port_close(struct sf_port* port) {
  if (port->fd >= 0) close(port->fd);
  port->fd = -1;
}

int sf_port_receive(struct sf_port* port) {
  if (port->used == sizeof port->text) {  // full, and no line in it
    port->used = 0;
    port->skipping = true;
  }
  ssize_t got = read(port->fd, port->text + port->used, sizeof port->text - port->used);
  if (got < 0) return errno == EINTR ? 0 : -1;
  port->used += (size_t)got;
  return (int)got;
}

int sf_port_next(struct sf_port* port, char line[SF_LINE_BYTES]) {
  const char* end = memchr(port->text, '\n', port->used);
  if (end == NULL) return 0;
  size_t length = (size_t)(end - port->text);
  memcpy(line, port->text, length);
  line[length] = '\0';
  port->used -= length + 1;
  memmove(port->text, end + 1, port->used);
  bool whole = !port->skipping;
  port->skipping = false;
  return whole ? 1 : -1;
}

static int write_all(int fd, const char* bytes, size_t size) {
  while (size > 0) {
    ssize_t put = write(fd, bytes, size);
    if (put < 0 && errno != EINTR) return -1;
    if (put > 0) bytes += put, size -= (size_t)put;
  }
  return 0;
}

int sf_port_say(struct sf_port* port, const char* format, ...) {
  char line[SF_LINE_BYTES];
  va_list args;
  va_start(args, format);
  int wanted = vsnprintf(line, sizeof line, format, args);
  va_end(args);
  if (wanted < 0) return -1;
  size_t length = strlen(line);
  for (size_t i = 0; i < length; ++i)
    if (!isprint((unsigned char)line[i])) line[i] = '?';
  line[length] = '\n';  // over the end of string: a line is not one
  return write_all(port->fd, line, length + 1);
}

/// Blocks for the next whole line.
static int wait_line(struct sf_port* port, char line[SF_LINE_BYTES]) {
  for (;;) {
    int found = sf_port_next(port, line);
    if (found == 1) return 0;
    if (found < 0 && sf_port_say(port, "ERROR a line longer than %d bytes", SF_LINE_BYTES - 1) != 0)
      return -1;
    if (found < 0) continue;
    int got = sf_port_receive(port);
    if (got < 0) return -1;
    // A clone wakes before the host opens its end of the port.
    if (got == 0) usleep(kWaitForHostUs);
  }
}

static bool starts_with(const char* line, const char* word) {
  size_t length = strlen(word);
  return strncmp(line, word, length) == 0 && (line[length] == ' ' || line[length] == '\0');
}

/// Waits for the host to open the link, then shows the new MAC to the network.
static int announce(struct sf_port* port, const struct sf_identity* identity) {
  char line[SF_LINE_BYTES], why[SF_REASON_BYTES];
  if (sf_port_say(port, "IDENTIFIED %d", identity->id) != 0) return -1;
  for (;;) {
    if (wait_line(port, line) != 0) return -1;
    if (!starts_with(line, "ANNOUNCE")) {
      if (sf_port_say(port, "ERROR waiting for ANNOUNCE, not for \"%s\"", line) != 0) return -1;
    } else if (sf_identity_announce(identity, why) == 0) {
      return 0;
    } else if (sf_port_say(port, "ERROR %s", why) != 0) {
      return -1;
    }
  }
}

/// Takes one answer to CLONE. @return the id; -1 with errno, EAGAIN: refused, the host may send a
/// better one
static int take_answer(struct sf_port* port, const char* line, int n) {
  char why[SF_REASON_BYTES];
  struct sf_identity identity;
  if (starts_with(line, "FAIL")) {
    fprintf(stderr, "sf_clone: the host says:%s\n", line + strlen("FAIL"));
    errno = ECANCELED;
    return -1;
  }
  bool good = false;
  if (!starts_with(line, "RET"))
    snprintf(why, sizeof why, "waiting for RET or FAIL, not for \"%.100s\"", line);
  else if (sf_identity_parse(line, n, &identity, why) == 0)
    good = identity.id == 0 || sf_identity_apply(&identity, why) == 0;
  if (!good) {
    if (sf_port_say(port, "ERROR %s", why) == 0) errno = EAGAIN;
    return -1;
  }
  if (identity.id > 0) {
    atomic_store(&current_id, identity.id);  // before the link opens: nobody sees the parent's id
    if (announce(port, &identity) != 0) return -1;
  }
  return sf_port_say(port, "READY %d", identity.id) == 0 ? identity.id : -1;
}

int sf_port_clone(struct sf_port* port, int n) {
  char line[SF_LINE_BYTES];
  if (n < 1 || n > SF_MAX_CLONES) {
    errno = EINVAL;
    return -1;
  }
  if (sf_port_say(port, "CLONE %d", n) != 0) return -1;
  for (;;) {
    if (wait_line(port, line) != 0) return -1;
    int id = take_answer(port, line, n);
    if (id >= 0 || errno != EAGAIN) return id;
  }
}

/// Asks sf-agent. @return as sf_clone
static int clone_by_agent(int agent, int n) {
  char answer[64];
  int id = -1, error = EPROTO;
  FILE* stream = fdopen(agent, "r+e");
  if (stream == NULL) {
    close(agent);
    return -1;
  }
  fprintf(stream, "CLONE %d\n", n);
  fflush(stream);
  if (fgets(answer, sizeof answer, stream) == NULL)
    error = EIO;  // the agent is gone
  else if (sscanf(answer, "RET %d", &id) != 1 && sscanf(answer, "FAIL %d", &error) != 1)
    id = -1;
  fclose(stream);
  if (id > 0) atomic_store(&current_id, id);
  errno = error;
  return id;
}

int sf_clone(int n) {
  if (n < 1 || n > SF_MAX_CLONES) {
    errno = EINVAL;
    return -1;
  }
  int agent = sf_agent_connect();
  if (agent >= 0) return clone_by_agent(agent, n);
  if (errno != ENOENT && errno != ECONNREFUSED) return -1;
  struct sf_port port;
  if (sf_port_open(&port) != 0) return -1;
  int id = sf_port_clone(&port, n);
  int error = errno;
  sf_port_close(&port);
  errno = error;
  return id;
}

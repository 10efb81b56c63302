// SPDX-License-Identifier: BSD-3-Clause
#include "tools/guest/sf_free.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/prctl.h>

#include "tools/guest/sf_clone.h"
#include "tools/guest/sf_free_scan.h"

enum { kOutBytes = 32768, kLongestRangeBytes = 44 };
enum { kPortTries = 500, kPortWaitUs = 20000, kLookAgainS = 1, kTokenBytes = 33 };

// What the host has not got yet.
static char out[kOutBytes];
static size_t out_used;

static int flush(int fd) {
  for (size_t done = 0; done < out_used;) {
    ssize_t put = write(fd, out + done, out_used - done);
    if (put < 0 && errno != EINTR) return -1;
    if (put > 0) done += (size_t)put;
  }
  out_used = 0;
  return 0;
}

/// Tens of thousands of lines: a write each would cost more than the scan.
static int send_runs(struct sf_port* port, const char* token) {
  size_t nb_runs;
  const struct sf_run* runs = sf_free_runs(&nb_runs);
  if (sf_port_say(port, "RANGES %s %zu", token, nb_runs) != 0) return -1;
  for (size_t i = 0; i < nb_runs; ++i) {
    if (sizeof out - out_used < kLongestRangeBytes && flush(port->fd) != 0) return -1;
    out_used +=
        (size_t)snprintf(out + out_used, sizeof out - out_used, "%llu %llu\n",
                         (unsigned long long)runs[i].first, (unsigned long long)runs[i].nb_pages);
  }
  if (flush(port->fd) != 0) return -1;
  return sf_port_say(port, "END");
}

static int answer(struct sf_port* port, const char* line) {
  char why[SF_REASON_BYTES], token[kTokenBytes];
  int end = 0;
  if (sscanf(line, "FREE %32[0-9a-f]%n", token, &end) != 1 || line[end] != '\0')
    return sf_port_say(port, "ERROR waiting for FREE and a hexadecimal number, not for \"%.60s\"",
                       line);
  return sf_free_scan(why) == 0 ? send_runs(port, token)
                                : sf_port_say(port, "REFUSED %s %s", token, why);
}

/// A port whose host is away is ready at once and says nothing, for as long as it lasts; but the
/// driver sends a signal when that changes.
static void wait_for_host(void) {
  sigset_t change;
  sigemptyset(&change);
  sigaddset(&change, SIGIO);
  struct timespec patience = {.tv_sec = kLookAgainS};
  sigtimedwait(&change, NULL, &patience);
}

static int serve(struct sf_port* port) {
  char line[SF_LINE_BYTES];
  for (;;) {
    int got = sf_port_receive(port);
    if (got < 0) return -1;
    if (got == 0) wait_for_host();
    for (int found; (found = sf_port_next(port, line)) != 0;) {
      int failed = found > 0
                       ? answer(port, line)
                       : sf_port_say(port, "ERROR a line longer than %d bytes", SF_LINE_BYTES - 1);
      if (failed != 0) return -1;
    }
  }
}

static int open_port(struct sf_port* port) {
  for (int i = 0; i < kPortTries; ++i) {
    if (sf_port_open_as(port, "org.snowfabric.free.0", "SF_FREE_PORT") == 0) return 0;
    if (errno != ENODEV && errno != ENOENT) return -1;
    usleep(kPortWaitUs);
  }
  return -1;
}

static int child_main(void) {
  static struct sf_port port;
  sigset_t change;
  sigemptyset(&change);
  sigaddset(&change, SIGIO);
  if (sigprocmask(SIG_BLOCK, &change, NULL) != 0 || open_port(&port) != 0) return 1;
  int flags = fcntl(port.fd, F_GETFL);
  if (flags < 0 || fcntl(port.fd, F_SETOWN, getpid()) != 0 ||
      fcntl(port.fd, F_SETFL, flags | O_ASYNC) != 0)
    return 1;
  serve(&port);
  fprintf(stderr, "sf-agent: the port for free pages failed: %s\n", strerror(errno));
  return 1;
}

int sf_free_start(void) {
  pid_t parent = getpid();
  pid_t child = fork();
  if (child != 0) return child < 0 ? -1 : 0;
  prctl(PR_SET_NAME, "sf-free");
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  _exit(getppid() == parent ? child_main() : 0);
}

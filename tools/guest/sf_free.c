// SPDX-License-Identifier: BSD-3-Clause
#include "tools/guest/sf_free.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include <sys/prctl.h>

#include "tools/guest/sf_clone.h"

enum { kFlagsPerRead = 8192, kBuddyBit = 10, kOutBytes = 32768, kLongestRangeBytes = 44 };
enum {
  kPortTries = 500,
  kPortWaitUs = 20000,
  kLookAgainS = 1,
  kReasonBytes = 200,
  kTokenBytes = 33
};

struct run {
  uint64_t first, nb_pages;
};

// What is free, found by scan().
static struct run* runs;
static size_t nb_runs, room;

// What the host has not got yet.
static char out[kOutBytes];
static size_t out_used;

static const char* path_of(const char* variable, const char* usual) {
  const char* given = secure_getenv(variable);
  return given != NULL ? given : usual;
}

/// Says in `why` what cannot be done, with errno's meaning. @return -1
static int fail(char why[kReasonBytes], const char* what, const char* on) {
  snprintf(why, kReasonBytes, "cannot %s %s: %s", what, on, strerror(errno));
  return -1;
}

/// A kernel that fills free pages with a pattern would miss it in those that read as zeros.
static int refuse_poison(char why[kReasonBytes]) {
  static const char kName[] = "page_poison=";
  const char* path = path_of("SF_CMDLINE", "/proc/cmdline");
  char line[8192];
  FILE* file = fopen(path, "re");
  if (file == NULL) return fail(why, "open", path);
  size_t got = fread(line, 1, sizeof line - 1, file);
  fclose(file);
  line[got] = '\0';
  char* rest = NULL;
  for (char* word = strtok_r(line, " \n", &rest); word != NULL;
       word = strtok_r(NULL, " \n", &rest)) {
    if (strncmp(word, kName, strlen(kName)) != 0) continue;
    const char* value = word + strlen(kName);
    if (strchr("0nN", value[0]) != NULL && value[0] != '\0') continue;
    if (strcasecmp(value, "off") == 0) continue;
    snprintf(why, kReasonBytes, "free pages are not zero here: the kernel was started with %.60s",
             word);
    return -1;
  }
  return 0;
}

static int add(uint64_t page, char why[kReasonBytes]) {
  if (nb_runs > 0 && runs[nb_runs - 1].first + runs[nb_runs - 1].nb_pages == page) {
    ++runs[nb_runs - 1].nb_pages;
    return 0;
  }
  if (nb_runs == room) {
    size_t more = room == 0 ? 1024 : room * 2;
    struct run* larger = realloc(runs, more * sizeof *runs);
    if (larger == NULL) return fail(why, "remember", "the free pages");
    runs = larger;
    room = more;
  }
  runs[nb_runs++] = (struct run){.first = page, .nb_pages = 1};
  return 0;
}

static bool is_buddy(uint64_t flags) { return (flags >> kBuddyBit & 1U) != 0; }

/// Fills `runs`. The kernel looks at a page without a lock and may now and then take one in use for
/// free, so each is looked at twice.
static int scan_file(int fd, const char* path, char why[kReasonBytes]) {
  static uint64_t flags[kFlagsPerRead], again[kFlagsPerRead];
  nb_runs = 0;
  for (uint64_t page = 0;;) {
    ssize_t got = pread(fd, flags, sizeof flags, (off_t)(page * sizeof *flags));
    if (got < 0) return fail(why, "read", path);
    size_t nb_pages = (size_t)got / sizeof *flags;
    if (nb_pages == 0) return 0;
    got = pread(fd, again, nb_pages * sizeof *flags, (off_t)(page * sizeof *flags));
    if (got < 0) return fail(why, "read", path);
    if ((size_t)got / sizeof *flags < nb_pages) nb_pages = (size_t)got / sizeof *flags;
    if (nb_pages == 0) return 0;
    for (size_t i = 0; i < nb_pages; ++i)
      if (is_buddy(flags[i]) && is_buddy(again[i]) && add(page + i, why) != 0) return -1;
    page += nb_pages;
  }
}

static int scan(char why[kReasonBytes]) {
  const char* path = path_of("SF_KPAGEFLAGS", "/proc/kpageflags");
  if (refuse_poison(why) != 0) return -1;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail(why, "open", path);
  int failed = scan_file(fd, path, why);
  close(fd);
  return failed;
}

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
  char why[kReasonBytes], token[kTokenBytes];
  int end = 0;
  if (sscanf(line, "FREE %32[0-9a-f]%n", token, &end) != 1 || line[end] != '\0')
    return sf_port_say(port, "ERROR waiting for FREE and a hexadecimal number, not for \"%.60s\"",
                       line);
  return scan(why) == 0 ? send_runs(port, token) : sf_port_say(port, "REFUSED %s %s", token, why);
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

// SPDX-License-Identifier: BSD-3-Clause
/// sf-agent [HTTP-PORT]: holds the VM's end of the channel (docs/guest-channel.md), forks for the
/// programs of the VM, and is a workload whose right behaviour can be checked from outside. May be
/// the VM's init. sf-clone N: the same program by its other name; forks the VM and prints which one
/// this is: 0 the parent, 1..N a clone.
#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "tools/guest/sf_agent_socket.h"
#include "tools/guest/sf_churn.h"
#include "tools/guest/sf_clone.h"
#include "tools/guest/sf_free.h"
#include "tools/guest/sf_http.h"
#include "tools/guest/sf_workload.h"

enum { kPortTries = 500, kPortWaitUs = 20000, kWaitForHostUs = 2000, kPatienceS = 2 };
enum { kProtocol = 1, kMaxFillMb = 1 << 20 };

static struct sf_port port;

/// The first number of `text`. @return -1: none, or not within 0..limit
static long number(const char* text, long limit) {
  char* end = NULL;
  while (*text == ' ') ++text;
  if (!isdigit((unsigned char)*text)) return -1;
  errno = 0;
  long value = strtol(text, &end, 10);
  return errno == 0 && (*end == '\0' || *end == ' ') && value <= limit ? value : -1;
}

// Commands of the host. Each answers with one line and returns -1 if the port failed.

static int ping(const char* args) {
  (void)args;
  return sf_port_say(&port, "PONG %d", sf_id());
}

static int fill(const char* args) {
  long mb = number(args, kMaxFillMb);
  if (mb < 1)
    return sf_port_say(&port, "ERROR FILL needs a number of MiB from 1 to %d", kMaxFillMb);
  if (sf_workload_fill((unsigned)mb) != 0)
    return sf_port_say(&port, "ERROR FILL %ld: %s", mb, strerror(errno));
  return sf_port_say(&port, "FILLED pages=%zu", sf_workload_pages());
}

static int verify(const char* args) {
  (void)args;
  if (sf_workload_pages() == 0) return sf_port_say(&port, "ERROR VERIFY before FILL");
  struct sf_verdict v = sf_workload_verify();
  return sf_port_say(&port, "VERIFIED bad=%zu pages=%zu first=%ld", v.nb_bad, v.nb_pages,
                     v.first_bad);
}

static int dirty(const char* args) {
  long nb_pages = number(args, INT32_MAX);
  if (nb_pages < 0) return sf_port_say(&port, "ERROR DIRTY needs a number of pages");
  if (nb_pages > 0 && sf_workload_pages() == 0)
    return sf_port_say(&port, "ERROR DIRTY before FILL");
  if (sf_workload_dirty((size_t)nb_pages) != 0)
    return sf_port_say(&port, "ERROR DIRTY %ld: %s", nb_pages, strerror(errno));
  return sf_port_say(&port, "DIRTYING pages=%ld rewritten=%llu", nb_pages,
                     (unsigned long long)sf_workload_rewritten());
}

static int churn(const char* args) {
  long mb = number(args, kMaxFillMb);
  struct sf_churn_report report;
  if (mb < 0) return sf_port_say(&port, "ERROR CHURN needs a number of MiB");
  if (sf_churn((unsigned)mb, &report) != 0)
    return sf_port_say(&port, "ERROR CHURN %ld: %s", mb, strerror(errno));
  return sf_port_say(&port, "CHURNING mb=%ld bad=%llu verified=%llu", mb,
                     (unsigned long long)report.nb_bad, (unsigned long long)report.nb_verified);
}

static int counter(const char* args) {
  (void)args;
  return sf_port_say(&port, "COUNTER %lu", sf_http_counter());
}

static int random_bytes(const char* args) {
  unsigned long long value = 0;
  (void)args;
  if (getrandom(&value, sizeof value, 0) != (ssize_t)sizeof value)
    return sf_port_say(&port, "ERROR RANDOM: %s", strerror(errno));
  return sf_port_say(&port, "RANDOM %016llx", value);
}

/// The VM forks because the host wants it to. The answer is READY, in each of the VMs.
static int fork_vm(const char* args) {
  long n = number(args, SF_MAX_CLONES);
  if (sf_port_clone(&port, (int)n) >= 0) return 0;
  if (errno == EINVAL)
    return sf_port_say(&port, "ERROR FORK needs a number from 1 to %d", SF_MAX_CLONES);
  return sf_port_say(&port, "ERROR FORK %ld: %s", n, strerror(errno));
}

/// Starts a shell command and does not wait for it; what it prints goes to the console.
static int run(const char* args) {
  pid_t child = fork();
  if (child == 0) {
    signal(SIGCHLD, SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    execl("/bin/sh", "sh", "-c", args, (char*)NULL);
    _exit(127);
  }
  if (child < 0) return sf_port_say(&port, "ERROR RUN: %s", strerror(errno));
  return sf_port_say(&port, "RUNNING %d", (int)child);
}

static const struct {
  const char* word;
  int (*obey)(const char* args);
} kCommands[] = {{"PING", ping},           {"FILL", fill},    {"VERIFY", verify},
                 {"DIRTY", dirty},         {"FORK", fork_vm}, {"COUNTER", counter},
                 {"RANDOM", random_bytes}, {"RUN", run},      {"CHURN", churn}};

static int obey(const char* line) {
  size_t length = strcspn(line, " ");
  const char* args = line + length + (line[length] == ' ' ? 1 : 0);
  for (size_t i = 0; i < sizeof kCommands / sizeof kCommands[0]; ++i)
    if (strlen(kCommands[i].word) == length && strncmp(line, kCommands[i].word, length) == 0)
      return kCommands[i].obey(args);
  return sf_port_say(&port, "ERROR unknown command \"%.60s\"", line);
}

/// One program of this VM that called sf_clone; the next one waits in the socket's backlog.
static int serve_program(int client) {
  char line[64] = "", answer[64];
  struct timeval patience = {.tv_sec = kPatienceS};
  setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  ssize_t got = recv(client, line, sizeof line - 1, 0);
  if (got <= 0 || strncmp(line, "CLONE ", 6) != 0) return 0;
  line[strcspn(line, "\n")] = '\0';
  int id = sf_port_clone(&port, (int)number(line + 6, SF_MAX_CLONES));
  int error = errno;
  if (id >= 0)
    snprintf(answer, sizeof answer, "RET %d\n", id);
  else
    snprintf(answer, sizeof answer, "FAIL %d\n", error);
  send(client, answer, strlen(answer), MSG_NOSIGNAL);
  return id >= 0 || error == ECANCELED || error == EINVAL ? 0 : -1;
}

/// Obeys what has come by whole lines. @return -1: the port failed
static int serve_host(void) {
  char line[SF_LINE_BYTES];
  int got = sf_port_receive(&port);
  if (got < 0) return -1;
  if (got == 0) usleep(kWaitForHostUs);  // poll() does not wait for a host that is not there
  for (int found; (found = sf_port_next(&port, line)) != 0;) {
    int failed = found > 0
                     ? obey(line)
                     : sf_port_say(&port, "ERROR a line longer than %d bytes", SF_LINE_BYTES - 1);
    if (failed != 0) return -1;
  }
  return 0;
}

static int serve(int programs) {
  struct pollfd polled[] = {{.fd = port.fd, .events = POLLIN}, {.fd = programs, .events = POLLIN}};
  for (;;) {
    if (poll(polled, 2, -1) < 0 && errno != EINTR) return -1;
    if (polled[0].revents != 0 && serve_host() != 0) return -1;
    if (polled[1].revents == 0) continue;
    int client = accept4(programs, NULL, NULL, SOCK_CLOEXEC);
    int failed = client < 0 ? 0 : serve_program(client);
    if (client >= 0) close(client);
    if (failed != 0) return -1;
  }
}

static int die(const char* what) {
  fprintf(stderr, "sf-agent: %s: %s\n", what, strerror(errno));
  return 1;
}

static int open_port(void) {
  // The device appears some time after its driver was loaded.
  for (int i = 0; i < kPortTries; ++i) {
    if (sf_port_open(&port) == 0) return 0;
    if (errno != ENODEV && errno != ENOENT) return -1;
    usleep(kPortWaitUs);
  }
  return -1;
}

static int agent_main(int argc, char** argv) {
  long http_port = argc > 1 ? number(argv[1], UINT16_MAX) : 80;
  setvbuf(stdout, NULL, _IOLBF, 0);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGCHLD,
         SIG_IGN);  // an init's children, its own and adopted ones, are reaped by the kernel
  if (argc > 2 || http_port < 1) {
    fprintf(stderr, "usage: sf-agent [HTTP-PORT]\n");
    return 2;
  }
  if (sf_free_start() != 0) return die("cannot start the process that knows the free pages");
  if (open_port() != 0) return die("cannot open the port org.snowfabric.0");
  if (sf_http_start((uint16_t)http_port) != 0) return die("cannot start the web server");
  int programs = sf_agent_listen();
  if (programs < 0) return die("cannot listen for programs");
  printf("sf-agent: ready\n");
  if (sf_port_say(&port, "HELLO %d", kProtocol) != 0 || serve(programs) != 0)
    return die("the port org.snowfabric.0 failed");
  return 0;
}

static int clone_main(int argc, char** argv) {
  long n = argc == 2 ? number(argv[1], SF_MAX_CLONES) : -1;
  if (n < 1) {
    fprintf(stderr, "usage: sf-clone N    (1 to %d)\n", SF_MAX_CLONES);
    return 2;
  }
  int id = sf_clone((int)n);
  if (id < 0) {
    fprintf(stderr, "sf-clone: %s\n", strerror(errno));
    return 1;
  }
  printf("%d\n", id);
  return 0;
}

int main(int argc, char** argv) {
  const char* name = strrchr(argv[0], '/');
  name = name == NULL ? argv[0] : name + 1;
  return strcmp(name, "sf-clone") == 0 ? clone_main(argc, argv) : agent_main(argc, argv);
}

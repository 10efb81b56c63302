// SPDX-License-Identifier: BSD-3-Clause
#include "tools/guest/sf_http.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "tools/guest/sf_clone.h"

enum { kBacklog = 64, kRequestBytes = 4096, kPatienceS = 2, kHostnameBytes = 65 };

static atomic_ulong counter;
static int listener = -1;

unsigned long sf_http_counter(void) { return atomic_load(&counter); }

/// Reads up to the empty line. @return whether it came
static bool read_request(int client, char request[kRequestBytes]) {
  size_t used = 0;
  while (used < kRequestBytes - 1) {
    ssize_t got = recv(client, request + used, kRequestBytes - 1 - used, 0);
    if (got <= 0) return false;
    used += (size_t)got;
    request[used] = '\0';
    if (strstr(request, "\r\n\r\n") != NULL) return true;
  }
  return false;
}

static void answer(int client) {
  char request[kRequestBytes] = "", body[160] = "", head[160], hostname[kHostnameBytes] = "";
  if (!read_request(client, request)) return;
  bool known = strncmp(request, "GET / ", 6) == 0;
  if (known) {
    gethostname(hostname, sizeof hostname - 1);
    snprintf(body, sizeof body, "{\"id\":%d,\"counter\":%lu,\"hostname\":\"%s\"}\n", sf_id(),
             atomic_fetch_add(&counter, 1) + 1, hostname);
  }
  snprintf(head, sizeof head,
           "HTTP/1.0 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\nConnection: "
           "close\r\n\r\n",
           known ? "200 OK" : "404 Not Found", strlen(body));
  send(client, head, strlen(head), MSG_NOSIGNAL | MSG_MORE);
  send(client, body, strlen(body), MSG_NOSIGNAL);
  shutdown(client, SHUT_WR);
}

static void* serve(void* unused) {
  (void)unused;
  for (;;) {
    int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (client < 0) {
      usleep(10000);  // out of descriptors or memory: not for ever
      continue;
    }
    struct timeval patience = {.tv_sec = kPatienceS};
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    answer(client);
    close(client);
  }
  return NULL;
}

int sf_http_start(uint16_t port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  pthread_t server;
  const int yes = 1;
  listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0) return -1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (bind(listener, (struct sockaddr*)&address, sizeof address) != 0 ||
      listen(listener, kBacklog) != 0)
    return -1;
  errno = pthread_create(&server, NULL, serve, NULL);
  return errno == 0 ? 0 : -1;
}

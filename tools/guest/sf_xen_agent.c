// SPDX-License-Identifier: BSD-3-Clause
/// sf-xen-agent: in a Xen guest, tells a host that is about to fork it which pages are free, and in
/// a clone claims the free pages that are not there yet, so that nobody fetches them. docs/xen.md.
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sys/prctl.h>

#include "tools/guest/sf_free_scan.h"
#include "tools/guest/sf_shared_bitmap.h"
#include "tools/guest/sf_xenbus.h"

enum { kClaimMs = 5000, kLookAgainMs = 1000, kPageKib = 4, kTokenBytes = 33 };

static struct sf_xenbus bus;
static struct sf_bitmap bitmap;
/// This guest may be frozen at any moment, and then wake up as a clone whose free pages are others.
static bool is_asked;

static int fail(const char* what) {
  fprintf(stderr, "sf-xen-agent: %s: %s\n", what, strerror(errno));
  return -1;
}

/// What the host takes for the size of this guest's RAM too.
static int ram_pages(uint64_t* nb_pages) {
  char text[SF_NODE_BYTES];
  if (sf_xenbus_read(&bus, "memory/static-max", text) != 0) return fail("read memory/static-max");
  *nb_pages = strtoull(text, NULL, 10) / kPageKib;
  return 0;
}

/// Nodes are gone in a clone, and in a guest that was restored.
static int announce(void) {
  char wanted[SF_NODE_BYTES], there[SF_NODE_BYTES];
  snprintf(wanted, sizeof wanted, "%" PRIu64 " %zu %" PRIu32, bitmap.first_frame, bitmap.nb_shared,
           bitmap.header->generation);
  if (sf_xenbus_read(&bus, SF_NODE_BITMAP, there) == 0 && strcmp(wanted, there) == 0) return 0;
  if (sf_xenbus_write(&bus, SF_NODE_BITMAP, wanted) != 0) return fail("write " SF_NODE_BITMAP);
  return 0;
}

static int answer(const char* token) {
  char why[SF_REASON_BYTES], text[SF_NODE_BYTES];
  if (sf_free_scan(why) == 0) {
    printf("sf-xen-agent: free pages=%" PRIu64 "\n", sf_bitmap_report(&bitmap));
    snprintf(text, sizeof text, "%s ok", token);
  } else {
    snprintf(text, sizeof text, "%s refused %s", token, why);
  }
  if (sf_xenbus_write(&bus, SF_NODE_ANSWER, text) != 0) return fail("write " SF_NODE_ANSWER);
  return 0;
}

/// A question that was answered already is passed over: a watch also tells of what has not changed.
static int look_for_question(void) {
  static char last[kTokenBytes];
  char token[SF_NODE_BYTES] = "";
  if (sf_xenbus_read(&bus, SF_NODE_ASK, token) != 0 && errno != ENOENT)
    return fail("read " SF_NODE_ASK);
  is_asked = token[0] != '\0';
  if (!is_asked || strlen(token) >= sizeof last || strcmp(token, last) == 0) return 0;
  strcpy(last, token);
  return answer(token);
}

static void claim(void) {
  char why[SF_REASON_BYTES];
  if (sf_free_scan(why) == 0) {
    uint64_t nb_pages = sf_bitmap_claim(&bitmap);
    if (nb_pages > 0) printf("sf-xen-agent: claimed pages=%" PRIu64 "\n", nb_pages);
  } else {
    fprintf(stderr, "sf-xen-agent: %s\n", why);
  }
}

static bool is_incomplete_clone(void) {
  return !is_asked && bitmap.header->generation != 0 && sf_bitmap_lacks_pages(&bitmap);
}

static int wait_for_event(int claim_ms) {
  struct pollfd ready = {.fd = bus.fd, .events = POLLIN};
  int nb_ready = poll(&ready, 1, is_asked ? kLookAgainMs : is_incomplete_clone() ? claim_ms : -1);
  if (nb_ready < 0 && errno != EINTR) return fail("poll");
  if (nb_ready == 0 && is_asked)
    bus.event = true;  // in a clone nobody asks
  else if (nb_ready == 0)
    claim();
  if (nb_ready > 0 && sf_xenbus_receive(&bus) != 0) return fail("receive from xenstore");
  return 0;
}

/// An event may also have come in front of an answer.
static int serve(int claim_ms) {
  for (;;) {
    if (!bus.event && wait_for_event(claim_ms) != 0) return -1;
    if (!bus.event) continue;
    bus.event = false;
    if (announce() != 0 || look_for_question() != 0) return -1;
  }
}

static int usage(int status) {
  fprintf(
      status == 0 ? stdout : stderr,
      "usage: sf-xen-agent [CLAIM-MS]\n"
      "In a Xen guest, as root: says which pages are free when the guest is forked. In a clone\n"
      "that lacks pages it claims, every CLAIM-MS milliseconds (%d; 0: never), those that are\n"
      "free: a look costs the clone the kernel's table of pages, 1/64 of its memory.\n",
      kClaimMs);
  return status;
}

int main(int argc, char** argv) {
  char* end = NULL;
  long claim_ms = argc == 2 ? strtol(argv[1], &end, 10) : kClaimMs;
  if (argc == 2 && (strcmp(argv[1], "--help") == 0)) return usage(0);
  if (argc > 2 || (end != NULL && (*end != '\0' || end == argv[1])) || claim_ms < 0 ||
      claim_ms > 1000000)
    return usage(2);
  setvbuf(stdout, NULL, _IOLBF, 0);
  prctl(PR_SET_NAME, "sf-xen-agent");
  uint64_t nb_pages = 0;
  if (sf_xenbus_open(&bus) != 0) return fail("/dev/xen/xenbus") != 0;
  if (ram_pages(&nb_pages) != 0 || sf_bitmap_make(&bitmap, nb_pages) != 0) return 1;
  if (sf_xenbus_watch(&bus, SF_NODE_ASK) != 0) return fail("watch " SF_NODE_ASK) != 0;
  return serve(claim_ms == 0 ? -1 : (int)claim_ms) != 0;
}

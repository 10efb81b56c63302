// SPDX-License-Identifier: BSD-3-Clause
#include "tools/guest/sf_free_scan.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum { kFlagsPerRead = 8192, kBuddyBit = 10 };

static struct sf_run* runs;
static size_t nb_runs, room;

static const char* path_of(const char* variable, const char* usual) {
  const char* given = secure_getenv(variable);
  return given != NULL ? given : usual;
}

/// Says in `why` what cannot be done, with errno's meaning. @return -1
static int fail(char why[SF_REASON_BYTES], const char* what, const char* on) {
  snprintf(why, SF_REASON_BYTES, "cannot %s %s: %s", what, on, strerror(errno));
  return -1;
}

/// A kernel that fills free pages with a pattern would miss it in those that read as zeros.
static int refuse_poison(char why[SF_REASON_BYTES]) {
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
    snprintf(why, SF_REASON_BYTES,
             "free pages are not zero here: the kernel was started with %.60s", word);
    return -1;
  }
  return 0;
}

static int add(uint64_t page, char why[SF_REASON_BYTES]) {
  if (nb_runs > 0 && runs[nb_runs - 1].first + runs[nb_runs - 1].nb_pages == page) {
    ++runs[nb_runs - 1].nb_pages;
    return 0;
  }
  if (nb_runs == room) {
    size_t more = room == 0 ? 1024 : room * 2;
    struct sf_run* larger = realloc(runs, more * sizeof *runs);
    if (larger == NULL) return fail(why, "remember", "the free pages");
    runs = larger;
    room = more;
  }
  runs[nb_runs++] = (struct sf_run){.first = page, .nb_pages = 1};
  return 0;
}

static bool is_buddy(uint64_t flags) { return (flags >> kBuddyBit & 1U) != 0; }

/// Fills `runs`. The kernel looks at a page without a lock and may now and then take one in use for
/// free, so each is looked at twice.
static int scan_file(int fd, const char* path, char why[SF_REASON_BYTES]) {
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

int sf_free_scan(char why[SF_REASON_BYTES]) {
  const char* path = path_of("SF_KPAGEFLAGS", "/proc/kpageflags");
  if (refuse_poison(why) != 0) return -1;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail(why, "open", path);
  int failed = scan_file(fd, path, why);
  close(fd);
  return failed;
}

const struct sf_run* sf_free_runs(size_t* count) {
  *count = nb_runs;
  return runs;
}

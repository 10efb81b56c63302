// SPDX-License-Identifier: BSD-3-Clause
#include "tools/guest/sf_churn.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/prctl.h>

enum { kPageBytes = 4096, kWordsPerPage = kPageBytes / sizeof(uint64_t) };
enum { kMaxPiecePages = 256, kPagesPerMb = 256, kNap = 1000, kPatience = 60000 };

/// What the agent and its child share.
struct shared {
  atomic_bool stop, ended;
  _Atomic uint64_t nb_verified, nb_bad;
};

struct piece {
  uint64_t* words;
  size_t nb_pages;
  uint64_t seed;
};

static struct shared* shared;  // of the child that runs; NULL: none does

static uint64_t next_random(uint64_t* state) {
  *state ^= *state << 13;  // xorshift64
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

/// Private memory, or a file of the page cache: they come from different lists of the kernel.
static void* take_pages(size_t bytes, bool from_file) {
  if (!from_file)
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int fd = memfd_create("churn", MFD_CLOEXEC);
  if (fd < 0) return MAP_FAILED;
  void* at = ftruncate(fd, (off_t)bytes) == 0
                 ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                 : MAP_FAILED;
  close(fd);
  return at;
}

static void fill(struct piece* piece, uint64_t* random) {
  piece->nb_pages = 1 + next_random(random) % kMaxPiecePages;
  piece->seed = next_random(random);
  void* at = take_pages(piece->nb_pages * kPageBytes, (next_random(random) & 1U) != 0);
  piece->words = at == MAP_FAILED ? NULL : at;
  for (size_t i = 0; piece->words != NULL && i < piece->nb_pages * kWordsPerPage; ++i)
    piece->words[i] = piece->seed + i;
}

static void check(const struct piece* piece) {
  for (size_t page = 0; piece->words != NULL && page < piece->nb_pages; ++page) {
    bool good = true;
    for (size_t i = page * kWordsPerPage; i < (page + 1) * kWordsPerPage; ++i)
      good = good && piece->words[i] == piece->seed + i;
    ++shared->nb_verified;
    if (!good) ++shared->nb_bad;
  }
}

static void churn(struct piece* pieces, size_t nb_pieces) {
  uint64_t random = 0x9e3779b97f4a7c15ULL;
  while (!atomic_load(&shared->stop)) {
    struct piece* piece = &pieces[next_random(&random) % nb_pieces];
    check(piece);
    if (piece->words != NULL) munmap(piece->words, piece->nb_pages * kPageBytes);
    fill(piece, &random);
  }
  for (size_t i = 0; i < nb_pieces; ++i) check(&pieces[i]);
  atomic_store(&shared->ended, true);
}

/// The child's name in the table of processes is gone when it ends, so it says itself that it has.
static int stop(struct sf_churn_report* report) {
  if (shared == NULL) return 0;
  atomic_store(&shared->stop, true);
  int waited = 0;
  while (!atomic_load(&shared->ended) && waited++ < kPatience) usleep(kNap);
  bool ended = atomic_load(&shared->ended);
  report->nb_verified = shared->nb_verified;
  report->nb_bad = shared->nb_bad;
  munmap(shared, sizeof *shared);
  shared = NULL;
  errno = ECHILD;
  return ended ? 0 : -1;
}

int sf_churn(unsigned mb, struct sf_churn_report* report) {
  memset(report, 0, sizeof *report);
  if (stop(report) != 0) return -1;
  if (mb == 0) return 0;
  size_t nb_pieces = (size_t)mb * kPagesPerMb / (kMaxPiecePages / 2);  // on average they are half
  struct piece* pieces = calloc(nb_pieces, sizeof *pieces);
  void* at = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  shared = at == MAP_FAILED ? NULL : at;
  pid_t child = pieces == NULL || shared == NULL ? -1 : fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    churn(pieces, nb_pieces);
    _exit(0);
  }
  free(pieces);
  if (child >= 0) return 0;
  if (shared != NULL) munmap(shared, sizeof *shared);
  shared = NULL;
  return -1;
}

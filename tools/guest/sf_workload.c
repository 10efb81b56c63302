// SPDX-License-Identifier: BSD-3-Clause
#include "tools/guest/sf_workload.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include <sys/mman.h>
#include <sys/sysinfo.h>

enum { kWordsPerPage = SF_PAGE_BYTES / sizeof(uint64_t) };

// Written by the caller's thread alone while the writer is parked, by the writer alone while it is
// not.
static uint64_t* words;
static uint32_t* generations;  // of each page: what its content must be
static size_t nb_pages_all;
static _Atomic uint64_t nb_rewritten;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool has_writer;
static bool park;       // the writer shall wait
static bool is_parked;  // it does
static size_t nb_pages_dirty;

static uint64_t word_at(size_t page, uint32_t generation, size_t word) {
  uint64_t x = (page * kWordsPerPage + word + 1) ^ ((uint64_t)generation << 40);
  x ^= x >> 33;  // Murmur3's finaliser
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return x ^ (x >> 33);
}

static void write_page(size_t page) {
  uint64_t* to = words + page * kWordsPerPage;
  for (size_t i = 0; i < kWordsPerPage; ++i) to[i] = word_at(page, generations[page], i);
}

static bool is_good(size_t page) {
  const uint64_t* at = words + page * kWordsPerPage;
  for (size_t i = 0; i < kWordsPerPage; ++i)
    if (at[i] != word_at(page, generations[page], i)) return false;
  return true;
}

static void* rewrite(void* unused) {
  (void)unused;
  for (size_t next = 0;;) {
    pthread_mutex_lock(&lock);
    while (park || nb_pages_dirty == 0) {
      is_parked = true;
      pthread_cond_broadcast(&changed);
      pthread_cond_wait(&changed, &lock);
    }
    is_parked = false;
    if (next >= nb_pages_dirty) next = 0;
    pthread_mutex_unlock(&lock);
    ++generations[next];
    write_page(next++);
    ++nb_rewritten;
  }
  return NULL;
}

static void stop_writer(void) {
  pthread_mutex_lock(&lock);
  park = true;
  while (has_writer && !is_parked) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
}

/// @param nb_pages  it shall rewrite, 0: none
static void resume_writer(size_t nb_pages) {
  pthread_mutex_lock(&lock);
  park = false;
  nb_pages_dirty = nb_pages;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
}

/// Whether the VM would live on with this much, the memory held now given back.
static bool fits(size_t bytes) {
  struct sysinfo info;
  if (sysinfo(&info) != 0) return false;
  uint64_t available = (uint64_t)info.freeram * info.mem_unit + nb_pages_all * SF_PAGE_BYTES;
  return bytes <= available / 5 * 4;
}

static void release(void) {
  if (words != NULL) munmap(words, nb_pages_all * SF_PAGE_BYTES);
  free(generations);
  words = NULL;
  generations = NULL;
  nb_pages_all = 0;
  nb_rewritten = 0;
}

int sf_workload_fill(unsigned mb) {
  size_t bytes = (size_t)mb << 20;
  errno = EINVAL;
  if (mb == 0) return -1;
  errno = ENOMEM;
  if (!fits(bytes)) return -1;
  stop_writer();
  resume_writer(0);
  release();
  generations = calloc(bytes / SF_PAGE_BYTES, sizeof *generations);
  if (generations == NULL) return -1;
  void* at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) {
    release();
    return -1;
  }
  words = at;
  nb_pages_all = bytes / SF_PAGE_BYTES;
  for (size_t page = 0; page < nb_pages_all; ++page) write_page(page);
  return 0;
}

struct sf_verdict sf_workload_verify(void) {
  struct sf_verdict verdict = {.nb_pages = nb_pages_all, .first_bad = -1};
  stop_writer();
  for (size_t page = 0; page < nb_pages_all; ++page) {
    if (is_good(page)) continue;
    if (verdict.nb_bad++ == 0) verdict.first_bad = (long)page;
  }
  resume_writer(nb_pages_dirty);
  return verdict;
}

int sf_workload_dirty(size_t nb_pages) {
  pthread_t writer;
  stop_writer();
  int error = has_writer || nb_pages == 0 ? 0 : pthread_create(&writer, NULL, rewrite, NULL);
  has_writer = has_writer || (nb_pages > 0 && error == 0);
  resume_writer(nb_pages < nb_pages_all ? nb_pages : nb_pages_all);
  errno = error;
  return error == 0 ? 0 : -1;
}

uint64_t sf_workload_rewritten(void) { return nb_rewritten; }

size_t sf_workload_pages(void) { return nb_pages_all; }

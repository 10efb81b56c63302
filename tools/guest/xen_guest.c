// SPDX-License-Identifier: BSD-3-Clause
// The only program of a Xen guest in the test bed: fills memory with a pattern, and each second
// looks at all of it and rewrites a part, so that every page is one that a clone must have right.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>

enum { kPage = 4096, kMiB = 1 << 20, kDefaultMiB = 64, kRewritten = 1024 };

static uint64_t word_of(size_t page, uint64_t version) {
  return (page + 1) * 0x9e3779b97f4a7c15ULL ^ version * 0xff51afd7ed558ccdULL;
}

static void fill(uint64_t* words, size_t page, uint64_t version) {
  for (size_t i = 0; i < kPage / sizeof *words; ++i) words[i] = word_of(page, version) + i;
}

static int is_good(const uint64_t* words, size_t page, uint64_t version) {
  for (size_t i = 0; i < kPage / sizeof *words; ++i)
    if (words[i] != word_of(page, version) + i) return 0;
  return 1;
}

int main(void) {
  const char* wanted = getenv("SF_MIB");  // of the kernel's command line
  const size_t nb_pages = (size_t)(wanted ? atoi(wanted) : kDefaultMiB) * kMiB / kPage;
  char* memory = mmap(NULL, nb_pages * kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) {
    perror("guest: mmap");
    return 1;
  }
  setvbuf(stdout, NULL, _IOLBF, 0);
  uint64_t* versions = calloc(nb_pages, sizeof *versions);
  for (size_t p = 0; p < nb_pages; ++p) fill((uint64_t*)(memory + p * kPage), p, 0);
  for (uint64_t tick = 1;; ++tick) {
    size_t nb_bad = 0;
    for (size_t p = 0; p < nb_pages; ++p)
      nb_bad += !is_good((const uint64_t*)(memory + p * kPage), p, versions[p]);
    for (size_t i = 0; i < kRewritten; ++i) {
      const size_t p = (tick * kRewritten + i) % nb_pages;
      versions[p] = tick;
      fill((uint64_t*)(memory + p * kPage), p, tick);
    }
    printf("guest: tick=%llu pages=%zu bad=%zu\n", (unsigned long long)tick, nb_pages, nb_bad);
    sleep(1);
  }
}

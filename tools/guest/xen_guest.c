// SPDX-License-Identifier: BSD-3-Clause
// The init of a Xen guest in the test bed: fills memory with a pattern, and each second looks at
// all of it and rewrites a part, so that every page is one that a clone must have right. On the
// kernel's command line: SF_MIB of pattern; SF_FILL_MIB that it takes, fills, checks and gives back
// in the first second and each from SF_FILL_FROM on; SF_LOOKERS threads that look at the pattern, a
// part each; SF_REST_MS between two looks, usually a second; SF_CPUS that run in the end, where the
// kernel was told maxcpus=1; SF_CLAIM_MS for sf-xen-agent, which runs if this is there.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>

enum { kPage = 4096, kMiB = 1 << 20, kDefaultMiB = 64, kRewritten = 1024, kMostLookers = 64 };

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

static int setting(const char* variable, int usual) {
  const char* wanted = getenv(variable);
  return wanted ? atoi(wanted) : usual;
}

static char* take_memory(size_t nb_pages, int flags) {
  char* memory = mmap(NULL, nb_pages * kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  if (memory == MAP_FAILED) {
    perror("guest: mmap");
    exit(1);
  }
  return memory;
}

static int64_t now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

// Memory that was somebody else's a moment ago, and is free again afterwards.
static size_t churn(size_t nb_pages, uint64_t tick) {
  if (nb_pages == 0) return 0;
  size_t nb_bad = 0;
  char* memory = take_memory(nb_pages, 0);
  for (size_t p = 0; p < nb_pages; ++p) fill((uint64_t*)(memory + p * kPage), p, tick);
  for (size_t p = 0; p < nb_pages; ++p)
    nb_bad += !is_good((const uint64_t*)(memory + p * kPage), p, tick);
  munmap(memory, nb_pages * kPage);
  return nb_bad;
}

struct part {
  const char* memory;
  const uint64_t* versions;
  size_t from, to, nb_bad;
};

static void* look(void* argument) {
  struct part* part = argument;
  part->nb_bad = 0;
  for (size_t p = part->from; p < part->to; ++p)
    part->nb_bad += !is_good((const uint64_t*)(part->memory + p * kPage), p, part->versions[p]);
  return NULL;
}

// At all of the pattern, by threads if there are more than one. Returns how many pages are bad.
static size_t look_at_all(const char* memory, const uint64_t* versions, size_t nb_pages, int nb) {
  struct part parts[kMostLookers];
  pthread_t threads[kMostLookers];
  size_t nb_bad = 0;
  for (int i = 0; i < nb; ++i) {
    const size_t from = nb_pages * (size_t)i / (size_t)nb;
    parts[i] = (struct part){memory, versions, from, nb_pages * (size_t)(i + 1) / (size_t)nb, 0};
    if (nb == 1)
      look(&parts[i]);
    else if (pthread_create(&threads[i], NULL, look, &parts[i]) != 0)
      exit(1);
  }
  for (int i = 0; i < nb; ++i) {
    if (nb > 1) pthread_join(threads[i], NULL);
    nb_bad += parts[i].nb_bad;
  }
  return nb_bad;
}

// One after the other, once all is quiet: while a kernel starts each waits for all others again and
// again, and where many share a CPU that takes minutes.
static void start_cpus(void) {
  const int nb_cpus = setting("SF_CPUS", 1);
  if (nb_cpus == 1) return;
  mkdir("/sys", 0755);
  if (mount("sysfs", "/sys", "sysfs", 0, NULL) != 0) perror("guest: mount /sys");
  for (int cpu = 1; cpu < nb_cpus; ++cpu) {
    char path[64];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/online", cpu);
    FILE* file = fopen(path, "w");
    if (file == NULL || fputs("1", file) == EOF || fclose(file) != 0) perror(path);
  }
}

static void start_agent(void) {
  const char* claim_ms = getenv("SF_CLAIM_MS");
  if (claim_ms == NULL) return;
  mkdir("/proc", 0755);
  mkdir("/dev", 0755);
  if (mount("proc", "/proc", "proc", 0, NULL) != 0) perror("guest: mount /proc");
  // The kernel may have done this one itself.
  if (access("/dev/xen/xenbus", F_OK) != 0 && mount("dev", "/dev", "devtmpfs", 0, NULL) != 0)
    perror("guest: mount /dev");
  if (fork() != 0) return;
  execl("/sf-xen-agent", "sf-xen-agent", claim_ms, (char*)NULL);
  perror("guest: /sf-xen-agent");
  _exit(1);
}

int main(void) {
  const size_t nb_pages = (size_t)setting("SF_MIB", kDefaultMiB) * kMiB / kPage;
  const size_t nb_churned = (size_t)setting("SF_FILL_MIB", 0) * kMiB / kPage;
  const uint64_t churn_from = (uint64_t)setting("SF_FILL_FROM", 1);
  const useconds_t rest_us = (useconds_t)setting("SF_REST_MS", 1000) * 1000;
  int nb_lookers = setting("SF_LOOKERS", 1);
  if (nb_lookers < 1 || nb_lookers > kMostLookers) nb_lookers = 1;
  start_agent();
  start_cpus();
  char* memory = take_memory(nb_pages, MAP_POPULATE);
  setvbuf(stdout, NULL, _IOLBF, 0);
  uint64_t* versions = calloc(nb_pages, sizeof *versions);
  for (size_t p = 0; p < nb_pages; ++p) fill((uint64_t*)(memory + p * kPage), p, 0);
  for (uint64_t tick = 1;; ++tick) {
    const int64_t began = now_us();
    size_t nb_bad = tick == 1 || tick >= churn_from ? churn(nb_churned, tick) : 0;
    nb_bad += look_at_all(memory, versions, nb_pages, nb_lookers);
    const int64_t looked_us = now_us() - began;
    for (size_t i = 0; i < kRewritten; ++i) {
      const size_t p = (tick * kRewritten + i) % nb_pages;
      versions[p] = tick;
      fill((uint64_t*)(memory + p * kPage), p, tick);
    }
    printf("guest: tick=%llu pages=%zu bad=%zu us=%lld\n", (unsigned long long)tick, nb_pages,
           nb_bad, (long long)looked_us);
    usleep(rest_us);
  }
}

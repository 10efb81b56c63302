// SPDX-License-Identifier: BSD-3-Clause
#include "tools/guest/sf_shared_bitmap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "tools/guest/sf_free_scan.h"

enum { kPageBytes = 4096, kHugeBytes = 2 << 20 };
enum { kClaimedByGuest = 2 };  // of the two bits of a page

#define FOLDER "/run/snowfabric"
#define FILE_NAME FOLDER "/bitmap"
#define NB_HUGE "/proc/sys/vm/nr_hugepages"

static int fail(const char* what) {
  fprintf(stderr, "sf-xen-agent: %s: %s\n", what, strerror(errno));
  return -1;
}

/// Beside those that others have reserved.
static int reserve_huge_page(void) {
  unsigned long nb_reserved = 0, nb_now = 0;
  FILE* file = fopen(NB_HUGE, "r+e");
  if (file == NULL) return fail(NB_HUGE);
  int ok = fscanf(file, "%lu", &nb_reserved) == 1 && fseek(file, 0, SEEK_SET) == 0 &&
           fprintf(file, "%lu\n", nb_reserved + 1) > 0 && fflush(file) == 0 &&
           fseek(file, 0, SEEK_SET) == 0 && fscanf(file, "%lu", &nb_now) == 1;
  fclose(file);
  if (ok && nb_now > nb_reserved) return 0;
  errno = ENOMEM;
  return fail("reserve a huge page of 2 MiB in " NB_HUGE);
}

static int is_hugetlbfs(void) {
  struct statfs is;
  return statfs(FOLDER, &is) == 0 && is.f_type == HUGETLBFS_MAGIC;
}

/// @return the file, made or found; -1
static int open_file(void) {
  const char* path = secure_getenv("SF_BITMAP_FILE");  // for tests: of any file system
  if (path != NULL) return open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  mkdir("/run", 0755);
  mkdir(FOLDER, 0700);
  if (!is_hugetlbfs() &&
      mount("snowfabric", FOLDER, "hugetlbfs", MS_NOSUID | MS_NODEV, "pagesize=2M,mode=0700") != 0)
    return fail("mount hugetlbfs at " FOLDER);
  int fd = open(FILE_NAME, O_RDWR | O_CLOEXEC);
  if (fd >= 0) return fd;
  if (reserve_huge_page() != 0) return -1;
  fd = open(FILE_NAME, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  return fd < 0 ? fail(FILE_NAME) : fd;
}

/// @return the frame behind an address that was touched; 0: the kernel does not say
static uint64_t frame_of(const void* address) {
  uint64_t entry = 0;
  int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  off_t at = (off_t)((uintptr_t)address / kPageBytes * sizeof entry);
  if (fd < 0 || pread(fd, &entry, sizeof entry, at) != sizeof entry) entry = 0;
  if (fd >= 0) close(fd);
  return entry & ((UINT64_C(1) << 55) - 1);
}

int sf_bitmap_make(struct sf_bitmap* bitmap, uint64_t nb_pages) {
  size_t nb_presence =
      (nb_pages + SF_BITMAP_PAGES_PER_PRESENCE_WORD - 1) / SF_BITMAP_PAGES_PER_PRESENCE_WORD;
  size_t nb_free = (nb_pages + SF_BITMAP_PAGES_PER_FREE_WORD - 1) / SF_BITMAP_PAGES_PER_FREE_WORD;
  size_t nb_bytes = SF_BITMAP_PRESENCE_AT + (nb_presence + nb_free) * sizeof(uint64_t);
  if (nb_bytes > kHugeBytes) {
    errno = EFBIG;
    return fail("more RAM than one huge page has bits for");
  }
  int fd = open_file();
  if (fd < 0) return -1;
  if (ftruncate(fd, kHugeBytes) != 0) return fail("size of the bitmap's file");
  void* at = mmap(NULL, kHugeBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  close(fd);
  if (at == MAP_FAILED) return fail("mmap of the bitmap");
  bitmap->header = at;
  bitmap->presence = (uint64_t*)((char*)at + SF_BITMAP_PRESENCE_AT);
  bitmap->free = bitmap->presence + nb_presence;
  bitmap->nb_free_words = nb_free;
  bitmap->nb_shared = (nb_bytes + kPageBytes - 1) / kPageBytes;
  struct sf_bitmap_header* header = bitmap->header;
  if (header->magic != SF_BITMAP_MAGIC || header->nb_pages != nb_pages) {
    memset(at, 0, kHugeBytes);
    header->version = SF_BITMAP_VERSION;
    header->nb_pages = nb_pages;
    __atomic_store_n(&header->magic, SF_BITMAP_MAGIC, __ATOMIC_RELEASE);
  }
  bitmap->first_frame = frame_of(at);
  if (bitmap->first_frame != 0) return 0;
  errno = EPERM;
  return fail("which frame the bitmap is in");
}

uint64_t sf_bitmap_report(struct sf_bitmap* bitmap) {
  uint64_t nb_pages = bitmap->header->nb_pages, nb_free = 0;
  memset(bitmap->free, 0, bitmap->nb_free_words * sizeof *bitmap->free);
  size_t count;
  const struct sf_run* run = sf_free_runs(&count);
  for (; count > 0; --count, ++run)
    for (uint64_t page = run->first; page < run->first + run->nb_pages && page < nb_pages; ++page) {
      bitmap->free[page / SF_BITMAP_PAGES_PER_FREE_WORD] |=
          UINT64_C(1) << (page % SF_BITMAP_PAGES_PER_FREE_WORD);
      ++nb_free;
    }
  return nb_free;
}

/// @return whether it was absent, and is the guest's now
static int claim(uint64_t* word, unsigned shift) {
  uint64_t old = __atomic_load_n(word, __ATOMIC_RELAXED);
  do {
    if ((old >> shift & 3U) != 0) return 0;
  } while (!__atomic_compare_exchange_n(word, &old, old | (uint64_t)kClaimedByGuest << shift, 1,
                                        __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
  return 1;
}

uint64_t sf_bitmap_claim(struct sf_bitmap* bitmap) {
  uint64_t nb_claimed = 0, nb_pages = bitmap->header->nb_pages;
  size_t count;
  const struct sf_run* run = sf_free_runs(&count);
  for (; count > 0; --count, ++run)
    for (uint64_t page = run->first; page < run->first + run->nb_pages && page < nb_pages; ++page)
      nb_claimed += (uint64_t)claim(&bitmap->presence[page / SF_BITMAP_PAGES_PER_PRESENCE_WORD],
                                    (unsigned)(page % SF_BITMAP_PAGES_PER_PRESENCE_WORD) * 2);
  return nb_claimed;
}

int sf_bitmap_lacks_pages(const struct sf_bitmap* bitmap) {
  uint64_t nb_pages = bitmap->header->nb_pages;
  const uint64_t per_word = SF_BITMAP_PAGES_PER_PRESENCE_WORD;
  for (uint64_t page = 0; page < nb_pages; page += per_word) {
    uint64_t word = __atomic_load_n(&bitmap->presence[page / per_word], __ATOMIC_RELAXED);
    uint64_t nb_here = nb_pages - page < per_word ? nb_pages - page : per_word;
    for (uint64_t i = 0; i < nb_here; ++i, word >>= 2)
      if ((word & 3U) == 0) return 1;
  }
  return 0;
}

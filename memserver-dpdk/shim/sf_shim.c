// SPDX-License-Identifier: BSD-3-Clause
// Preload library for a QEMU parent: hands its RAM, registered for write protection, to the
// memserver that asks. docs/shim.md says how it is used. Never changes what QEMU does.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#define EXPORT __attribute__((visibility("default")))

enum { kMaxRegions = 8, kMaxAnswer = 2048 };
static const size_t kMinRam = (size_t)16 << 20;  // smaller mappings are ROMs and buffers

struct region {
  void* base;
  size_t size;
  int fd;  // a copy of ours
  off_t file_offset;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct region regions[kMaxRegions];
static size_t nb_regions;
static bool listening;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static pid_t owner;  // of the socket's file: not a forked child

static void complain(const char* format, ...) {
  char text[256];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  fprintf(stderr, "sf-shim: %s\n", text);
}

// --- memserver -------------------------------------------------------------------------------

/// A userfaultfd with all RAM registered. @return -1 with errno
static int registered(void) {
  int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return -1;
  struct uffdio_api api = {
      .api = UFFD_API,
      .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
  bool ok = ioctl(fd, UFFDIO_API, &api) == 0;
  for (size_t i = 0; ok && i < nb_regions; ++i) {
    struct uffdio_register range = {.range = {(uintptr_t)regions[i].base, regions[i].size},
                                    .mode = UFFDIO_REGISTER_MODE_WP};
    ok = ioctl(fd, UFFDIO_REGISTER, &range) == 0;
  }
  if (ok) return fd;
  int why = errno;
  close(fd);
  errno = why;
  return -1;
}

static void say(int peer, const char* text, const int* fds, size_t nb_fds) {
  char control[CMSG_SPACE(sizeof(int) * (kMaxRegions + 1))] = {0};
  struct iovec iov = {(void*)(uintptr_t)text, strlen(text)};
  struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
  if (nb_fds > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * nb_fds);
    struct cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * nb_fds);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * nb_fds);
  }
  if (sendmsg(peer, &message, MSG_NOSIGNAL) != (ssize_t)iov.iov_len)
    complain("the memserver did not take its answer: %s", strerror(errno));
}

static void refuse(int peer) {
  char text[256];
  int why = errno;
  snprintf(text, sizeof text, "{\"error\": \"%s%s\"}",
           why == EBUSY ? "another memserver holds this memory: " : "userfaultfd: ", strerror(why));
  complain("a memserver was refused: %s", strerror(why));
  say(peer, text, NULL, 0);
}

/// Keeps nothing: when the memserver dies, the kernel frees the memory and wakes its writers.
static void hand_over(int peer) {
  char text[kMaxAnswer];
  int fds[kMaxRegions + 1];
  size_t used = 0, offset = 0;
  fds[0] = registered();
  if (fds[0] < 0) {
    refuse(peer);
    return;
  }
  for (size_t i = 0; i < nb_regions; ++i) {
    used += (size_t)snprintf(text + used, sizeof text - used,
                             "%c{\"base_host_virt_addr\": %ju, \"size\": %zu, \"offset\": %zu, "
                             "\"page_size\": 4096, \"file_offset\": %jd}",
                             i == 0 ? '[' : ',', (uintmax_t)(uintptr_t)regions[i].base,
                             regions[i].size, offset, (intmax_t)regions[i].file_offset);
    offset += regions[i].size;
    fds[i + 1] = regions[i].fd;
  }
  snprintf(text + used, sizeof text - used, "]");
  say(peer, text, fds, nb_regions + 1);
  close(fds[0]);
}

static void* serve(void* argument) {
  int listener = (int)(intptr_t)argument;
  for (;;) {
    int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (peer < 0) {
      usleep(10000);  // out of descriptors, or a peer that went: not for ever
      continue;
    }
    pthread_mutex_lock(&lock);
    hand_over(peer);
    pthread_mutex_unlock(&lock);
    close(peer);
  }
  return NULL;
}

// --- QEMU ------------------------------------------------------------------------------------

static int open_listener(const char* path) {
  if (strlen(path) >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  memcpy(address.sun_path, path, strlen(path) + 1);
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0) return -1;
  // On a socket the mode given here is the mode bind() makes the file with.
  if (fchmod(listener, 0600) == 0 &&
      bind(listener, (const struct sockaddr*)&address, sizeof address) == 0 &&
      listen(listener, 4) == 0)
    return listener;
  int why = errno;
  close(listener);
  errno = why;
  return -1;
}

/// One thread, which takes none of QEMU's signals.
static void start_listening(const char* path) {
  listening = true;  // also if it fails: once is enough to say so
  int listener = open_listener(path);
  if (listener < 0) {
    complain("cannot listen on %s: %s; this VM can only be frozen by background snapshot", path,
             strerror(errno));
    return;
  }
  owner = getpid();
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  int why = pthread_create(&thread, NULL, serve, (void*)(intptr_t)listener);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (why != 0) complain("cannot start its thread: %s", strerror(why));
}

static void remember(void* base, size_t size, int fd, off_t file_offset, const char* path) {
  pthread_mutex_lock(&lock);
  if (nb_regions == kMaxRegions) {
    complain("more than %d parts of RAM", kMaxRegions);
  } else {
    madvise(base, size, MADV_NOHUGEPAGE);  // protection goes by the page
    regions[nb_regions++] = (struct region){base, size, fcntl(fd, F_DUPFD_CLOEXEC, 3), file_offset};
  }
  if (!listening) start_listening(path);
  pthread_mutex_unlock(&lock);
}

static void forget(const void* base) {
  pthread_mutex_lock(&lock);
  for (size_t i = 0; i < nb_regions; ++i)
    if (regions[i].base == base) {
      close(regions[i].fd);
      memmove(&regions[i], &regions[i + 1], (nb_regions - i - 1) * sizeof regions[0]);
      --nb_regions;
      break;
    }
  pthread_mutex_unlock(&lock);
}

/// By the system call: the loader may call before anything else works.
EXPORT void* mmap(void* wanted, size_t size, int protection, int flags, int fd, off_t offset) {
  void* base = (void*)syscall(SYS_mmap, wanted, size, protection, flags, fd, offset);
  if (base == MAP_FAILED || fd < 0 || size < kMinRam || (protection & PROT_WRITE) == 0 ||
      (flags & MAP_SHARED) == 0)
    return base;
  int before = errno;
  const char* path = getenv("SF_SHIM_SOCKET");
  if (path != NULL) remember(base, size, fd, offset, path);
  errno = before;
  return base;
}
EXPORT void* mmap64(void* wanted, size_t size, int protection, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));

EXPORT int munmap(void* base, size_t size) {
  if (size >= kMinRam) forget(base);
  return (int)syscall(SYS_munmap, base, size);
}

__attribute__((destructor)) static void leave(void) {
  if (owner != 0 && owner == getpid()) unlink(address.sun_path);
}

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

#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>

#define EXPORT __attribute__((visibility("default")))

enum { kMaxRegions = 8, kMaxAnswer = 2048 };

struct region {
  void* base;
  size_t size;
  int fd;  // a copy of ours
  off_t file_offset;
};

// Written once, before main(). Without a path nothing here does anything.
static const char* socket_path;
static size_t min_ram_bytes = (size_t)16 << 20;  // smaller mappings are ROMs and buffers

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  // the rest
static struct region regions[kMaxRegions];
static size_t nb_regions;
static bool incomplete;  // RAM that no region stands for: an image without it would be wrong
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

/// @param busy  another memserver is the only reason
static void refuse(int peer, const char* reason, bool busy) {
  char text[256];
  snprintf(text, sizeof text, "{\"error\": \"%s\", \"busy\": %s}", reason, busy ? "true" : "false");
  complain("a memserver was refused: %s", reason);
  say(peer, text, NULL, 0);
}

static const char* reason_of(int errnum) {
  switch (errnum) {
    case EBUSY:
      return "another memserver holds this memory (with --detach it lets go once it has a copy)";
    case EPERM:
      return "QEMU may not use userfaultfd: it needs CAP_SYS_PTRACE or "
             "sysctl vm.unprivileged_userfaultfd=1";
    case EINVAL:
      return "this memory cannot be write-protected: it takes a memfd or a file in /dev/shm, "
             "and Linux 5.19";
    default: return strerror(errnum);
  }
}

/// Keeps nothing: when the memserver dies, the kernel frees the memory and wakes its writers.
static void hand_over(int peer) {
  char text[kMaxAnswer];
  int fds[kMaxRegions + 1];
  size_t used = 0, offset = 0;
  if (nb_regions == 0 || incomplete) {
    refuse(peer, incomplete ? "not all of the RAM is known, see QEMU's stderr" : "no RAM is mapped",
           false);
    return;
  }
  fds[0] = registered();
  if (fds[0] < 0) {
    refuse(peer, reason_of(errno), errno == EBUSY);
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

/// The memory is its user's, and root's: whatever the modes of the socket and its folder are.
static bool is_ours(int peer) {
  struct ucred credentials;
  socklen_t size = sizeof credentials;
  if (getsockopt(peer, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) return false;
  if (credentials.uid == 0 || credentials.uid == geteuid()) return true;
  complain("process %d of user %u was refused", (int)credentials.pid, (unsigned)credentials.uid);
  return false;
}

static void* serve(void* argument) {
  int listener = (int)(intptr_t)argument;
  for (;;) {
    int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (peer < 0) {
      usleep(10000);  // out of descriptors, or a peer that went: not for ever
      continue;
    }
    if (is_ours(peer)) {
      pthread_mutex_lock(&lock);
      hand_over(peer);
      pthread_mutex_unlock(&lock);
    }
    close(peer);
  }
  return NULL;
}

// --- QEMU ------------------------------------------------------------------------------------

static int open_listener(const char* path) {
  if (path[0] != '/' || strlen(path) >= sizeof address.sun_path) {
    errno = path[0] == '/' ? ENAMETOOLONG : EINVAL;  // QEMU may change its directory
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
static void start_listening(void) {
  listening = true;  // also if it fails: once is enough to say so
  int listener = open_listener(socket_path);
  if (listener < 0) {
    complain("cannot listen on SF_SHIM_SOCKET=%s: %s; it takes the absolute path of a new socket",
             socket_path, strerror(errno));
    return;
  }
  owner = getpid();
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  int why = pthread_create(&thread, NULL, serve, (void*)(intptr_t)listener);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (why == 0) return;
  complain("cannot start its thread: %s", strerror(why));
  close(listener);  // whoever connects is refused, and does not wait
}

/// Forgets every region with a byte in the range; half a region is of no use. @pre locked
static void forget(const void* base, size_t size) {
  const uintptr_t first = (uintptr_t)base;
  size_t kept = 0;
  for (size_t i = 0; i < nb_regions; ++i) {
    const uintptr_t start = (uintptr_t)regions[i].base;
    if (start < first + size && first < start + regions[i].size)
      close(regions[i].fd);
    else
      regions[kept++] = regions[i];
  }
  nb_regions = kept;
}

/// @return NULL, or why the memory cannot be handed over
static const char* remember(void* base, size_t size, int fd, off_t file_offset) {
  struct statfs file_system;
  if (fstatfs(fd, &file_system) == 0 && file_system.f_type == HUGETLBFS_MAGIC)
    return "huge pages cannot be protected by the page";
  if (nb_regions == kMaxRegions) return "it is in more than 8 parts";
  const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (copy < 0) return strerror(errno);
  madvise(base, size, MADV_NOHUGEPAGE);  // protection goes by the page
  regions[nb_regions++] = (struct region){base, size, copy, file_offset};
  return NULL;
}

static void on_ram(void* base, size_t size, int fd, off_t file_offset) {
  pthread_mutex_lock(&lock);
  forget(base, size);  // MAP_FIXED over an older one
  const char* why = remember(base, size, fd, file_offset);
  if (why != NULL) {
    incomplete = true;
    complain("cannot hand over %zu bytes of RAM: %s", size, why);
  }
  if (!listening) start_listening();
  pthread_mutex_unlock(&lock);
}

/// By the system call: the loader may call before anything else works.
EXPORT void* mmap(void* wanted, size_t size, int protection, int flags, int fd, off_t offset) {
  void* base = (void*)syscall(SYS_mmap, wanted, size, protection, flags, fd, offset);
  if (socket_path == NULL || base == MAP_FAILED || fd < 0 || size < min_ram_bytes ||
      (protection & PROT_WRITE) == 0 || (flags & MAP_SHARED) == 0 || (flags & MAP_ANONYMOUS) != 0)
    return base;
  const int before = errno;
  on_ram(base, size, fd, offset);
  errno = before;
  return base;
}
EXPORT void* mmap64(void* wanted, size_t size, int protection, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));

EXPORT int munmap(void* base, size_t size) {
  if (socket_path != NULL && size >= min_ram_bytes) {
    pthread_mutex_lock(&lock);
    forget(base, size);
    pthread_mutex_unlock(&lock);
  }
  return (int)syscall(SYS_munmap, base, size);
}

/// @pre locked
static bool in_ram(const void* base, size_t size) {
  for (size_t i = 0; i < nb_regions; ++i) {
    const uintptr_t start = (uintptr_t)regions[i].base;
    if (start < (uintptr_t)base + size && (uintptr_t)base < start + regions[i].size) return true;
  }
  return false;
}

/// QEMU asks for huge pages after mmap().
EXPORT int madvise(void* base, size_t size, int advice) {
  if (socket_path != NULL && advice == MADV_HUGEPAGE) {
    pthread_mutex_lock(&lock);
    const bool ram = in_ram(base, size);
    pthread_mutex_unlock(&lock);
    if (ram) return 0;
  }
  return (int)syscall(SYS_madvise, base, size, advice);
}

__attribute__((constructor)) static void enter(void) {
  const char* path = getenv("SF_SHIM_SOCKET");
  const char* bytes = getenv("SF_SHIM_RAM_BYTES");
  if (path == NULL) return;
  if (bytes != NULL) {
    char* end;
    const unsigned long long number = strtoull(bytes, &end, 10);
    if (number >= 4096 && *end == '\0')
      min_ram_bytes = number;
    else
      complain("SF_SHIM_RAM_BYTES=%s is no number of bytes from 4096 up; taking %zu", bytes,
               min_ram_bytes);
  }
  socket_path = path;
}

__attribute__((destructor)) static void leave(void) {
  if (owner != 0 && owner == getpid()) unlink(address.sun_path);
}

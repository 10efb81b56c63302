// SPDX-License-Identifier: BSD-3-Clause
// Preload library for a QEMU clone whose RAM is memtap's image file, mapped privately: registers
// the mapping with a userfaultfd and hands that to memtap, and to the next one if memtap dies.
// docs/shim.md says how it is used.
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

static const char kImageName[] = "/memfd:snowfabric-image-";  // as /proc/self/fd shows it
enum { kRetryMicroseconds = 20000, kRetriesPerComplaint = 250 };

// Written before the thread starts.
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static char message[256];  // Firecracker's handshake, and which file of which image is mapped
static int uffd = -1;      // open until all pages are there: without it missing ones read as zeros
static uintptr_t ram;      // where it is, and how large
static size_t ram_bytes;

static void complain(const char* format, ...) {
  char text[256];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  fprintf(stderr, "sf-clone: %s\n", text);
}

/// A clone without its memory must not run.
static void give_up(const char* what) {
  complain("%s: %s", what, strerror(errno));
  _exit(1);
}

static bool send_handshake(int memtap) {
  char control[CMSG_SPACE(sizeof uffd)] = {0};
  struct iovec iov = {message, strlen(message)};
  struct msghdr header = {
      .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr* rights = CMSG_FIRSTHDR(&header);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof uffd);
  memcpy(CMSG_DATA(rights), &uffd, sizeof uffd);
  return sendmsg(memtap, &header, MSG_NOSIGNAL) == (ssize_t)iov.iov_len;
}

/// @return a socket that memtap closes when it ends; -1 with errno
static int hand_over(void) {
  int memtap = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (memtap < 0) return -1;
  if (connect(memtap, (const struct sockaddr*)&address, sizeof address) == 0 &&
      send_handshake(memtap))
    return memtap;
  int why = errno;
  close(memtap);
  errno = why;
  return -1;
}

/// Waits for memtap's end, then for another: until then whoever touches a missing page waits. A
/// byte from memtap says that no page is missing any more.
static void* follow(void* argument) {
  int memtap = (int)(intptr_t)argument;
  for (unsigned nb_lost = 0;;) {
    char all;
    ssize_t n = read(memtap, &all, 1);
    if (n < 0 && errno == EINTR) continue;
    close(memtap);
    if (n > 0) break;
    if (nb_lost++ % kRetriesPerComplaint == 0)  // one that refuses us is lost each time
      complain("memtap is gone, or serves another image; waiting for another at %s",
               address.sun_path);
    do usleep(kRetryMicroseconds);
    while ((memtap = hand_over()) < 0);
  }
  close(uffd);
  return NULL;
}

/// One thread, which takes none of QEMU's signals.
static void start_following(int memtap) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  errno = pthread_create(&thread, NULL, follow, (void*)(intptr_t)memtap);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (errno != 0) give_up("cannot start its thread");
}

static void register_missing(void* base, size_t size) {
  madvise(base, size, MADV_NOHUGEPAGE);  // memory comes by the page
  uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  if (uffd < 0)
    give_up("userfaultfd: it needs CAP_SYS_PTRACE or sysctl vm.unprivileged_userfaultfd=1");
  struct uffdio_api api = {.api = UFFD_API};
  struct uffdio_register range = {.range = {(uintptr_t)base, size},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
  if (ioctl(uffd, UFFDIO_API, &api) != 0 || ioctl(uffd, UFFDIO_REGISTER, &range) != 0)
    give_up("cannot register the RAM for userfaultfd");
}

static void on_ram(void* base, size_t size, int fd, off_t offset, const char* image) {
  struct stat st;
  if (uffd >= 0) {
    errno = ENOTSUP;
    give_up("the RAM must be one mapping of the image");
  }
  if (fstat(fd, &st) != 0) give_up("fstat of the image");
  register_missing(base, size);
  ram = (uintptr_t)base;
  ram_bytes = size;
  snprintf(message, sizeof message,
           "[{\"base_host_virt_addr\": %ju, \"size\": %zu, \"offset\": %jd, "
           "\"page_size\": 4096, \"file_inode\": %ju, \"image\": \"%s\"}]",
           (uintmax_t)(uintptr_t)base, size, (intmax_t)offset, (uintmax_t)st.st_ino, image);
  int memtap = hand_over();
  if (memtap < 0) give_up(address.sun_path);
  start_following(memtap);
}

/// Writes the name of memtap's image to `name` if the file is one.
/// @return false: it is another file; one in the place of memtap's ends QEMU
static bool is_image(int fd, char name[64]) {
  char link[32], target[256] = {0}, expected[sizeof address.sun_path + 8];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  if (readlink(link, target, sizeof target - 1) <= 0) return false;
  if (strncmp(target, kImageName, sizeof kImageName - 1) == 0)
    return sscanf(target + sizeof kImageName - 1, "%63[0-9a-f-]", name) == 1;
  snprintf(expected, sizeof expected, "%s.image", address.sun_path);
  errno = ENOENT;  // QEMU makes a file that it does not find
  if (strcmp(target, expected) == 0) give_up("the image is not memtap's; does memtap run?");
  return false;
}

/// By the system call: the loader may call before anything else works.
EXPORT void* mmap(void* wanted, size_t size, int protection, int flags, int fd, off_t offset) {
  void* base = (void*)syscall(SYS_mmap, wanted, size, protection, flags, fd, offset);
  char image[64];
  const int before = errno;
  if (address.sun_path[0] != '\0' && base != MAP_FAILED && fd >= 0 &&
      (flags & (MAP_PRIVATE | MAP_ANONYMOUS)) == MAP_PRIVATE && is_image(fd, image))
    on_ram(base, size, fd, offset, image);
  if (base != MAP_FAILED) errno = before;
  return base;
}
EXPORT void* mmap64(void* wanted, size_t size, int protection, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));

/// QEMU asks for huge pages after mmap(). Where they are allowed for memory files, the kernel might
/// make one of pages that are there and zeros for those that are not.
EXPORT int madvise(void* base, size_t size, int advice) {
  const bool in_ram =
      uffd >= 0 && (uintptr_t)base < ram + ram_bytes && ram < (uintptr_t)base + size;
  if (in_ram && advice == MADV_HUGEPAGE) return 0;
  return (int)syscall(SYS_madvise, base, size, advice);
}

__attribute__((constructor)) static void enter(void) {
  const char* path = getenv("SF_CLONE_SOCKET");
  if (path == NULL) return;
  errno = path[0] == '/' ? ENAMETOOLONG : EINVAL;  // QEMU may change its directory
  if (path[0] != '/' || strlen(path) >= sizeof address.sun_path)
    give_up("SF_CLONE_SOCKET must be the absolute path of memtap's socket");
  memcpy(address.sun_path, path, strlen(path) + 1);
}

// SPDX-License-Identifier: BSD-3-Clause
#include "tools/guest/sf_identity.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <linux/random.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/if_ether.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

const char kSfInterface[] = "eth0";

enum { kLineBytes = 512, kLinkWaitMs = 5000, kLinkPollMs = 5, kMaxPrefix = 30 };

/// Puts the reason together; with errno's text where there is one. @return -1
__attribute__((format(printf, 2, 3))) static int fail(char why[SF_REASON_BYTES], const char* format,
                                                      ...) {
  int error = errno;
  va_list args;
  va_start(args, format);
  vsnprintf(why, SF_REASON_BYTES, format, args);
  va_end(args);
  size_t used = strlen(why);
  if (error != 0) snprintf(why + used, SF_REASON_BYTES - used, ": %s", strerror(error));
  return -1;
}

/// A number without sign or blanks. @return -1: it is none, or above `limit`
static int parse_number(const char* text, int limit) {
  char* end = NULL;
  if (!isdigit((unsigned char)text[0])) return -1;
  errno = 0;
  long value = strtol(text, &end, 10);
  bool good = *end == '\0' && errno == 0 && value <= limit;
  errno = 0;
  return good ? (int)value : -1;
}

/// `size` bytes of two hex digits each, `separator` (0: none) between them.
static bool parse_hex(const char* text, char separator, unsigned char* out, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    if (i > 0 && separator != 0 && *text++ != separator) return false;
    if (!isxdigit((unsigned char)text[0]) || !isxdigit((unsigned char)text[1])) return false;
    char digits[3] = {text[0], text[1], '\0'};
    out[i] = (unsigned char)strtol(digits, NULL, 16);
    text += 2;
  }
  return *text == '\0';
}

static bool parse_hostname(const char* text, char out[SF_HOSTNAME_BYTES]) {
  size_t length = strlen(text);
  if (length == 0 || length >= SF_HOSTNAME_BYTES || text[0] == '-') return false;
  for (size_t i = 0; i < length; ++i)
    if (!isalnum((unsigned char)text[i]) && text[i] != '-') return false;
  memcpy(out, text, length + 1);
  return true;
}

static bool parse_mac(const char* text, unsigned char out[SF_MAC_BYTES]) {
  static const unsigned char kZero[SF_MAC_BYTES];
  bool read = parse_hex(text, ':', out, SF_MAC_BYTES);
  return read && (out[0] & 1) == 0 && memcmp(out, kZero, SF_MAC_BYTES) != 0;
}

/// address/prefix
static bool parse_ip(char* text, struct in_addr* ip, struct in_addr* netmask) {
  char* slash = strchr(text, '/');
  if (slash == NULL) return false;
  *slash = '\0';
  int prefix = parse_number(slash + 1, kMaxPrefix);
  bool good = prefix > 0 && inet_pton(AF_INET, text, ip) == 1 && ip->s_addr != 0;
  if (good) netmask->s_addr = htonl(~0U << (32 - prefix));
  *slash = '/';
  return good;
}

enum { kHostname = 1, kMac = 2, kIp = 4, kSeed = 8 };

/// Takes one key=value. @return the key's bit, 0: unknown key, -1: no good
static int parse_pair(char* pair, struct sf_identity* out) {
  char* value = strchr(pair, '=');
  if (value == NULL) return -1;
  ++value;
  if (strncmp(pair, "hostname=", 9) == 0)
    return parse_hostname(value, out->hostname) ? kHostname : -1;
  if (strncmp(pair, "mac=", 4) == 0) return parse_mac(value, out->mac) ? kMac : -1;
  if (strncmp(pair, "ip=", 3) == 0) return parse_ip(value, &out->ip, &out->netmask) ? kIp : -1;
  if (strncmp(pair, "seed=", 5) == 0)
    return parse_hex(value, 0, out->seed, SF_SEED_BYTES) ? kSeed : -1;
  return 0;
}

int sf_identity_parse(const char* line, int n, struct sf_identity* out, char why[SF_REASON_BYTES]) {
  char copy[kLineBytes];
  char* rest = NULL;
  int seen = 0;
  errno = 0;
  memset(out, 0, sizeof *out);
  snprintf(copy, sizeof copy, "%s", line);
  const char* word = strtok_r(copy, " ", &rest);
  const char* id = strtok_r(NULL, " ", &rest);
  if (word == NULL || strcmp(word, "RET") != 0) return fail(why, "an answer begins with RET");
  out->id = id == NULL ? -1 : parse_number(id, n);
  if (out->id < 0) return fail(why, "RET needs an id from 0 to %d", n);
  for (char* pair; (pair = strtok_r(NULL, " ", &rest)) != NULL;) {
    int key = parse_pair(pair, out);
    if (key < 0) return fail(why, "RET cannot be used: %.60s", pair);
    if ((seen & key) != 0) return fail(why, "RET has it twice: %.60s", pair);
    seen |= key;
  }
  if (out->id == 0) return 0;
  if ((seen & kHostname) == 0) return fail(why, "RET of a clone needs hostname=");
  if ((seen & kSeed) == 0) return fail(why, "RET of a clone needs seed=");
  if (((seen & kMac) != 0) != ((seen & kIp) != 0))
    return fail(why, "RET needs both mac= and ip=, or neither");
  out->has_network = (seen & kMac) != 0;
  return 0;
}

/// Both ways in: written bytes are mixed in, RNDADDENTROPY mixes and counts them, and RNDRESEEDCRNG
/// makes the generator start from them now and not in up to a minute.
static int reseed(const unsigned char seed[SF_SEED_BYTES], char why[SF_REASON_BYTES]) {
  union {
    struct rand_pool_info info;
    unsigned char room[sizeof(struct rand_pool_info) + SF_SEED_BYTES];
  } pool;
  pool.info.entropy_count = SF_SEED_BYTES * 8;
  pool.info.buf_size = SF_SEED_BYTES;
  memcpy(pool.room + sizeof pool.info, seed, SF_SEED_BYTES);
  int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
  if (fd < 0) return fail(why, "cannot open /dev/urandom");
  int failed = 0;
  if (write(fd, seed, SF_SEED_BYTES) != SF_SEED_BYTES)
    failed = fail(why, "cannot write the seed to /dev/urandom");
  else if (ioctl(fd, RNDADDENTROPY, &pool.info) != 0)
    failed = fail(why, "RNDADDENTROPY failed");
  else if (ioctl(fd, RNDRESEEDCRNG) != 0)
    failed = fail(why, "RNDRESEEDCRNG failed");
  close(fd);
  explicit_bzero(&pool, sizeof pool);
  return failed;
}

static void name_interface(struct ifreq* request) {
  memset(request, 0, sizeof *request);
  strcpy(request->ifr_name, kSfInterface);
}

static int set_up(int fd, bool up, char why[SF_REASON_BYTES]) {
  struct ifreq request;
  name_interface(&request);
  if (ioctl(fd, SIOCGIFFLAGS, &request) != 0)
    return fail(why, "cannot ask for the state of %s", kSfInterface);
  request.ifr_flags = (short)(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
  if (ioctl(fd, SIOCSIFFLAGS, &request) != 0)
    return fail(why, "cannot set %s %s", kSfInterface, up ? "up" : "down");
  return 0;
}

static int set_mac(int fd, const unsigned char mac[SF_MAC_BYTES], char why[SF_REASON_BYTES]) {
  struct ifreq request;
  name_interface(&request);
  request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
  memcpy(request.ifr_hwaddr.sa_data, mac, SF_MAC_BYTES);
  if (ioctl(fd, SIOCSIFHWADDR, &request) != 0)
    return fail(why, "cannot set the MAC of %s", kSfInterface);
  return 0;
}

static int set_address(int fd, unsigned long what, struct in_addr address,
                       char why[SF_REASON_BYTES]) {
  struct ifreq request;
  name_interface(&request);
  struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = address};
  memcpy(&request.ifr_addr, &in, sizeof in);
  if (ioctl(fd, what, &request) != 0)
    return fail(why, "cannot set the %s of %s", what == SIOCSIFADDR ? "IP" : "netmask",
                kSfInterface);
  return 0;
}

static int set_network(const struct sf_identity* identity, char why[SF_REASON_BYTES]) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return fail(why, "cannot make a socket");
  int failed = 0;
  // Down: not every driver changes its MAC while up, and neighbours learnt before the fork are
  // forgotten.
  if (set_up(fd, false, why) != 0 || set_mac(fd, identity->mac, why) != 0 ||
      set_address(fd, SIOCSIFADDR, identity->ip, why) != 0 ||
      set_address(fd, SIOCSIFNETMASK, identity->netmask, why) != 0 || set_up(fd, true, why) != 0)
    failed = -1;
  close(fd);
  return failed;
}

int sf_identity_apply(const struct sf_identity* identity, char why[SF_REASON_BYTES]) {
  bool has_interface = if_nametoindex(kSfInterface) != 0;
  errno = 0;
  if (has_interface && !identity->has_network)
    return fail(why, "RET needs mac= and ip=: this VM has %s, with its parent's MAC", kSfInterface);
  if (!has_interface && identity->has_network)
    return fail(why, "RET has a mac=, but this VM no %s", kSfInterface);
  if (reseed(identity->seed, why) != 0) return -1;
  if (sethostname(identity->hostname, strlen(identity->hostname)) != 0)
    return fail(why, "cannot set the hostname %s", identity->hostname);
  return identity->has_network ? set_network(identity, why) : 0;
}

static int wait_link(int fd, char why[SF_REASON_BYTES]) {
  struct ifreq request;
  name_interface(&request);
  for (int waited = 0; waited < kLinkWaitMs; waited += kLinkPollMs) {
    if (ioctl(fd, SIOCGIFFLAGS, &request) != 0)
      return fail(why, "cannot ask for the state of %s", kSfInterface);
    if ((request.ifr_flags & IFF_RUNNING) != 0) return 0;
    usleep(kLinkPollMs * 1000);
  }
  errno = 0;
  return fail(why, "%s has no link after %d ms: is it still down at the host's end?", kSfInterface,
              kLinkWaitMs);
}

static int send_arp(int fd, const struct sf_identity* identity, char why[SF_REASON_BYTES]) {
  struct ether_arp arp = {.ea_hdr = {.ar_hrd = htons(ARPHRD_ETHER),
                                     .ar_pro = htons(ETHERTYPE_IP),
                                     .ar_hln = SF_MAC_BYTES,
                                     .ar_pln = sizeof identity->ip,
                                     .ar_op = htons(ARPOP_REQUEST)}};
  memcpy(arp.arp_sha, identity->mac, SF_MAC_BYTES);
  memcpy(arp.arp_spa, &identity->ip, sizeof identity->ip);
  memcpy(arp.arp_tpa, &identity->ip, sizeof identity->ip);
  struct sockaddr_ll to = {.sll_family = AF_PACKET,
                           .sll_protocol = htons(ETH_P_ARP),
                           .sll_ifindex = (int)if_nametoindex(kSfInterface),
                           .sll_halen = SF_MAC_BYTES};
  memset(to.sll_addr, 0xff, SF_MAC_BYTES);
  if (sendto(fd, &arp, sizeof arp, 0, (struct sockaddr*)&to, sizeof to) != (ssize_t)sizeof arp)
    return fail(why, "cannot send an ARP through %s", kSfInterface);
  return 0;
}

int sf_identity_announce(const struct sf_identity* identity, char why[SF_REASON_BYTES]) {
  if (!identity->has_network) return 0;
  int fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return fail(why, "cannot make a packet socket");
  int failed = wait_link(fd, why) != 0 || send_arp(fd, identity, why) != 0 ? -1 : 0;
  close(fd);
  return failed;
}

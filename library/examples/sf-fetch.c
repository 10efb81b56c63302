// SPDX-License-Identifier: BSD-3-Clause
/* Fetches the image that sf-serve serves into a file. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <snowfabric.h>

static sf_client *client;
static int file;
static double first_at; /* when the first page came; 0: none has */
static int write_error; /* the errno of the first write that failed */
static const unsigned char zeros[SF_PAGE_BYTES];

static void stop(int signal_number) {
  (void)signal_number;
  sf_client_stop(client);
}

static double now(void) {
  struct timespec time;
  return clock_gettime(CLOCK_MONOTONIC, &time) == 0 ? (double)time.tv_sec + (double)time.tv_nsec / 1e9 : 0;
}

static void put(void *user, uint64_t page, const void *bytes) {
  (void)user;
  if (first_at == 0) first_at = now();
  if (memcmp(bytes, zeros, sizeof zeros) == 0) return; /* the file begins as a hole */
  errno = ENOSPC; /* what a short write means */
  if (pwrite(file, bytes, SF_PAGE_BYTES, (off_t)(page * SF_PAGE_BYTES)) == SF_PAGE_BYTES || write_error != 0) return;
  write_error = errno;
  sf_client_stop(client);
}

static int usage(FILE *out, int status) {
  fprintf(out,
          "usage: sf-fetch [-k KIND] [-i INTERFACE] [-P PROFILE] [-a ADDRESS] [-g GROUP] [-p PORT]\n"
          "                [-t SECONDS] IMAGE-ID FILE\n"
          "  IMAGE-ID      as sf-serve says it, hexadecimal\n"
          "  FILE          where the pages go; made anew\n"
          "  -k KIND       udp: by kernel sockets; ethernet, dpdk-udp: by a DPDK port (udp)\n"
          "  -i INTERFACE  kernel interface; of a DPDK port what its profile takes (the default route's)\n"
          "  -P PROFILE    of a DPDK port (net_af_packet)\n"
          "  -a ADDRESS    with dpdk-udp: the port's own IPv4 address\n"
          "  -g GROUP      IPv4 multicast address (follows from the image id)\n"
          "  -p PORT       UDP port, the next ones are used too (21318)\n"
          "  -t SECONDS    to wait for a server (10)\n"
          "  -h, -V        this, the version\n");
  return status;
}

static int fail(const char *what, const char *why) {
  fprintf(stderr, "sf-fetch: %s: %s\n", what, why);
  return 1;
}

static int make_file(const char *path, uint64_t nb_bytes) {
  file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  return file < 0 || ftruncate(file, (off_t)nb_bytes) != 0 ? fail(path, strerror(errno)) : 0;
}

/* With a line a second on a terminal. */
static int fetch_all(uint64_t nb_pages) {
  int status = sf_client_request(client, 0, nb_pages, SF_PREFETCH);
  while (status == 0 && (status = sf_client_run(client, 1000)) == -ETIMEDOUT) {
    if (isatty(STDERR_FILENO))
      fprintf(stderr, "%" PRIu64 " of %" PRIu64 " pages are missing\n", sf_client_nb_missing(client), nb_pages);
    status = 0;
  }
  if (write_error != 0) return fail("write", strerror(write_error));
  return status == 0 ? 0 : fail("fetch", sf_error());
}

static void summarize(double seconds) {
  struct sf_client_stats stats;
  sf_client_get_stats(client, &stats);
  printf("{\"rx_pages\":%" PRIu64 ",\"rx_zero_pages\":%" PRIu64 ",\"rx_duplicates\":%" PRIu64 ",\"rx_lost\":%" PRIu64
         ",\"retries\":%" PRIu64 ",\"rx_dropped\":%" PRIu64 ",\"seconds\":%.6f}\n",
         stats.rx_pages, stats.rx_zero_pages, stats.rx_duplicates, stats.rx_lost, stats.retries, stats.rx_dropped, seconds);
}

/* @return whether the text is a number from `least` to `most` */
static int number(const char *text, int base, uint64_t least, uint64_t most, uint64_t *out) {
  char *end;
  errno = 0;
  *out = strtoull(text, &end, base);
  return errno == 0 && *text != '\0' && *text != '-' && *end == '\0' && *out >= least && *out <= most;
}

/* @return whether the text names one */
static int kind_of(const char *text, enum sf_carrier_kind *out) {
  static const char *const names[] = {"udp", "ethernet", "dpdk-udp"};
  unsigned i = 0;
  while (i < sizeof names / sizeof *names && strcmp(text, names[i]) != 0) ++i;
  *out = (enum sf_carrier_kind)i;
  return i < sizeof names / sizeof *names;
}

/* @return the exit status, -1: go on */
static int parse(int argc, char **argv, struct sf_client_options *options, uint64_t *seconds) {
  uint64_t port = 0;
  int option, good = 1;
  while ((option = getopt(argc, argv, "k:i:P:a:g:p:t:hV")) != -1) {
    switch (option) {
      case 'k': good &= kind_of(optarg, &options->carrier.kind); break;
      case 'P': options->carrier.profile = optarg; break;
      case 'a': options->carrier.address = optarg; break;
      case 'i': options->carrier.interface = optarg; break;
      case 'g': options->carrier.group = optarg; break;
      case 'p': good &= number(optarg, 10, 1, 65533, &port); break;
      case 't': good &= number(optarg, 10, 0, 1000000, seconds); break;
      case 'h': return usage(stdout, 0);
      case 'V': return printf("sf-fetch %s\n", sf_version()) < 0;
      default: good = 0;
    }
  }
  if (!good || optind + 2 != argc || !number(argv[optind], 16, 1, UINT64_MAX, &options->image_id)) return usage(stderr, 2);
  options->carrier.port = (uint16_t)port;
  return -1;
}

int main(int argc, char **argv) {
  struct sf_client_options options = {.on_page = put};
  uint64_t seconds = 10;
  int status = parse(argc, argv, &options, &seconds);
  if (status >= 0) return status;
  if (sf_client_open(&options, &client) != 0) return fail("open", sf_error());
  signal(SIGINT, stop);
  signal(SIGTERM, stop);
  printf("{\"image_id\":\"%016" PRIx64 "\"}\n", options.image_id); /* it listens */
  fflush(stdout);
  if (sf_client_join(client, (int)seconds * 1000) != 0) return fail("join", sf_error());
  const uint64_t nb_pages = sf_client_nb_pages(client);
  status = make_file(argv[optind + 1], nb_pages * SF_PAGE_BYTES);
  if (status == 0) status = fetch_all(nb_pages);
  const double took = now() - first_at;
  if (status == 0 && close(file) != 0) status = fail(argv[optind + 1], strerror(errno));
  if (status == 0) summarize(took);
  signal(SIGINT, SIG_DFL);
  signal(SIGTERM, SIG_DFL);
  sf_client_close(client);
  return status;
}

// SPDX-License-Identifier: BSD-3-Clause
/* Serves a memory image to every sf-fetch of the network, until SIGINT or SIGTERM. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <snowfabric.h>

static sf_server *server;

static void stop(int signal_number) {
  (void)signal_number;
  sf_server_stop(server);
}

static int usage(FILE *out, int status) {
  fprintf(out,
          "usage: sf-serve [-k KIND] [-i INTERFACE] [-P PROFILE] [-a ADDRESS] [-g GROUP] [-p PORT]\n"
          "                [-r MBIT/S] [-s MBIT/S] [-n IMAGE-ID] IMAGE\n"
          "  IMAGE         a raw memory file of whole 4 KiB pages, which nobody writes meanwhile\n"
          "  -k KIND       udp: by kernel sockets; ethernet, dpdk-udp: by a DPDK port (udp)\n"
          "  -i INTERFACE  kernel interface; of a DPDK port what its profile takes (the default route's)\n"
          "  -P PROFILE    of a DPDK port (net_af_packet)\n"
          "  -a ADDRESS    with dpdk-udp: the port's own IPv4 address\n"
          "  -g GROUP      IPv4 multicast address (follows from the image id)\n"
          "  -p PORT       UDP port, the next ones are used too (21318)\n"
          "  -r MBIT/S     at most (10000)\n"
          "  -s MBIT/S     at the start, until clients have said what they can take (1000)\n"
          "  -n IMAGE-ID   hexadecimal (follows from the content)\n"
          "  -h, -V        this, the version\n");
  return status;
}

static void summarize(void) {
  struct sf_server_stats stats;
  sf_server_get_stats(server, &stats);
  printf("{\"tx_pages\":%" PRIu64 ",\"distinct_pages\":%" PRIu64 ",\"tx_bytes\":%" PRIu64
         ",\"rx_dropped\":%" PRIu64 ",\"tx_failed\":%" PRIu64 "}\n",
         stats.tx_pages, stats.distinct_pages, stats.tx_bytes, stats.rx_dropped, stats.tx_failed);
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

static int parse(int argc, char **argv, struct sf_server_options *options) {
  uint64_t value = 0;
  int option, good = 1;
  while ((option = getopt(argc, argv, "k:i:P:a:g:p:r:s:n:hV")) != -1) {
    switch (option) {
      case 'k': good &= kind_of(optarg, &options->carrier.kind); break;
      case 'P': options->carrier.profile = optarg; break;
      case 'a': options->carrier.address = optarg; break;
      case 'i': options->carrier.interface = optarg; break;
      case 'g': options->carrier.group = optarg; break;
      case 'p':
        good &= number(optarg, 10, 1, 65533, &value);
        options->carrier.port = (uint16_t)value;
        break;
      case 'r':
        good &= number(optarg, 10, 1, 1000000, &value);
        options->max_bytes_per_s = value * 125000;
        break;
      case 's':
        good &= number(optarg, 10, 1, 1000000, &value);
        options->initial_bytes_per_s = value * 125000;
        break;
      case 'n': good &= number(optarg, 16, 1, UINT64_MAX, &options->image_id); break;
      case 'h': exit(usage(stdout, 0));
      case 'V': exit(printf("sf-serve %s\n", sf_version()) < 0);
      default: good = 0;
    }
  }
  if (optind + 1 != argc) good = 0;
  else options->image = argv[optind];
  return good;
}

int main(int argc, char **argv) {
  struct sf_server_options options = {.image = NULL};
  if (!parse(argc, argv, &options)) return usage(stderr, 2);
  if (sf_server_open(&options, &server) != 0) {
    fprintf(stderr, "sf-serve: %s\n", sf_error());
    return 1;
  }
  signal(SIGINT, stop);
  signal(SIGTERM, stop);
  printf("{\"image_id\":\"%016" PRIx64 "\",\"pages\":%" PRIu64 "}\n", sf_server_image_id(server),
         sf_server_nb_pages(server));
  fflush(stdout);
  const int status = sf_server_run(server);
  if (status != 0) fprintf(stderr, "sf-serve: %s\n", sf_error());
  summarize();
  signal(SIGINT, SIG_DFL);
  signal(SIGTERM, SIG_DFL);
  sf_server_close(server);
  return status != 0;
}

// SPDX-License-Identifier: BSD-3-Clause
/**
 * libsnowfabric: 4 KiB pages of a frozen image from one server to many clients, each over the wire
 * once. See snowfabric(3), and docs/library.md for how to move a program here.
 *
 * Functions return 0 (or what they say), or a negative errno; sf_error() has the text. Structures
 * are zeroed before use, what is reserved in them stays so.
 *
 * One thread at a time uses a handle, but for sf_server_stop() and sf_client_stop(). With a DPDK port
 * a process has one handle in its life, since DPDK cannot be started twice (an open that fails for
 * its device may have been that once), and one thread uses it, which DPDK binds to CPUs.
 */
#ifndef SNOWFABRIC_H
#define SNOWFABRIC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SF_PAGE_BYTES 4096

enum sf_carrier_kind {
  SF_UDP = 0,     /**< UDP multicast datagrams by kernel sockets */
  SF_ETHERNET = 1, /**< bare Ethernet by a DPDK port, in one group with memserver-dpdk and memtap-dpdk */
  SF_DPDK_UDP = 2  /**< UDP multicast datagrams by a DPDK port, in one group with SF_UDP */
};

/** Where frames go. All zero is a good start: UDP multicast on the interface of the default route. */
struct sf_carrier {
  enum sf_carrier_kind kind;
  /**
   * SF_UDP: a kernel interface by its name; NULL: as the routes say, with an MTU of 1500. Of a DPDK port: what its profile
   * takes, a kernel interface, a PCI address or a socket file.
   */
  const char *interface;
  const char *profile; /**< of a DPDK port, by name or file; NULL: net_af_packet */
  uint16_t mtu_bytes;  /**< of what follows the Ethernet header, no more than the interface's; 0: that */
  const char *address; /**< SF_DPDK_UDP: the port's own IPv4 address, which no kernel has */
  const char *group;   /**< of UDP: IPv4 multicast address; NULL: one that follows from the image id */
  uint16_t port;       /**< of UDP: this and the next, or the next two with SF_DPDK_UDP; 0: 21318 */
  uint8_t ttl;         /**< of UDP; 0: 1, this network alone */
  uint64_t reserved[4];
};

/** The last failure of this thread: what failed, on what, and why. Never NULL. */
const char *sf_error(void);
/** "1.2.3" */
const char *sf_version(void);

/** @name Server @{ */
typedef struct sf_server sf_server;

struct sf_server_options {
  struct sf_carrier carrier;
  const char *image; /**< a raw memory file, mapped; NULL: read_page has the pages */
  /**
   * Writes a page to `out`; it must be the same each time. Called for every page by
   * sf_server_open(), and for what is sent by sf_server_run().
   * @return 0, or an errno, with which sf_server_open() or sf_server_run() ends
   */
  int (*read_page)(void *user, uint64_t page, void *out);
  void *user;               /**< read_page's first argument */
  uint64_t nb_pages;        /**< with read_page */
  uint64_t image_id;        /**< 0: follows from the file's content; needed with read_page */
  uint32_t epoch;           /**< of this freeze of the image; 0: 1 */
  uint64_t max_bytes_per_s; /**< of frames; 0: 1.25e9, 10 Gbit/s */
  /** Before a client has said what it can take, no more than the above; 0: 1.25e8, 1 Gbit/s. It takes
   * about 50 ms to double that, if 64 frames or more go in these: with fewer it stays. */
  uint64_t initial_bytes_per_s;
  uint64_t reserved[7];
};

struct sf_server_stats {
  uint64_t nb_clients;      /**< now */
  uint64_t tx_pages;        /**< repeats included, zero pages not */
  uint64_t tx_bytes;        /**< of frames, with all their headers */
  uint64_t distinct_pages;  /**< of tx_pages */
  uint64_t rx_dropped;      /**< frames that were malformed, or not for this image */
  uint64_t tx_failed;       /**< frames that the link refused, and times that there was no buffer for one */
  uint64_t reserved[8];
};

/**
 * Reads the whole image once. A file must keep its length while it is served: beyond its end there
 * is nothing to read, which SIGBUS says.
 * @param out  as it was if that fails
 * @return -EINVAL, -ENODEV, -EMSGSIZE: an option; -ENOENT, -EACCES, -EISDIR, ...: the image, a
 *         socket; -EFBIG: more than 2^32 - 1 pages; -EALREADY: a DPDK port was there before; what
 *         read_page returned; -ENOMEM
 */
int sf_server_open(const struct sf_server_options *options, sf_server **out);
uint64_t sf_server_image_id(const sf_server *server);
uint64_t sf_server_nb_pages(const sf_server *server);
/** Serves until sf_server_stop(). May be called again. @return 0; what read_page returned, negative */
int sf_server_run(sf_server *server);
/** Has the sf_server_run() that runs, or else the next, return within 50 ms. Any thread, and signal handlers. */
void sf_server_stop(sf_server *server);
/** Any thread. */
void sf_server_get_stats(const sf_server *server, struct sf_server_stats *out);
/** Takes NULL. */
void sf_server_close(sf_server *server);
/** @} */

/** @name Client @{ */
typedef struct sf_client sf_client;

struct sf_client_options {
  struct sf_carrier carrier;
  uint64_t image_id;
  uint32_t epoch; /**< 0: 1 */
  /**
   * A page has come and is right. Each comes once, also those that nobody here asked for: they went
   * by to others. Called inside of sf_client_run(); of this client it may call
   * sf_client_request(), sf_client_stop() and what takes a const sf_client, and no more.
   * @param bytes  SF_PAGE_BYTES of them, until it returns
   */
  void (*on_page)(void *user, uint64_t page, const void *bytes);
  void *user; /**< first argument of on_page and on_unavailable */
  /**
   * The server does not have a page that was requested, or does not deliver it. It is requested no
   * more. May do what on_page may; NULL: nothing.
   */
  void (*on_unavailable)(void *user, uint64_t page);
  uint64_t max_pages; /**< a server with more is not joined; 0: 2^26, 256 GiB */
  uint64_t reserved[8];
};

enum sf_priority {
  SF_DEMAND = 0,  /**< somebody waits for it */
  SF_PREFETCH = 1 /**< after all that is demanded */
};

struct sf_client_stats {
  uint64_t rx_pages;      /**< zero pages not included */
  uint64_t rx_zero_pages;
  uint64_t rx_duplicates; /**< pages that were here */
  uint64_t rx_lost;       /**< frames to the group that did not come */
  uint64_t retries;       /**< pages asked for again */
  uint64_t rx_dropped;    /**< frames that were malformed, or not for this image */
  uint64_t reserved[8];
};

/**
 * @param out  as it was if that fails
 * @return -EINVAL, -ENODEV, -EMSGSIZE: an option; -EADDRINUSE, ...: a socket; -EALREADY: a DPDK port
 *         was there before; -ENOMEM
 */
int sf_client_open(const struct sf_client_options *options, sf_client **out);
/**
 * Finds the server. No page comes before it has returned 0.
 * @param timeout_ms  as that of sf_client_run()
 * @return 0; -ETIMEDOUT: no answer yet, call again; -EMSGSIZE: its frames do not fit our MTU;
 *         -EUSERS: it has no room for one more client; -EINTR: sf_client_stop(); -EBUSY: called
 *         by on_page or on_unavailable; -ENOMEM: call again
 */
int sf_client_join(sf_client *client, int timeout_ms);
/** Of the image; 0 before sf_client_join(). */
uint64_t sf_client_nb_pages(const sf_client *client);
/**
 * Asks for pages; those that are here already are left out.
 * @return -ERANGE: not all in the image; -ENOTCONN: not joined
 */
int sf_client_request(sf_client *client, uint64_t first, uint64_t nb_pages,
                      enum sf_priority priority);
/** Requested, and not here. */
uint64_t sf_client_nb_missing(const sf_client *client);
/**
 * Asks, repeats and receives until all that was requested is here.
 * @param timeout_ms  0: what is there to do now, and no more; -1: without end
 * @return 0; -ETIMEDOUT: not all yet, call again; -EHOSTDOWN: the server is silent, call again to
 *         wait for it; -ENODATA: pages are unavailable, of which sf_error() names the first, call
 *         again for the others; -EINTR: sf_client_stop(); -EBUSY: as sf_client_join()
 */
int sf_client_run(sf_client *client, int timeout_ms);
/**
 * For a loop of the caller's own: call sf_client_run(client, 0) when this is readable (poll(2)), or
 * sf_client_timeout_ms() have passed. -1: nothing of the port can be waited for, call it without
 * cease.
 */
int sf_client_fd(const sf_client *client);
int sf_client_timeout_ms(const sf_client *client);
/** Has the call that runs, or else the next, return -EINTR within 50 ms. Any thread, and signal handlers. */
void sf_client_stop(sf_client *client);
void sf_client_get_stats(const sf_client *client, struct sf_client_stats *out);
/** Takes NULL. */
void sf_client_close(sf_client *client);
/** @} */

#ifdef __cplusplus
}
#endif
#endif

// SPDX-License-Identifier: BSD-3-Clause
#pragma once
/// What makes a clone somebody of its own.
#include <stdbool.h>

#include <netinet/in.h>

enum { SF_SEED_BYTES = 64, SF_MAC_BYTES = 6, SF_HOSTNAME_BYTES = 64, SF_REASON_BYTES = 200 };

/// The VM's network interface.
extern const char kSfInterface[];

struct sf_identity {
  int id;  // 0: the parent, which keeps all it has
  char hostname[SF_HOSTNAME_BYTES];
  bool has_network;  // mac and ip are set
  unsigned char mac[SF_MAC_BYTES];
  struct in_addr ip;
  struct in_addr netmask;
  unsigned char seed[SF_SEED_BYTES];
};

/// Reads "RET id key=value..." (docs/guest-channel.md). Unknown keys are skipped.
/// @param n  how many clones were asked for
/// @return 0; -1 with the reason in `why`
int sf_identity_parse(const char* line, int n, struct sf_identity* out, char why[SF_REASON_BYTES]);

/// Reseeds the kernel's random number generator, then sets hostname, MAC and IP. Root only.
/// May be repeated after a failure.
/// @return 0; -1 with the reason in `why`
int sf_identity_apply(const struct sf_identity* identity, char why[SF_REASON_BYTES]);

/// Tells the network which MAC has this IP (gratuitous ARP). Waits up to 5 s for the link. Nothing
/// without a network.
/// @return 0; -1 with the reason in `why`
int sf_identity_announce(const struct sf_identity* identity, char why[SF_REASON_BYTES]);

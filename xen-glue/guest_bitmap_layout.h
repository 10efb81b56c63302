// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <stdint.h>

/// What the agent in a Xen guest and its host see of each other: a stretch of the guest's RAM, and
/// nodes of xenstore in the guest's own folder. Little-endian; read by C and C++. See docs/xen.md.

#define SF_BITMAP_MAGIC 0x50414d5449424653ULL  // "SFBITMAP"
#define SF_BITMAP_VERSION 1U

/// In front of two planes: the presence words, 2 bits a page (fabric/base/presence.hpp), and right
/// behind them the free words, 1 bit a page.
struct sf_bitmap_header {
  uint64_t magic;       //  0  SF_BITMAP_MAGIC, written last
  uint32_t version;     //  8
  uint32_t generation;  // 12  the host's: 0, or of a clone a number that no other one has
  uint64_t nb_pages;    // 16  that the planes have room for; gfn 0 is the first
  uint64_t reserved[5];
};

#define SF_BITMAP_PRESENCE_AT 64U  // sizeof(struct sf_bitmap_header)
#define SF_BITMAP_PAGES_PER_PRESENCE_WORD 32U
#define SF_BITMAP_PAGES_PER_FREE_WORD 64U

/// Agent: "GFN NB_PAGES GENERATION" in decimal: where header and planes lie. Anew in each clone.
#define SF_NODE_BITMAP "data/snowfabric/bitmap"
/// Host: a token: which pages are free? Empty, or not there: nobody asks. From its answer until then
/// the agent claims nothing.
#define SF_NODE_ASK "data/snowfabric/ask"
/// Agent: "TOKEN ok", and the free words say it; or "TOKEN refused REASON".
#define SF_NODE_ANSWER "data/snowfabric/answer"

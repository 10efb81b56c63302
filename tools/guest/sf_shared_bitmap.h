// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "xen-glue/guest_bitmap_layout.h"

/// The agent's side of the bitmap that a guest shares with its host. One thread.

struct sf_bitmap {
  struct sf_bitmap_header* header;
  uint64_t* presence;
  uint64_t* free;
  size_t nb_free_words;
  uint64_t first_frame;  // gfn of the header
  size_t nb_shared;      // pages from there on
};

/// Makes it in a huge page of a file, which is in no process alone: the kernel neither moves nor
/// reuses it, also if the agent is killed. One that an agent before made is taken over.
/// @param nb_pages  of the guest's RAM
/// @return 0; -1 with the reason on stderr
int sf_bitmap_make(struct sf_bitmap* bitmap, uint64_t nb_pages);

/// Says in the free words what sf_free_runs() found. @return how many pages
uint64_t sf_bitmap_report(struct sf_bitmap* bitmap);

/// Claims each page that sf_free_runs() found and that is still absent: its bytes are nobody's, so
/// memtap need not fetch it. Each bit pair is flipped at once, whatever memtap does meanwhile.
/// @return how many
uint64_t sf_bitmap_claim(struct sf_bitmap* bitmap);

/// Whether any page is absent, so that claiming makes sense.
int sf_bitmap_lacks_pages(const struct sf_bitmap* bitmap);

// SPDX-License-Identifier: BSD-3-Clause
#pragma once
/// Memory whose right content is known: what a page must hold follows from its number and how often
/// it was written.
#include <stddef.h>
#include <stdint.h>

enum { SF_PAGE_BYTES = 4096 };

struct sf_verdict {
  size_t nb_pages;
  size_t nb_bad;
  long first_bad;  // -1: none
};

/// Takes `mb` MiB and writes them, generation 0; what was there is given back. Stops a writer.
/// Refused, nothing changes.
/// @return 0; -1 with errno: EINVAL (0), ENOMEM (more than 4/5 of the free memory, so that the VM
/// lives)
int sf_workload_fill(unsigned mb);

/// Checks every page; a writer waits meanwhile, between two pages.
struct sf_verdict sf_workload_verify(void);

/// From now on a thread rewrites the first `nb_pages` pages (no more than there are), a generation
/// a round, as fast as it can; 0 stops it.
/// @return 0; -1 with errno of pthread_create
int sf_workload_dirty(size_t nb_pages);

/// Pages rewritten since the fill; exact while no writer runs.
uint64_t sf_workload_rewritten(void);

size_t sf_workload_pages(void);

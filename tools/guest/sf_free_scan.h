// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <stddef.h>
#include <stdint.h>

/// Which of this VM's pages are free: those in the kernel's buddy allocator.

enum { SF_REASON_BYTES = 200 };

struct sf_run {
  uint64_t first, nb_pages;
};

/// Looks at /proc/kpageflags, or the file that the environment variable SF_KPAGEFLAGS names (for
/// tests). Refuses where the kernel fills free pages with a pattern (/proc/cmdline, SF_CMDLINE).
/// @return 0; -1 with the reason in `why`
int sf_free_scan(char why[SF_REASON_BYTES]);

/// What the last scan found, ascending and disjoint; valid until the next.
const struct sf_run* sf_free_runs(size_t* count);

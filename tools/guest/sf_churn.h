// SPDX-License-Identifier: BSD-3-Clause
#pragma once
/// Memory that is taken, written, checked and given back all the time, so that pages of the VM go
/// from free to used and back at every moment.
#include <stdint.h>

struct sf_churn_report {
  uint64_t nb_verified;  // pages, since the start
  uint64_t nb_bad;       // of them
};

/// Ends the process that churns, if there is one, which checks all it holds first. Then starts
/// another one in pieces of up to 1 MiB, `mb` MiB together; 0: none. One thread at a time.
/// @param report  what the process that ended has found; zeros, if there was none
/// @return 0; -1 with errno: ENOMEM, EAGAIN (fork), ECHILD (it died of itself)
int sf_churn(unsigned mb, struct sf_churn_report* report);

// SPDX-License-Identifier: BSD-3-Clause
#pragma once
/// The VM's web server: GET / answers {"id":..,"counter":..,"hostname":".."}. The counter lives in
/// memory and grows by one with each such answer, so a clone goes on from its parent's value at the
/// fork.
#include <stdint.h>

/// Serves all addresses at this port in a thread of its own, one request after the other.
/// @return 0; -1 with errno
int sf_http_start(uint16_t port);

/// Requests answered since the start, those before the fork included. Any thread.
unsigned long sf_http_counter(void);

// SPDX-License-Identifier: Apache-2.0
#pragma once

// CONCLAVE_CHECK: broken invariants of ours, on in release, crash with the
// place. Never for outside input (that is absl::Status). To be replaced by
// absl/log/check.h when Debian ships Abseil 20230125 or newer.

#include "absl/base/internal/raw_logging.h"

#define CONCLAVE_CHECK(condition) \
  ABSL_RAW_CHECK((condition), "broken invariant (a bug of Conclave)")
#define CONCLAVE_CHECK_EQ(a, b) CONCLAVE_CHECK((a) == (b))
#define CONCLAVE_CHECK_LE(a, b) CONCLAVE_CHECK((a) <= (b))
#define CONCLAVE_CHECK_LT(a, b) CONCLAVE_CHECK((a) < (b))
#define CONCLAVE_CHECK_GE(a, b) CONCLAVE_CHECK((a) >= (b))
#define CONCLAVE_CHECK_GT(a, b) CONCLAVE_CHECK((a) > (b))

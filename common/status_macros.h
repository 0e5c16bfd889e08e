// SPDX-License-Identifier: Apache-2.0
#pragma once

// RETURN_IF_ERROR and ASSIGN_OR_RETURN, until Debian ships an Abseil that has
// them (LTS 20260526).

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define CONCLAVE_CONCAT_(a, b) a##b
#define CONCLAVE_CONCAT(a, b) CONCLAVE_CONCAT_(a, b)

#define RETURN_IF_ERROR(expression)                    \
  do {                                                 \
    absl::Status conclave_status = (expression);       \
    if (!conclave_status.ok()) return conclave_status; \
  } while (false)

#define ASSIGN_OR_RETURN(lhs, expression) \
  CONCLAVE_ASSIGN_OR_RETURN_(             \
      CONCLAVE_CONCAT(conclave_statusor_, __LINE__), lhs, expression)

#define CONCLAVE_ASSIGN_OR_RETURN_(statusor, lhs, expression) \
  auto statusor = (expression);                               \
  if (!statusor.ok()) return statusor.status();               \
  lhs = *std::move(statusor)

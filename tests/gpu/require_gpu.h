// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string_view>

#include "kernels/device.h"

// Skips the test with the reason where there is no GPU; fails it there when
// CONCLAVE_REQUIRE_GPU=1 (the GPU machine's run).
#define CONCLAVE_REQUIRE_GPU()                                      \
  do {                                                              \
    const auto devices = ::conclave::kernels::ListCudaDevices();    \
    if (devices.ok()) break;                                        \
    const char* require = std::getenv("CONCLAVE_REQUIRE_GPU");      \
    if (require != nullptr && std::string_view(require) == "1") {   \
      FAIL() << "CONCLAVE_REQUIRE_GPU=1, but " << devices.status(); \
    }                                                               \
    GTEST_SKIP() << devices.status();                               \
  } while (false)

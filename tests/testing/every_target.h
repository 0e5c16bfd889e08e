// SPDX-License-Identifier: Apache-2.0
#pragma once

// Link conclave::kernels.

#include <string>

#include "gtest/gtest.h"
#include "kernels/context.h"

namespace conclave::kernels {

// Runs with every SIMD target that this machine has.
class EveryTarget : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(PinSimdTarget(GetParam()).ok());
    ASSERT_EQ(ActiveSimdTarget(), GetParam());
  }
  void TearDown() override { ASSERT_TRUE(PinSimdTarget("").ok()); }
};

inline std::string TargetOf(const ::testing::TestParamInfo<std::string>& info) {
  return info.param;
}

}  // namespace conclave::kernels

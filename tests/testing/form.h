// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <ostream>
#include <string>

#include "kernels/context.h"
#include "kernels/device.h"
#include "kernels/device_queue.h"
#include "tests/gpu/require_gpu.h"

namespace conclave::testing {

// Which of its forms computes a model.
struct Form {
  kernels::Backend backend = kernels::Backend::kCpu;
  int32_t gpu = 0;

  std::string Name() const {
    if (backend == kernels::Backend::kCpuPlain) return "plain";
    if (backend == kernels::Backend::kCpu) return "fast";
    return gpu == kernels::kHostDevice ? "twin" : "cuda";
  }
};

inline constexpr Form kPlainForm{kernels::Backend::kCpuPlain};
inline constexpr Form kFastForm{kernels::Backend::kCpu};
inline constexpr Form kGpuForm{kernels::Backend::kCuda};
// The device blocks in host memory, where CUDA is not built.
inline constexpr Form kTwinForm{kernels::Backend::kCuda, kernels::kHostDevice};

inline void PrintTo(const Form& form, std::ostream* out) {
  *out << form.Name();
}

}  // namespace conclave::testing

// Skips the test, with the reason, where the form cannot run.
#define CONCLAVE_REQUIRE_FORM(form)                                          \
  if ((form).backend == ::conclave::kernels::Backend::kCuda) {               \
    if ((form).gpu != ::conclave::kernels::kHostDevice) {                    \
      CONCLAVE_REQUIRE_GPU();                                                \
    } else if (!::conclave::kernels::DeviceQueue::Create((form).gpu).ok()) { \
      GTEST_SKIP() << "built with CUDA: the plain twins are not linked";     \
    }                                                                        \
  }                                                                          \
  static_assert(true)

// SPDX-License-Identifier: Apache-2.0
#include "kernels/sampling.h"

#include "common/check.h"
#include "kernels/dense_twins.h"

namespace conclave::kernels {

int32_t ArgMax(const Context& context, std::span<const float> logits) {
  CONCLAVE_CHECK(!logits.empty());
  return context.backend == Backend::kCpuPlain ? plain::ArgMax(logits)
                                               : fast::ArgMax(logits);
}

float LogSumExp(const Context& context, std::span<const float> logits) {
  CONCLAVE_CHECK(!logits.empty());
  return context.backend == Backend::kCpuPlain ? plain::LogSumExp(logits)
                                               : fast::LogSumExp(logits);
}

absl::Status TopK(const Context& context,
                  std::span<const float> logits,
                  std::span<int32_t> ids) {
  CONCLAVE_CHECK(!ids.empty() && ids.size() <= logits.size());
  if (context.backend == Backend::kCpuPlain) {
    plain::TopK(logits, ids);
  } else {
    fast::TopK(logits, ids);
  }
  return absl::OkStatus();
}

}  // namespace conclave::kernels

// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include "common/check.h"
#include "kernels/dense_twins.h"

namespace conclave::kernels {
namespace {

bool HasSize(size_t size, int64_t rows, int64_t cols) {
  return size == static_cast<size_t>(rows) * static_cast<size_t>(cols);
}

}  // namespace

absl::Status MatMul(const Context& context,
                    std::span<const float> x,
                    int64_t rows,
                    const WeightView& w,
                    std::span<float> out) {
  CheckWeight(w);
  CONCLAVE_CHECK(HasSize(x.size(), rows, w.cols));
  CONCLAVE_CHECK(HasSize(out.size(), rows, w.rows));
  if (context.backend == Backend::kCpuPlain) {
    plain::MatMul(context, x, rows, w, out);
  } else {
    fast::MatMul(context, x, rows, w, out);
  }
  return absl::OkStatus();
}

absl::Status Embed(const Context& context,
                   const WeightView& table,
                   std::span<const int32_t> ids,
                   std::span<float> out) {
  CheckWeight(table);
  CONCLAVE_CHECK(HasSize(out.size(), ids.size(), table.cols));
  for (int32_t id : ids) CONCLAVE_CHECK(id >= 0 && id < table.rows);
  if (context.backend == Backend::kCpuPlain) {
    plain::Embed(table, ids, out);
  } else {
    fast::Embed(context, table, ids, out);
  }
  return absl::OkStatus();
}

absl::Status RmsNorm(const Context& context,
                     std::span<const float> x,
                     int64_t rows,
                     std::span<const float> w,
                     float eps,
                     std::span<float> out) {
  CONCLAVE_CHECK(HasSize(x.size(), rows, w.size()));
  CONCLAVE_CHECK_EQ(x.size(), out.size());
  if (context.backend == Backend::kCpuPlain) {
    plain::RmsNorm(x, rows, w, eps, out);
  } else {
    fast::RmsNorm(context, x, rows, w, eps, out);
  }
  return absl::OkStatus();
}

absl::Status AddTo(const Context& context,
                   std::span<const float> y,
                   std::span<float> x) {
  CONCLAVE_CHECK_EQ(x.size(), y.size());
  if (context.backend == Backend::kCpuPlain) {
    plain::AddTo(y, x);
  } else {
    fast::AddTo(context, y, x);
  }
  return absl::OkStatus();
}

}  // namespace conclave::kernels

// SPDX-License-Identifier: Apache-2.0
#include "kernels/moe.h"

#include <utility>

#include "common/check.h"
#include "kernels/dense_twins.h"
#include "kernels/int8.h"

namespace conclave::kernels {
namespace {

void CheckWeightOf(const WeightView& w, int64_t rows, int64_t cols) {
  CheckWeight(w);
  CONCLAVE_CHECK_EQ(w.rows, rows);
  CONCLAVE_CHECK_EQ(w.cols, cols);
}

bool HasSize(size_t size, int64_t rows, int64_t cols) {
  return size == static_cast<size_t>(rows) * static_cast<size_t>(cols);
}

void CheckEntries(const ExpertEntries& entries, int32_t slices, int64_t rows) {
  CONCLAVE_CHECK_EQ(entries.slice.size(), entries.row.size());
  CONCLAVE_CHECK_EQ(entries.slice.size(), entries.weight.size());
  std::pair<int32_t, int32_t> before(-1, -1);
  for (size_t e = 0; e < entries.slice.size(); ++e) {
    const std::pair entry(entries.slice[e], entries.row[e]);
    CONCLAVE_CHECK(before < entry);
    CONCLAVE_CHECK(entry.first >= 0 && entry.first < slices);
    CONCLAVE_CHECK(entry.second >= 0 && entry.second < rows);
    before = entry;
  }
}

}  // namespace

ShardLayerWeights ViewOf(const StackedExperts& e) {
  return {.slices = e.slices,
          .width = e.width,
          .hidden = e.hidden,
          .gate = ViewOf(e.gate),
          .up = ViewOf(e.up),
          .down = ViewOf(e.down)};
}

absl::Status Route(const Context& context,
                   const WeightView& gate,
                   std::span<const float> u,
                   int64_t rows,
                   int32_t top_k,
                   std::span<int32_t> ids,
                   std::span<float> weights) {
  CheckWeightOf(gate, gate.rows, gate.cols);
  CONCLAVE_CHECK(top_k >= 1 && top_k <= gate.rows);
  CONCLAVE_CHECK(HasSize(u.size(), rows, gate.cols));
  CONCLAVE_CHECK(HasSize(ids.size(), rows, top_k));
  CONCLAVE_CHECK_EQ(ids.size(), weights.size());
  if (rows == 0) return absl::OkStatus();
  if (context.backend == Backend::kCpuPlain) {
    Workspace::Scope scope(context.workspace);
    std::span<float> logits = context.workspace->Floats(rows * gate.rows);
    plain::MatMul(WithFloats(context), u, rows, gate, logits);
    plain::RouteFromLogits(logits, rows, top_k, ids, weights);
  } else {
    fast::Route(context, gate, u, rows, top_k, ids, weights);
  }
  return absl::OkStatus();
}

absl::Status ExpertFfn(const Context& context,
                       const ShardLayerWeights& weights,
                       const ExpertEntries& entries,
                       std::span<const float> x,
                       int64_t rows,
                       std::span<float> out) {
  const int64_t slices = weights.slices;
  CheckWeightOf(weights.gate, slices * weights.width, weights.hidden);
  CheckWeightOf(weights.up, slices * weights.width, weights.hidden);
  CheckWeightOf(weights.down, slices * weights.hidden, weights.width);
  CONCLAVE_CHECK(HasSize(x.size(), rows, weights.hidden));
  CONCLAVE_CHECK_EQ(x.size(), out.size());
  CheckEntries(entries, weights.slices, rows);
  if (context.backend == Backend::kCpuPlain) {
    plain::ExpertFfn(context, weights, entries, x, rows, out);
  } else {
    fast::ExpertFfn(context, weights, entries, x, rows, out);
  }
  return absl::OkStatus();
}

absl::Status SharedExpert(const Context& context,
                          const SharedExpertWeights& weights,
                          std::span<const float> u,
                          int64_t rows,
                          std::span<float> out) {
  const int64_t hidden = weights.gate.cols;
  const int64_t width = weights.gate.rows;
  CheckWeightOf(weights.gate, width, hidden);
  CheckWeightOf(weights.up, width, hidden);
  CheckWeightOf(weights.down, hidden, width);
  CheckWeightOf(weights.router, 1, hidden);
  CONCLAVE_CHECK(HasSize(u.size(), rows, hidden));
  CONCLAVE_CHECK_EQ(u.size(), out.size());
  if (rows == 0) return absl::OkStatus();
  if (context.backend == Backend::kCpuPlain) {
    plain::SharedExpert(context, weights, u, rows, out);
  } else {
    fast::SharedExpert(context, weights, u, rows, out);
  }
  return absl::OkStatus();
}

}  // namespace conclave::kernels

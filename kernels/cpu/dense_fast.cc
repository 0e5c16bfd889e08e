// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/dense.h"

// The plain twins stand in until the fast ones are written.
namespace conclave::kernels::fast {

void MatMul(const Context&,
            std::span<const float> x,
            int64_t rows,
            const WeightView& w,
            std::span<float> out) {
  plain::MatMul(x, rows, w, out);
}
void Embed(const Context&,
           const WeightView& table,
           std::span<const int32_t> ids,
           std::span<float> out) {
  plain::Embed(table, ids, out);
}
void RmsNorm(const Context&,
             std::span<const float> x,
             int64_t rows,
             std::span<const float> w,
             float eps,
             std::span<float> out) {
  plain::RmsNorm(x, rows, w, eps, out);
}
void AddTo(const Context&, std::span<const float> y, std::span<float> x) {
  plain::AddTo(y, x);
}
void Route(const Context& context,
           const WeightView& gate,
           std::span<const float> u,
           int64_t rows,
           int32_t top_k,
           std::span<int32_t> ids,
           std::span<float> weights) {
  Workspace::Scope scope(context.workspace);
  std::span<float> logits = context.workspace->Floats(rows * gate.rows);
  plain::MatMul(u, rows, gate, logits);
  plain::RouteFromLogits(logits, rows, top_k, ids, weights);
}
void ExpertFfn(const Context& context,
               const ShardLayerWeights& weights,
               const ExpertEntries& entries,
               std::span<const float> x,
               int64_t rows,
               std::span<float> out) {
  plain::ExpertFfn(context, weights, entries, x, rows, out);
}
void SharedExpert(const Context& context,
                  const SharedExpertWeights& weights,
                  std::span<const float> u,
                  int64_t rows,
                  std::span<float> out) {
  plain::SharedExpert(context, weights, u, rows, out);
}
int32_t ArgMax(std::span<const float> logits) { return plain::ArgMax(logits); }
float LogSumExp(std::span<const float> logits) {
  return plain::LogSumExp(logits);
}
void TopK(std::span<const float> logits, std::span<int32_t> ids) {
  plain::TopK(logits, ids);
}

}  // namespace conclave::kernels::fast

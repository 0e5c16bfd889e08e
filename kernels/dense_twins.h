// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "kernels/moe.h"
#include "kernels/weight.h"

// The two twins of kernels/linear.h, moe.h and sampling.h. Shapes are checked
// by the front files; nothing here can fail.
namespace conclave::kernels {

namespace plain {

void MatMul(const Context& context,
            std::span<const float> x,
            int64_t rows,
            const WeightView& w,
            std::span<float> out);
void Embed(const WeightView& table,
           std::span<const int32_t> ids,
           std::span<float> out);
void RmsNorm(std::span<const float> x,
             int64_t rows,
             std::span<const float> w,
             float eps,
             std::span<float> out);
void AddTo(std::span<const float> y, std::span<float> x);
// logits [rows, experts] are scratch: the router's product, overwritten.
void RouteFromLogits(std::span<float> logits,
                     int64_t rows,
                     int32_t top_k,
                     std::span<int32_t> ids,
                     std::span<float> weights);
void ExpertFfn(const Context& context,
               const ShardLayerWeights& weights,
               const ExpertEntries& entries,
               std::span<const float> x,
               int64_t rows,
               std::span<float> out);
void SharedExpert(const Context& context,
                  const SharedExpertWeights& weights,
                  std::span<const float> u,
                  int64_t rows,
                  std::span<float> out);
int32_t ArgMax(std::span<const float> logits);
float LogSumExp(std::span<const float> logits);
void TopK(std::span<const float> logits, std::span<int32_t> ids);

}  // namespace plain

namespace fast {

void MatMul(const Context& context,
            std::span<const float> x,
            int64_t rows,
            const WeightView& w,
            std::span<float> out);
void Embed(const Context& context,
           const WeightView& table,
           std::span<const int32_t> ids,
           std::span<float> out);
void RmsNorm(const Context& context,
             std::span<const float> x,
             int64_t rows,
             std::span<const float> w,
             float eps,
             std::span<float> out);
void AddTo(const Context& context,
           std::span<const float> y,
           std::span<float> x);
void Route(const Context& context,
           const WeightView& gate,
           std::span<const float> u,
           int64_t rows,
           int32_t top_k,
           std::span<int32_t> ids,
           std::span<float> weights);
void ExpertFfn(const Context& context,
               const ShardLayerWeights& weights,
               const ExpertEntries& entries,
               std::span<const float> x,
               int64_t rows,
               std::span<float> out);
void SharedExpert(const Context& context,
                  const SharedExpertWeights& weights,
                  std::span<const float> u,
                  int64_t rows,
                  std::span<float> out);
int32_t ArgMax(std::span<const float> logits);
float LogSumExp(std::span<const float> logits);
void TopK(std::span<const float> logits, std::span<int32_t> ids);

}  // namespace fast

}  // namespace conclave::kernels

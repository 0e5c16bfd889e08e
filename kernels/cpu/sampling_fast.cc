// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/top_k.h"
#include "kernels/dense_twins.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sampling_fast.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per target.
#include "hwy/contrib/math/math-inl.h"
#include "kernels/cpu/dot-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels::HWY_NAMESPACE {
namespace {

// The largest number; NaNs are passed over.
float Largest(std::span<const float> logits) {
  const F32 df;
  const int64_t n = static_cast<int64_t>(logits.size());
  V best = hn::Set(df, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V v = hn::LoadU(df, &logits[i]);
    best = hn::IfThenElse(hn::Gt(v, best), v, best);
  }
  float largest = hn::GetLane(hn::MaxOfLanes(df, best));
  for (; i < n; ++i) largest = logits[i] > largest ? logits[i] : largest;
  return largest;
}

int32_t ArgMaxImpl(std::span<const float> logits) {
  const F32 df;
  const int64_t n = static_cast<int64_t>(logits.size());
  const float largest = Largest(logits);
  const V wanted = hn::Set(df, largest);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    if (!hn::AllFalse(df, hn::Eq(hn::LoadU(df, &logits[i]), wanted))) break;
  }
  for (; i < n; ++i) {
    if (logits[i] == largest) return static_cast<int32_t>(i);
  }
  return 0;  // all are NaN
}

float LogSumExpImpl(std::span<const float> logits) {
  const F32 df;
  const int64_t n = static_cast<int64_t>(logits.size());
  const float max = Largest(logits);
  if (std::isinf(max)) return max;
  const V shift = hn::Set(df, max);
  // Short sums first: a vocabulary in one float32 sum would lose digits.
  constexpr int64_t kBlock = 32 * kStep;
  V sum = hn::Zero(df);
  int64_t i = 0;
  while (i + kStep <= n) {
    V s0 = hn::Zero(df), s1 = s0;
    const int64_t end = std::min(n, i + kBlock);
    for (; i + kStep <= end; i += kStep) {
      const V a = hn::Sub(hn::LoadU(df, &logits[i]), shift);
      const V b = hn::Sub(hn::LoadU(df, &logits[i + kLanes]), shift);
      s0 = hn::Add(s0, hn::Exp(df, a));
      s1 = hn::Add(s1, hn::Exp(df, b));
    }
    sum = hn::Add(sum, hn::Add(s0, s1));
  }
  float total = hn::GetLane(hn::SumOfLanes(df, sum));
  for (; i < n; ++i) total += std::exp(logits[i] - max);
  return max + std::log(total);
}

void TopKImpl(std::span<const float> logits, std::span<int32_t> ids) {
  const F32 df;
  const size_t n = logits.size();
  constexpr size_t kVector = static_cast<size_t>(kLanes);
  size_t kept = 0;
  size_t i = 0;
  for (; kept < ids.size(); ++i) OfferTopK(logits, i, ids, kept);
  for (; i + kVector <= n; i += kVector) {
    const V least = hn::Set(df, logits[ids[kept - 1]]);
    if (hn::AllFalse(df, hn::Gt(hn::LoadU(df, &logits[i]), least))) continue;
    for (size_t j = 0; j < kVector; ++j) OfferTopK(logits, i + j, ids, kept);
  }
  for (; i < n; ++i) OfferTopK(logits, i, ids, kept);
}

}  // namespace
}  // namespace conclave::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave::kernels::fast {

HWY_EXPORT(ArgMaxImpl);
HWY_EXPORT(LogSumExpImpl);
HWY_EXPORT(TopKImpl);

int32_t ArgMax(std::span<const float> logits) {
  return HWY_DYNAMIC_DISPATCH(ArgMaxImpl)(logits);
}

float LogSumExp(std::span<const float> logits) {
  return HWY_DYNAMIC_DISPATCH(LogSumExpImpl)(logits);
}

void TopK(std::span<const float> logits, std::span<int32_t> ids) {
  HWY_DYNAMIC_DISPATCH(TopKImpl)(logits, ids);
}

}  // namespace conclave::kernels::fast
#endif  // HWY_ONCE

// SPDX-License-Identifier: Apache-2.0
#include "tests/gpu/attention_world.h"

#include <cstring>
#include <span>
#include <utility>

#include "common/bf16.h"
#include "kernels/sequence_forms.h"
#include "tests/gpu/kv_values.h"

namespace conclave::kernels {

AttentionWorld::AttentionWorld(int32_t heads,
                               KvDType dtype,
                               const std::vector<WorldPart>& parts)
    : dtype_(dtype), random_(29), machine_(Backend::kCpuPlain) {
  shape_ = {.heads = heads,
            .kv_heads = 2,
            .head_dim = kWorldHeadDim,
            .rotary_dim = 64};
  auto queue = DeviceQueue::Create(0);
  EXPECT_TRUE(queue.ok()) << queue.status();
  if (queue.ok()) queue_ = *std::move(queue);
  for (auto* norm : {&q_norm_, &k_norm_}) {
    *norm = random_.Floats(kWorldHeadDim, 0.25);
    for (float& x : *norm) x += 1;
  }
  q_norm_device_ = Up(*queue_, q_norm_);
  k_norm_device_ = Up(*queue_, k_norm_);
  Place(parts);
  MakeCache();
  projected_ = random_.Floats(static_cast<size_t>(rows_) * Stride());
}

std::vector<float> AttentionWorld::OnDevice(const DeviceStep& step,
                                            bool y_bf16,
                                            size_t first) {
  Begin(step);
  EXPECT_TRUE(Queue(step, y_bf16, first).ok());
  return Output(step.rows, y_bf16);
}

void AttentionWorld::Begin(const DeviceStep& step) {
  const size_t floats =
      AttentionScratchFloats(*queue_, shape_, step.rows, step.sequences);
  scratch_ = Room(*queue_, floats * sizeof(float));
  y_ = Room(*queue_, step.rows * Width() * sizeof(float));
  EXPECT_TRUE(queue_->Fill(scratch_, 0xff).ok());
  EXPECT_TRUE(queue_->Fill(y_, 0xff).ok());
  projected_device_ = Up(*queue_, projected_);
}

absl::Status AttentionWorld::Queue(const DeviceStep& step,
                                   bool y_bf16,
                                   size_t first) {
  return DeviceAttention(
      queue_.get(),
      shape_,
      {q_norm_device_.as<float>(), k_norm_device_.as<float>()},
      {cache_device_.as<void>(), dtype_},
      step,
      projected_device_.as<float>() + first * Stride(),
      scratch_.as<float>(),
      {y_.as<void>(), y_bf16});
}

std::vector<float> AttentionWorld::Output(int32_t rows, bool y_bf16) {
  const size_t n = rows * Width();
  if (!y_bf16) return Down(*queue_, y_.as<float>(), n);
  std::vector<float> out;
  for (const uint16_t x : Down(*queue_, y_.as<uint16_t>(), n)) {
    out.push_back(FromBf16(x));
  }
  return out;
}

std::vector<float> AttentionWorld::OnHost() {
  const size_t kv = 2 * kWorldHeadDim;
  std::vector<float> y(rows_ * Width());
  size_t row = 0;
  for (const TestSequence& s : sequences_) {
    std::vector<float> q, k, v;
    for (int32_t i = 0; i < s.rows; ++i) {
      const float* from = &projected_[(row + i) * Stride()];
      q.insert(q.end(), from, from + 2 * Width());
      k.insert(k.end(), from + 2 * Width(), from + 2 * Width() + kv);
      v.insert(v.end(), from + 2 * Width() + kv, from + Stride());
    }
    AttentionWeights weights;
    weights.q_norm = q_norm_;
    weights.k_norm = k_norm_;
    const std::span<float> out(y);
    plain::Attention(machine_.context,
                     shape_,
                     weights,
                     {cache_},
                     {.rows = s.rows,
                      .position = s.position,
                      .cells = {},
                      .state_slots_out = {},
                      .kv_blocks = s.kv_blocks},
                     {.q = q,
                      .k = k,
                      .v = v,
                      .y = out.subspan(row * Width(), s.rows * Width())});
    row += s.rows;
  }
  return y;
}

void AttentionWorld::ExpectSame(const std::vector<float>& got,
                                const std::vector<float>& want,
                                double tolerance) const {
  ASSERT_EQ(got.size(), want.size());
  for (size_t row = 0; row < want.size() / Width(); ++row) {
    const double error = testing::RelativeError(
        &got[row * Width()], &want[row * Width()], Width());
    // Not "greater than": NaN is wrong too.
    EXPECT_TRUE(error <= tolerance) << "row " << row << ": " << error;
  }
}

void AttentionWorld::ExpectCacheAppended() const {
  const auto now = Down(*queue_, cache_device_.as<uint8_t>(), bytes_.size());
  std::vector<float> got, want;
  size_t changed = 0;
  for (size_t i = 0; i < cache_.size(); ++i) {
    const size_t at = DeviceIndex(i) * BytesOf(dtype_);
    if (appended_[i / kWorldHeadDim]) {
      got.push_back(Decode(dtype_, &now[at]));
      want.push_back(cache_[i]);
    } else if (std::memcmp(&now[at], &bytes_[at], BytesOf(dtype_)) != 0) {
      ++changed;
    }
  }
  EXPECT_EQ(changed, 0u) << "elements that are none of the step's";
  const double error =
      testing::RelativeError(got.data(), want.data(), want.size());
  EXPECT_TRUE(error <= ToleranceOf(dtype_)) << error;
}

void AttentionWorld::Place(const std::vector<WorldPart>& parts) {
  for (const WorldPart& part : parts) {
    const int32_t last = part.position + part.rows - 1;
    std::vector<int32_t> table(last / kWorldTokens + 1);
    for (int32_t& block : table) block = blocks_++;
    sequences_.push_back({.rows = part.rows,
                          .position = part.position,
                          .slots_out = {},
                          .kv_blocks = table});
    rows_ += part.rows;
  }
  blocks_ += kWorldSpareBlocks;
  std::vector<int32_t> order(blocks_);
  for (int32_t i = 0; i < blocks_; ++i) {
    order[i] = i;
    std::swap(order[i], order[random_.Int(i + 1)]);
  }
  for (TestSequence& s : sequences_) {
    for (int32_t& block : s.kv_blocks) block = order[block];
  }
}

size_t AttentionWorld::RowAt(const TestSequence& s,
                             int32_t part,
                             int32_t head,
                             int32_t p) {
  const size_t block = s.kv_blocks[p / kWorldTokens];
  return ((block * 2 + part) * 2 + head) * kWorldTokens + p % kWorldTokens;
}

size_t AttentionWorld::DeviceIndex(size_t i) {
  const size_t dim = i % kWorldHeadDim;
  const size_t token = i / kWorldHeadDim % kWorldTokens;
  const size_t head =
      i / (kWorldHeadDim * kWorldTokens);  // [blocks, 2, kv_heads]
  const bool is_value = head / 2 % 2 != 0;
  return head * kWorldHeadDim * kWorldTokens +
         (is_value ? dim * kWorldTokens + token : token * kWorldHeadDim + dim);
}

void AttentionWorld::MakeCache() {
  const size_t size =
      static_cast<size_t>(blocks_) * 4 * kWorldTokens * kWorldHeadDim;
  cache_ = random_.Floats(size);
  for (float& x : cache_) x = Rounded(dtype_, x);
  bytes_.assign(size * BytesOf(dtype_), 0xff);
  appended_.assign(size / kWorldHeadDim, false);
  for (const TestSequence& s : sequences_) {
    for (int32_t p = 0; p < s.position + s.rows; ++p) {
      for (int32_t i = 0; i < 4; ++i) {
        const size_t row = RowAt(s, i / 2, i % 2, p);
        appended_[row] = p >= s.position;
        if (appended_[row]) continue;
        for (size_t at = row * kWorldHeadDim; at < (row + 1) * kWorldHeadDim;
             ++at) {
          Encode(
              dtype_, cache_[at], &bytes_[DeviceIndex(at) * BytesOf(dtype_)]);
        }
      }
    }
  }
  cache_device_ = Up(*queue_, bytes_);
}

}  // namespace conclave::kernels

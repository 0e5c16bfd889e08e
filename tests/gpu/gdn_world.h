// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "common/bf16.h"
#include "kernels/device_gdn.h"
#include "tests/gpu/device_values.h"
#include "tests/testing/seeded.h"

namespace conclave::kernels {

// A sequence's rows of a step.
struct GdnPiece {
  int32_t rows = 1;
  int32_t position = 0;
  int32_t slot_in = -1;
  std::vector<int32_t> slots_out = {};  // of the last row, or of each
  uint32_t seed = 0;  // of the sequence: the same inputs at a position

  int32_t SlotOf(int32_t row) const {
    if (static_cast<int32_t>(slots_out.size()) == rows) return slots_out[row];
    return slots_out.empty() || row + 1 < rows ? -1 : slots_out[0];
  }
};

// One-row sequences among prompts, some with states before, with a slot for
// each row of one.
std::vector<GdnPiece> MixedPieces();

// A layer with its slots, on the device and for the plain twin.
class GdnWorld {
 public:
  GdnWorld(int32_t key_heads,
           int32_t value_heads,
           int32_t slots,
           int32_t gpu = 0,
           GdnDType dtype = GdnDType::kF32)
      : slots(slots), dtype_(dtype) {
    shape.key_heads = key_heads;
    shape.value_heads = value_heads;
    shape.key_dim = shape.value_dim = 128;
    shape.conv_kernel = 4;
    auto created = DeviceQueue::Create(gpu);
    EXPECT_TRUE(created.ok()) << created.status();
    queue_ = *std::move(created);
    conv_ = testing::Seeded(1).Floats(Channels() * 4, 0.5);
    a_log_ = testing::Seeded(2).Floats(value_heads, 2.5);
    // From long memories to short ones.
    for (float& x : a_log_) x -= 1.5f;
    dt_bias_ = testing::Seeded(3).Floats(value_heads);
    norm_ = testing::Seeded(4).Floats(128, 1.5);
    ring.assign(slots * Channels() * 4, 7.0f);
    recurrent.assign(slots * StateSize(), 7.0f);
    plain_conv.assign((slots + 1) * Channels() * 3, 7.0f);
    plain_recurrent.assign((slots + 1) * StateSize(), 7.0f);
  }

  size_t Channels() const { return shape.channels(); }
  size_t Values() const { return shape.value_heads * size_t{128}; }
  size_t Columns() const {
    return Channels() + Values() + 2 * shape.value_heads;
  }
  size_t StateSize() const { return Values() * 128; }

  // Of the decays, [value_heads]; and what is added to what becomes beta.
  void SetGates(const std::vector<float>& a_log,
                const std::vector<float>& dt_bias,
                float b_shift) {
    a_log_ = a_log;
    dt_bias_ = dt_bias;
    b_shift_ = b_shift;
  }

  // As states hold them.
  std::vector<float> Stored(std::vector<float> values) const {
    if (dtype_ == GdnDType::kF32) return values;
    for (float& x : values) x = FromBf16(ToBf16(x));
    return values;
  }

  // A random state of a sequence whose next row is at `position`. What lies at
  // that row of the ring must not be read.
  void FillSlot(int32_t slot, int32_t position, uint32_t seed) {
    testing::Seeded random(seed);
    const auto conv = random.Floats(Channels() * 3);
    const auto state = Stored(random.Floats(StateSize(), 0.1));
    std::copy(conv.begin(), conv.end(), &plain_conv[slot * conv.size()]);
    for (auto* to : {&recurrent, &plain_recurrent}) {
      std::copy(state.begin(), state.end(), to->begin() + slot * state.size());
    }
    float* rows = &ring[slot * Channels() * 4];
    std::fill_n(rows, Channels() * 4, std::numeric_limits<float>::quiet_NaN());
    for (int32_t j = 0; j < 3; ++j) {
      std::copy_n(&conv[j * Channels()],
                  Channels(),
                  rows + ((position + 1 + j) & 3) * Channels());
    }
  }

  // Of each of them that reads a slot.
  void FillSlots(const std::vector<GdnPiece>& pieces);

  // The projected row of a sequence at each position.
  std::vector<float> Projected(const GdnPiece& piece) const {
    std::vector<float> out;
    for (int32_t row = 0; row < piece.rows; ++row) {
      const uint32_t seed =
          piece.seed * 1000003u + (piece.position + row) * 7919u;
      auto values = testing::Seeded(seed).Floats(Columns());
      for (int32_t head = 0; head < shape.value_heads; ++head) {
        values[Channels() + Values() + head] += b_shift_;
      }
      out.insert(out.end(), values.begin(), values.end());
    }
    return out;
  }

  std::vector<float> Device(const std::vector<GdnPiece>& pieces,
                            bool bf16 = false,
                            GdnForm form = GdnForm::kRecurrent) {
    std::vector<TestSequence> sequences;
    std::vector<float> all;
    for (const GdnPiece& piece : pieces) {
      const auto rows = Projected(piece);
      all.insert(all.end(), rows.begin(), rows.end());
      TestSequence s;
      s.rows = piece.rows;
      s.position = piece.position;
      s.slot_in = piece.slot_in;
      for (int32_t row = 0; row < piece.rows; ++row) {
        s.slots_out.push_back(piece.SlotOf(row));
      }
      sequences.push_back(s);
    }
    const TestStep step(*queue_, sequences);
    const auto conv = Up(*queue_, conv_);
    const auto a_log = Up(*queue_, a_log_);
    const auto dt_bias = Up(*queue_, dt_bias_);
    const auto norm = Up(*queue_, norm_);
    const auto rings = Up(*queue_, ring);
    const auto states = UpStates();
    const auto projected = Up(*queue_, all);
    const size_t count = step.step.rows * Values();
    const auto y = Room(*queue_, count * (bf16 ? 2 : 4));
    const auto scratch = Room(
        *queue_, GdnScratchFloats(shape, form, step.step.rows) * sizeof(float));
    // Not numbers: neither may be read before it is written.
    EXPECT_TRUE(queue_->Fill(y, 0xff).ok());
    EXPECT_TRUE(queue_->Fill(scratch, 0xff).ok());
    const DeviceGdnWeights weights = {conv.as<float>(),
                                      a_log.as<float>(),
                                      dt_bias.as<float>(),
                                      norm.as<float>()};
    const absl::Status status =
        DeviceGdn(queue_.get(),
                  shape,
                  weights,
                  {rings.as<float>(), states.as<void>(), dtype_},
                  step.step,
                  form,
                  projected.as<float>(),
                  scratch.as<float>(),
                  {y.as<void>(), bf16});
    EXPECT_TRUE(status.ok()) << status;
    ring = Down(*queue_, rings.as<float>(), ring.size());
    recurrent = DownFloats(states, recurrent.size(), dtype_ == GdnDType::kBF16);
    return DownFloats(y, count, bf16);
  }

  std::vector<float> Plain(const std::vector<GdnPiece>& pieces);

  const int32_t slots;
  GdnShape shape;
  std::vector<float> ring, recurrent;  // on the device
  // The plain twin's, with one more slot for rows that have none.
  std::vector<float> plain_conv, plain_recurrent;

 private:
  DeviceBuffer UpStates();
  std::vector<float> DownFloats(const DeviceBuffer& from,
                                size_t count,
                                bool bf16);

  const GdnDType dtype_;
  std::unique_ptr<DeviceQueue> queue_;
  std::vector<float> conv_, a_log_, dt_bias_, norm_;
  float b_shift_ = 0;  // of what becomes beta
};

}  // namespace conclave::kernels

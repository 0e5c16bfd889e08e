// SPDX-License-Identifier: Apache-2.0
#include "coordinator/quantize/decode.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "common/dtype.h"

namespace conclave::quantize {
namespace {

using kernels::Packing;
using kernels::WeightView;

// Values of every code, through the slow reader: made once per format, or once
// per scale, where one has fewer codes than columns.
void Values(WeightView one,
            std::span<const uint8_t> codes,
            std::span<float> out) {
  one.data = codes.data();
  one.rows = 1;
  one.cols = static_cast<int64_t>(out.size());
  one.row_stride = static_cast<int64_t>(codes.size());
  one.group = static_cast<int32_t>(out.size());
  kernels::DecodeRow(one, 0, out);
}

// All codes of `bits` bits in ascending order, packed.
template <int kBits>
std::array<uint8_t, (1 << kBits) * kBits / 8> AllCodes() {
  std::array<uint8_t, (1 << kBits)* kBits / 8> out = {};
  for (int code = 0; code < 1 << kBits; ++code) {
    for (int b = 0; b < kBits; ++b) {
      const int bit = code * kBits + b;
      out[bit / 8] |= static_cast<uint8_t>((code >> b & 1) << (bit % 8));
    }
  }
  return out;
}

template <int kBits>
void Affine(const WeightView& w, int64_t row, std::span<float> out) {
  static const auto kAll = AllCodes<kBits>();
  constexpr uint64_t kMask = (1 << kBits) - 1;
  std::array<float, 1 << kBits> values;
  const auto* codes = static_cast<const uint8_t*>(w.data) + row * w.row_stride;
  const auto at = [&](const void* base, int64_t group) -> const void* {
    if (base == nullptr) return nullptr;
    return static_cast<const uint16_t*>(base) + row * w.scale_stride + group;
  };
  for (int64_t group = 0; group * w.group < w.cols; ++group) {
    WeightView one = w;
    one.scales = at(w.scales, group);
    one.biases = at(w.biases, group);
    Values(one, kAll, values);
    float* to = out.data() + group * w.group;
    for (int32_t c = 0; c < w.group; c += 8, codes += kBits, to += 8) {
      uint64_t window = 0;
      std::memcpy(&window, codes, kBits);
      for (int i = 0; i < 8; ++i) to[i] = values[window >> (i * kBits) & kMask];
    }
  }
}

void Fp8(const WeightView& w, int64_t row, std::span<float> out) {
  static const std::array<float, 256> kValues = [] {
    std::array<float, 256> values;
    std::array<uint8_t, 256> codes;
    const std::array<uint16_t, 2> ones = {0x3F80, 0x3F80};  // bf16
    for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
    const WeightView table{.data = codes.data(),
                           .dtype = DType::kU8,
                           .rows = 1,
                           .cols = 256,
                           .row_stride = 256,
                           .packing = Packing::kFp8Block,
                           .group = 128,
                           .scales = ones.data(),
                           .scale_stride = 2};
    kernels::DecodeRow(table, 0, values);
    return values;
  }();
  const auto* codes = static_cast<const uint8_t*>(w.data) + row * w.row_stride;
  for (int64_t begin = 0; begin < w.cols; begin += kFp8Block) {
    const int64_t end = std::min<int64_t>(begin + kFp8Block, w.cols);
    float scale = 0;
    WeightView one = w;
    // The slow reader finds the block's scale; 1.0 is code 0x38.
    constexpr uint8_t kOne = 0x38;
    one.data = &kOne;
    one.rows = one.cols = one.row_stride = 1;
    one.first_row = 0;
    one.scales = static_cast<const uint16_t*>(w.scales) +
                 (w.first_row + row) / w.group * w.scale_stride +
                 begin / kFp8Block;
    kernels::DecodeRow(one, 0, {&scale, 1});
    for (int64_t c = begin; c < end; ++c) out[c] = kValues[codes[c]] * scale;
  }
}

}  // namespace

void DecodeRowFast(const WeightView& w, int64_t row, std::span<float> out) {
  if (w.packing == Packing::kFp8Block) return Fp8(w, row, out);
  if (w.packing == Packing::kAffine) {
    switch (w.bits) {
      case 3:
        return Affine<3>(w, row, out);
      case 4:
        return Affine<4>(w, row, out);
      case 5:
        return Affine<5>(w, row, out);
      default:
        break;  // as many codes as columns: a table gains nothing
    }
  }
  kernels::DecodeRow(w, row, out);
}

}  // namespace conclave::quantize

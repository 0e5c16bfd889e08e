// SPDX-License-Identifier: Apache-2.0
#include "kernels/weight.h"

#include <cmath>

#include "common/bf16.h"
#include "common/check.h"

namespace conclave::kernels {
namespace {

// IEEE 754 binary16.
float FromF16(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                               : std::ldexp(static_cast<float>(mantissa + 1024),
                                            exponent - 25));
}

// OCP 8-bit float E4M3: bias 7, no infinity, 0x7F is NaN.
float FromE4M3(uint8_t bits) {
  const int exponent = bits >> 3 & 15;
  const int mantissa = bits & 7;
  const float sign = (bits & 0x80) != 0 ? -1.0f : 1.0f;
  if (exponent == 15 && mantissa == 7) return NAN;
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                               : std::ldexp(static_cast<float>(mantissa + 8),
                                            exponent - 10));
}

float Half(const WeightView& w, const void* from, int64_t at) {
  const uint16_t bits = static_cast<const uint16_t*>(from)[at];
  return w.scale_dtype == DType::kF16 ? FromF16(bits) : FromBf16(bits);
}

uint32_t Code(const uint8_t* row, int64_t bit, int32_t bits) {
  if (bits == 8) return row[bit / 8];
  uint32_t code = 0;
  for (int32_t b = 0; b < bits; ++b, ++bit) {
    code |= static_cast<uint32_t>(row[bit / 8] >> (bit % 8) & 1) << b;
  }
  return code;
}

void DecodeAffine(const WeightView& w, int64_t row, std::span<float> out) {
  const auto* codes = static_cast<const uint8_t*>(w.data) + row * w.row_stride;
  for (int64_t begin = 0; begin < w.cols; begin += w.group) {
    const int64_t at = row * w.scale_stride + begin / w.group;
    const float scale = Half(w, w.scales, at);
    const float bias = w.biases != nullptr ? Half(w, w.biases, at)
                                           : -std::ldexp(scale, w.bits - 1);
    for (int64_t c = begin; c < begin + w.group; ++c) {
      const auto code = static_cast<float>(Code(codes, c * w.bits, w.bits));
      out[c] = std::fma(scale, code, bias);
    }
  }
}

void DecodeFp8(const WeightView& w, int64_t row, std::span<float> out) {
  const auto* codes = static_cast<const uint8_t*>(w.data) + row * w.row_stride;
  const int64_t scales = (w.first_row + row) / w.group * w.scale_stride;
  for (int64_t c = 0; c < w.cols; ++c) {
    out[c] = FromE4M3(codes[c]) * Half(w, w.scales, scales + c / kFp8Block);
  }
}

const void* Advance(const void* from, int64_t elements) {
  return from == nullptr ? nullptr
                         : static_cast<const uint16_t*>(from) + elements;
}

}  // namespace

WeightView ViewOf(const StoredWeight& weight) {
  const WeightLayout& layout = weight.layout;
  WeightView out{.data = weight.data,
                 .dtype = layout.dtype,
                 .rows = layout.rows,
                 .cols = layout.cols,
                 .row_stride = layout.cols};
  if (layout.dtype != DType::kF8E4M3 && layout.dtype != DType::kU32) return out;
  out.packing =
      layout.dtype == DType::kU32 ? Packing::kAffine : Packing::kFp8Block;
  out.dtype = DType::kU8;
  out.row_stride = static_cast<int64_t>(layout.row_bytes());
  out.bits = layout.bits;
  out.group = layout.group;
  out.scale_dtype = layout.scale_dtype;
  out.scales = weight.scales;
  out.biases = weight.biases;
  out.scale_stride = layout.scale_stride();
  return out;
}

WeightView Rows(const WeightView& w, int64_t begin, int64_t count) {
  WeightView out = w;
  out.data = static_cast<const char*>(w.data) +
             begin * w.row_stride * static_cast<int64_t>(SizeOf(w.dtype));
  out.rows = count;
  if (w.packing == Packing::kAffine) {
    out.scales = Advance(w.scales, begin * w.scale_stride);
    out.biases = Advance(w.biases, begin * w.scale_stride);
  } else if (w.packing == Packing::kFp8Block) {
    out.first_row = w.first_row + begin;
  }
  return out;
}

int64_t RowBytes(const WeightView& w) {
  constexpr int64_t kByte = 8;
  return w.packing == Packing::kAffine
             ? w.cols * w.bits / kByte
             : w.cols * static_cast<int64_t>(SizeOf(w.dtype));
}

WeightView Columns(const WeightView& w, int64_t begin, int64_t end) {
  const int64_t group = w.packing == Packing::kPlain    ? 1
                        : w.packing == Packing::kAffine ? w.group
                                                        : kFp8Block;
  CONCLAVE_CHECK(begin >= 0 && begin <= end && end <= w.cols);
  CONCLAVE_CHECK(begin % group == 0 && (end % group == 0 || end == w.cols));
  WeightView skipped = w;
  skipped.cols = begin;
  WeightView out = w;
  out.data = static_cast<const char*>(w.data) + RowBytes(skipped);
  out.cols = end - begin;
  if (w.packing != Packing::kPlain) {
    out.scales = Advance(w.scales, begin / group);
    out.biases = Advance(w.biases, begin / group);
  }
  return out;
}

void DecodeRow(const WeightView& w, int64_t row, std::span<float> out) {
  switch (w.packing) {
    case Packing::kAffine:
      return DecodeAffine(w, row, out);
    case Packing::kFp8Block:
      return DecodeFp8(w, row, out);
    case Packing::kPlain:
      break;
  }
  for (int64_t c = 0; c < w.cols; ++c) {
    const int64_t at = row * w.row_stride + c;
    out[c] = w.dtype == DType::kBF16
                 ? FromBf16(static_cast<const uint16_t*>(w.data)[at])
                 : static_cast<const float*>(w.data)[at];
  }
}

void CheckWeight(const WeightView& w) {
  if (w.packing == Packing::kPlain) {
    CONCLAVE_CHECK(w.dtype == DType::kF32 || w.dtype == DType::kBF16);
    CONCLAVE_CHECK_GE(w.row_stride, w.cols);
    return;
  }
  CONCLAVE_CHECK(w.dtype == DType::kU8 && w.scales != nullptr);
  CONCLAVE_CHECK(w.scale_dtype == DType::kBF16 || w.scale_dtype == DType::kF16);
  if (w.packing == Packing::kFp8Block) {
    CONCLAVE_CHECK_GE(w.row_stride, w.cols);
    CONCLAVE_CHECK_GE(w.scale_stride * kFp8Block, w.cols);
    CONCLAVE_CHECK(w.group > 0);
    return;
  }
  CONCLAVE_CHECK((w.bits >= 3 && w.bits <= 6) || w.bits == 8);
  CONCLAVE_CHECK(w.group > 0 && w.group % 32 == 0 && w.cols % w.group == 0);
  CONCLAVE_CHECK_GE(w.row_stride * 8, w.cols * w.bits);
  CONCLAVE_CHECK_GE(w.scale_stride * w.group, w.cols);
}

}  // namespace conclave::kernels

// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/linear.h"
#include "common/checkpoint/tensor_check.h"
#include "common/status_macros.h"

namespace conclave::checkpoint {
namespace {

// Rows that are not taken whole are read so many bytes at a time.
constexpr uint64_t kPieceBytes = uint64_t{1} << 20;

// Calls visit(row, bytes) for rows [begin, end) of a tensor whose rows have so
// many bytes; reads many at a time.
template <class Visit>
absl::Status ForEachRow(const Checkpoint& checkpoint,
                        const TensorView& tensor,
                        uint64_t row_bytes,
                        int64_t begin,
                        int64_t end,
                        const Visit& visit) {
  const auto step =
      static_cast<int64_t>(std::max<uint64_t>(1, kPieceBytes / row_bytes));
  // Kept from call to call: a load makes hundreds of thousands of them.
  thread_local std::vector<std::byte> piece;
  for (int64_t row = begin; row < end; row += step) {
    const int64_t rows = std::min(step, end - row);
    piece.resize(rows * row_bytes);
    RETURN_IF_ERROR(checkpoint.ReadBytes(tensor, row * row_bytes, piece));
    for (int64_t i = 0; i < rows; ++i) {
      visit(row + i, std::span(piece).subspan(i * row_bytes, row_bytes));
    }
  }
  return absl::OkStatus();
}

// Rows [begin, end) of `tensor`, of each the bytes [first, first + width).
absl::Status ReadRows(const Checkpoint& checkpoint,
                      const TensorView& tensor,
                      uint64_t row_bytes,
                      int64_t begin,
                      int64_t end,
                      uint64_t first,
                      uint64_t width,
                      std::span<std::byte> out) {
  if (width == row_bytes) {
    return checkpoint.ReadBytes(tensor, begin * row_bytes, out);
  }
  return ForEachRow(checkpoint,
                    tensor,
                    row_bytes,
                    begin,
                    end,
                    [&](int64_t row, std::span<const std::byte> bytes) {
                      std::memcpy(out.data() + (row - begin) * width,
                                  bytes.data() + first,
                                  width);
                    });
}

// Element type T; tensor [from cols, all rows] -> out [rows, cols of the cut].
template <class T>
absl::Status ReadTransposed(const Checkpoint& checkpoint,
                            const TensorView& tensor,
                            int64_t row_begin,
                            int64_t rows,
                            int64_t begin,
                            int64_t end,
                            std::span<std::byte> out) {
  const int64_t width = end - begin;
  auto* to = reinterpret_cast<T*>(out.data());
  return ForEachRow(
      checkpoint,
      tensor,
      tensor.shape[1] * sizeof(T),
      begin,
      end,
      [&](int64_t line, std::span<const std::byte> bytes) {
        const std::byte* from = bytes.data() + row_begin * sizeof(T);
        for (int64_t r = 0; r < rows; ++r) {
          std::memcpy(
              to + r * width + line - begin, from + r * sizeof(T), sizeof(T));
        }
      });
}

absl::Status CheckGptq(const Checkpoint& checkpoint, const Linear& linear) {
  std::vector<uint32_t> words(linear.zeros->data.size() / sizeof(uint32_t));
  RETURN_IF_ERROR(checkpoint.ReadBytes(
      *linear.zeros, 0, std::as_writable_bytes(std::span(words))));
  const uint32_t expected = 0x11111111u * linear.zero;
  for (const uint32_t word : words) {
    if (word == expected) continue;
    return BadTensor(*linear.zeros,
                     absl::StrCat("has zero points other than ",
                                  linear.zero,
                                  "; only symmetric GPTQ is supported"));
  }
  std::vector<int32_t> order(linear.order->data.size() / sizeof(int32_t));
  RETURN_IF_ERROR(checkpoint.ReadBytes(
      *linear.order, 0, std::as_writable_bytes(std::span(order))));
  for (size_t k = 0; k < order.size(); ++k) {
    if (order[k] == static_cast<int32_t>(k) / linear.layout.group) continue;
    return BadTensor(*linear.order,
                     "orders columns by activation (desc_act), which is not "
                     "supported");
  }
  return absl::OkStatus();
}

absl::Status ReadGptq(const Checkpoint& checkpoint,
                      const Linear& linear,
                      const Cut& cut,
                      const WeightSpans& out) {
  RETURN_IF_ERROR(CheckGptq(checkpoint, linear));
  const int64_t per_word = 32 / linear.layout.bits;
  const int64_t group = linear.layout.group;
  RETURN_IF_ERROR(ReadTransposed<uint32_t>(checkpoint,
                                           linear.weight,
                                           cut.row_begin,
                                           cut.rows(),
                                           cut.col_begin / per_word,
                                           cut.col_end / per_word,
                                           out.data));
  RETURN_IF_ERROR(ReadTransposed<uint16_t>(checkpoint,
                                           *linear.scales,
                                           cut.row_begin,
                                           cut.rows(),
                                           cut.col_begin / group,
                                           cut.col_end / group,
                                           out.scales));
  return CheckFinite(out.scales, *linear.scales);
}

// A line of scales per `layout.group` rows of the part.
absl::Status ReadFp8(const Checkpoint& checkpoint,
                     const Linear& linear,
                     const Cut& cut,
                     const WeightLayout& layout,
                     const WeightSpans& out) {
  RETURN_IF_ERROR(CheckFp8Codes(out.data, linear.weight));
  const int64_t line = Fp8Blocks(linear.layout.cols);
  const int64_t begin = cut.col_begin / kFp8Block;
  const uint64_t width = layout.scale_stride() * sizeof(uint16_t);
  std::vector<std::byte> all(linear.scales->data.size());
  RETURN_IF_ERROR(checkpoint.ReadBytes(*linear.scales, 0, all));
  std::byte* to = out.scales.data();
  for (int64_t row = 0; row < layout.rows; row += layout.group, to += width) {
    const int64_t from = (cut.row_begin + row) / kFp8Block * line + begin;
    std::memcpy(to, all.data() + from * sizeof(uint16_t), width);
  }
  return CheckFinite(out.scales, *linear.scales);
}

}  // namespace

absl::Status ReadPart(const Checkpoint& checkpoint,
                      const Linear& linear,
                      const Cut& cut,
                      const WeightLayout& layout,
                      const WeightSpans& out) {
  if (linear.transposed) return ReadGptq(checkpoint, linear, cut, out);
  const uint64_t row_bytes = linear.layout.row_bytes();
  // Bytes from column 0 on; cuts fall on whole bytes.
  WeightLayout before = linear.layout;
  before.cols = cut.col_begin;
  const int64_t begin = linear.first_row + cut.row_begin;
  const int64_t end = begin + cut.rows();
  RETURN_IF_ERROR(ReadRows(checkpoint,
                           linear.weight,
                           row_bytes,
                           begin,
                           end,
                           before.row_bytes(),
                           layout.row_bytes(),
                           out.data));
  if (layout.dtype == DType::kF8E4M3) {
    return ReadFp8(checkpoint, linear, cut, layout, out);
  }
  if (layout.dtype != DType::kU32) return absl::OkStatus();
  const auto read = [&](const TensorView& tensor, std::span<std::byte> to) {
    RETURN_IF_ERROR(ReadRows(checkpoint,
                             tensor,
                             linear.layout.scale_stride() * sizeof(uint16_t),
                             begin,
                             end,
                             cut.col_begin / layout.group * sizeof(uint16_t),
                             layout.scale_stride() * sizeof(uint16_t),
                             to));
    return CheckFinite(to, tensor);
  };
  RETURN_IF_ERROR(read(*linear.scales, out.scales));
  return read(*linear.biases, out.biases);
}

}  // namespace conclave::checkpoint

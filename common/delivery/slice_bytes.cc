// SPDX-License-Identifier: Apache-2.0
#include "common/delivery/slice_bytes.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"

namespace conclave::delivery {
namespace {

using checkpoint::SliceLayout;
using checkpoint::SliceSpans;
using checkpoint::WeightSpans;

// Calls visit(part of the slice, position in the range) for every piece of
// [offset, offset + length).
template <class Visit>
void ForEachPiece(const SliceSpans& slice,
                  uint64_t offset,
                  uint64_t length,
                  const Visit& visit) {
  uint64_t done = 0;
  for (const std::span<std::byte> part : InOrder(slice)) {
    if (done == length) return;
    if (offset >= part.size()) {
      offset -= part.size();
      continue;
    }
    const uint64_t here = std::min(length - done, part.size() - offset);
    visit(part.subspan(offset, here), done);
    done += here;
    offset = 0;
  }
  CONCLAVE_CHECK(done == length);
}

}  // namespace

std::array<std::span<std::byte>, 9> InOrder(const SliceSpans& s) {
  return {s.gate.data,
          s.gate.scales,
          s.gate.biases,
          s.up.data,
          s.up.scales,
          s.up.biases,
          s.down.data,
          s.down.scales,
          s.down.biases};
}

void CopyIn(std::span<const std::byte> bytes,
            uint64_t offset,
            const SliceSpans& slice) {
  ForEachPiece(
      slice, offset, bytes.size(), [&](std::span<std::byte> part, uint64_t at) {
        std::memcpy(part.data(), bytes.data() + at, part.size());
      });
}

void CopyOut(const SliceSpans& slice,
             uint64_t offset,
             std::span<std::byte> bytes) {
  ForEachPiece(
      slice, offset, bytes.size(), [&](std::span<std::byte> part, uint64_t at) {
        std::memcpy(bytes.data() + at, part.data(), part.size());
      });
}

SliceSpans SpansOver(std::span<std::byte> storage, const SliceLayout& layout) {
  CONCLAVE_CHECK(storage.size() == layout.bytes());
  const auto take = [&](uint64_t bytes) {
    const std::span<std::byte> out = storage.first(bytes);
    storage = storage.subspan(bytes);
    return out;
  };
  const auto weight = [&](const WeightLayout& w) {
    WeightSpans out;
    out.data = take(w.data_bytes());
    out.scales = take(w.scale_bytes());
    out.biases = take(w.bias_bytes());
    return out;
  };
  SliceSpans out;
  out.gate = weight(layout.gate);
  out.up = weight(layout.up);
  out.down = weight(layout.down);
  return out;
}

}  // namespace conclave::delivery

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "common/checkpoint/slice_part.h"

namespace conclave::delivery {

// The bytes of one slice in the order in which they travel and are hashed:
// data, scales and biases of gate, of up, of down.
std::array<std::span<std::byte>, 9> InOrder(
    const checkpoint::SliceSpans& slice);

// Bytes [offset, offset + bytes.size()) of them; the range lies within.
void CopyIn(std::span<const std::byte> bytes,
            uint64_t offset,
            const checkpoint::SliceSpans& slice);
void CopyOut(const checkpoint::SliceSpans& slice,
             uint64_t offset,
             std::span<std::byte> bytes);

// One slice in memory of its own, in that order; `storage` has
// layout.bytes() bytes and outlives the spans.
checkpoint::SliceSpans SpansOver(std::span<std::byte> storage,
                                 const checkpoint::SliceLayout& layout);

}  // namespace conclave::delivery

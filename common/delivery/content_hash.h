// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "common/checkpoint/slice_part.h"

namespace conclave::delivery {

// SHA-256 of a slice: of how it is stored, then of its bytes in order. Two
// slices with one hash are interchangeable.
using ContentHash = std::array<uint8_t, 32>;

ContentHash HashOf(const checkpoint::SliceLayout& layout,
                   const checkpoint::SliceSpans& slice);

// The same in parts, as the bytes come.
class SliceHasher {
 public:
  explicit SliceHasher(const checkpoint::SliceLayout& layout);
  ~SliceHasher();
  void Add(std::span<const std::byte> bytes);
  ContentHash Finish();  // once

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

std::string Hex(const ContentHash& hash);
// 32 bytes, as they travel; nothing for any other size.
std::optional<ContentHash> HashFromBytes(std::string_view bytes);
std::string ToBytes(const ContentHash& hash);

}  // namespace conclave::delivery

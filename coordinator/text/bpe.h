// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace conclave::text {

// Byte-pair merges over token ids: always the merge of the lowest rank, the
// leftmost of equals. Immutable after the Adds; thread-safe.
class Bpe {
 public:
  // The token of one byte.
  void SetByte(uint8_t byte, int32_t id) { byte_ids_[byte] = id; }
  // Merges are added in the order of their ranks.
  void AddMerge(int32_t left, int32_t right, int32_t merged);
  size_t merges() const { return merges_.size(); }

  // Appends the tokens of one piece; n log n in its length.
  void Encode(std::string_view piece, std::vector<int32_t>& out) const;

 private:
  struct Merge {
    int32_t rank;
    int32_t merged;
  };
  const Merge* Find(int32_t left, int32_t right) const;

  std::array<int32_t, 256> byte_ids_{};
  absl::flat_hash_map<uint64_t, Merge> merges_;
};

}  // namespace conclave::text

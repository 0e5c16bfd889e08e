// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::text {

// Byte-level BPE of tokenizer.json (docs/qwen3.5-moe 4.1): added tokens, NFC,
// the Qwen3.5 pre-tokenizer. Immutable; thread-safe.
class Tokenizer {
 public:
  // Reads tokenizer.json and tokenizer_config.json of the folder. Errors name
  // the file and the field.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(
      const std::string& folder);
  ~Tokenizer();

  // InvalidArgument: not UTF-8 (with the byte offset).
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text) const;

  // Bytes of one token (added tokens: their text). Empty for unused ids.
  std::string_view Bytes(int32_t id) const;
  // Special added tokens are hidden from replies.
  bool IsSpecial(int32_t id) const;
  std::optional<int32_t> AddedToken(std::string_view content) const;
  // 1 + the largest id in use.
  int32_t size() const;

  // Whole text at once; invalid UTF-8 becomes U+FFFD.
  std::string Decode(const std::vector<int32_t>& ids, bool skip_special) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::text

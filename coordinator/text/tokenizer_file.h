// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

namespace conclave::text {

struct AddedTokenEntry {
  int32_t id = 0;
  std::string content;
  bool special = false;
};

// tokenizer.json and tokenizer_config.json, checked: what they ask for is what
// tokenizer.cc does. Tokens are bytes here, no longer GPT-2's printable form.
struct TokenizerFile {
  std::string path;  // of tokenizer.json
  absl::flat_hash_map<std::string, int32_t> vocabulary;
  absl::flat_hash_map<int32_t, std::string> token_of;       // its inverse
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  std::vector<AddedTokenEntry> added;
};

absl::StatusOr<TokenizerFile> ReadTokenizerFile(const std::string& folder);

}  // namespace conclave::text

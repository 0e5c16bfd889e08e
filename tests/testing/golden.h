// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/safetensors.h"

namespace conclave::testing {

// One prompt of tests/golden/prompts.json with its float32 reference.
struct GoldenPrompt {
  std::string name;
  std::string text;
  std::vector<int32_t> ids;
  int32_t logits_from = 0;  // position of the first row that was kept
  std::vector<int32_t> greedy_ids;
  std::optional<int32_t> eos_at;  // index among greedy_ids

  // Greedy tokens that must agree: up to the first end token.
  std::vector<int32_t> greedy_until_eos() const;
};

// Read once; a broken file fails the calling test.
const std::vector<GoldenPrompt>& GoldenPrompts();
const GoldenPrompt& FindGolden(const std::string& name);

// A float32 or int32 tensor of tests/golden/NAME.fp32.safetensors.
class GoldenTensors {
 public:
  explicit GoldenTensors(const std::string& prompt);
  // Of tests/golden/NAME.safetensors.
  static GoldenTensors At(const std::string& name);
  bool Has(const std::string& tensor) const;
  std::vector<float> Floats(const std::string& tensor) const;
  std::vector<int32_t> Ints(const std::string& tensor) const;

 private:
  GoldenTensors() = default;
  std::unique_ptr<checkpoint::SafetensorsFile> file_;
};

// The embedded model, opened once per process.
const checkpoint::Checkpoint& TinyModel();

}  // namespace conclave::testing

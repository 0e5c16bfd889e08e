// SPDX-License-Identifier: Apache-2.0
// config.json and generation_config.json of any bytes: what is accepted keeps
// the bounds that everything after it relies on.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "common/checkpoint/model_config.h"
#include "common/limits.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;  // NOLINT: a fuzzer's main
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  (void)checkpoint::ParseEosTokenIds(text, "fuzz", 2048);
  const auto config = checkpoint::ParseModelConfig(text, "fuzz");
  if (!config.ok()) return 0;
  const auto& c = *config;
  const bool sane =
      c.hidden_size > 0 && c.hidden_size <= limits::kHiddenMax &&
      c.num_experts_per_tok <= c.num_experts &&
      c.full_attention.size() == static_cast<size_t>(c.num_hidden_layers) &&
      c.num_attention_heads % c.num_key_value_heads == 0 &&
      c.linear_num_value_heads % c.linear_num_key_heads == 0 &&
      c.rotary_dim > 0 && c.rotary_dim % 2 == 0 && c.rotary_dim <= c.head_dim &&
      c.rope_theta >= 1;
  if (!sane) std::abort();
  for (int32_t id : c.eos_token_ids) {
    if (id < 0 || id >= c.vocab_size) std::abort();
  }
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "common/checkpoint/json_fields.h"

namespace conclave::checkpoint {

// docs/qwen3.5-moe 2.4 to 2.6.
enum class QuantFormat {
  kNone,  // bf16 and float32
  kFp8,   // e4m3 in blocks of 128 x 128
  kGptq,  // int4, symmetric, packed along the columns
  kMlx,   // affine groups
};

// Affine codes: a scale per `group` columns; bits == 0: not quantised.
struct AffineFormat {
  int32_t bits = 0;
  int32_t group = 0;
  friend bool operator==(const AffineFormat&, const AffineFormat&) = default;
};

// What config.json says of the weights' storage. Which linears are converted
// shows in the tensors.
struct Quantisation {
  QuantFormat format = QuantFormat::kNone;
  AffineFormat affine;    // kGptq, kMlx: of modules that are not listed
  int32_t gptq_zero = 7;  // every stored zero point; 8 in gptq_v2
  // kMlx: modules of their own, by name without prefix ("layers.0.mlp.gate").
  std::map<std::string, AffineFormat, std::less<>> modules;

  // Of the module as the tensors call it.
  AffineFormat Of(std::string_view module) const;

  friend bool operator==(const Quantisation&, const Quantisation&) = default;
};

// Reads "quantization_config" and "quantization" where they stand. Errors go
// to `fields`: formats that are not supported, by name; options of supported
// ones that are not; two objects that disagree.
void ReadQuantisation(JsonFields& fields,
                      const std::string& file,
                      Quantisation* out);

}  // namespace conclave::checkpoint

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "common/checkpoint/checkpoint.h"
#include "tests/testing/checkpoint_writer.h"
#include "tests/testing/temp_folder.h"

namespace conclave::testing {

// A random model whose heads and columns two and four ranks can divide in every
// format.
inline CheckpointOptions MidSize(checkpoint::QuantFormat format = {},
                                 checkpoint::AffineFormat affine = {}) {
  return {.seed = 11,
          .hidden = 256,
          .experts = 16,
          .experts_per_token = 4,
          .intermediate = 512,
          .shared = 512,
          .heads = 8,
          .kv_heads = 2,
          .head_dim = 256,
          .gdn_key_heads = 4,
          .gdn_value_heads = 8,
          .gdn_key_dim = 128,
          .gdn_value_dim = 128,
          .format = format,
          .affine = affine};
}

// That model, stored in each format in turn.
inline void InEveryFormat(
    CheckpointOptions options,
    const std::function<void(const checkpoint::Checkpoint&)>& use) {
  using checkpoint::QuantFormat;
  for (const auto& [format, affine] :
       {std::pair(QuantFormat::kNone, checkpoint::AffineFormat{}),
        std::pair(QuantFormat::kMlx, checkpoint::AffineFormat{4, 64}),
        std::pair(QuantFormat::kMlx, checkpoint::AffineFormat{8, 32}),
        std::pair(QuantFormat::kGptq, checkpoint::AffineFormat{4, 128}),
        std::pair(QuantFormat::kFp8, checkpoint::AffineFormat{})}) {
    SCOPED_TRACE(static_cast<int>(format));
    options.format = format;
    options.affine = affine;
    TempFolder folder;
    WriteCheckpoint(folder.path(), options);
    const auto model = checkpoint::Checkpoint::Open(folder.path());
    ASSERT_TRUE(model.ok()) << model.status();
    use(**model);
  }
}

}  // namespace conclave::testing

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/checkpoint/shard_weights.h"
#include "tests/testing/checkpoint_writer.h"
#include "tests/testing/temp_folder.h"

namespace conclave::checkpoint {

using Edit = std::function<void(std::vector<testing::PlannedTensor>&)>;

// Writes quantised checkpoints and bends them.
class QuantisedTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open(
      testing::CheckpointOptions options, Edit edit = nullptr) {
    folder_.Clear();
    options.edit = std::move(edit);
    testing::WriteCheckpoint(folder_.path(), options);
    return Checkpoint::Open(folder_.path());
  }

  std::string OpenError(testing::CheckpointOptions options, Edit edit) {
    const auto status = Open(std::move(options), std::move(edit)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  }

  // Overwrites the first bytes of a tensor.
  void Poke(const Checkpoint& checkpoint, const char* name, std::string bytes) {
    const TensorView tensor = *checkpoint.Find(name);
    std::fstream file(tensor.file,
                      std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<int64_t>(tensor.file_offset));
    file << bytes;
  }

  static Shard OneExpert(int32_t begin, int32_t end) {
    return {ShardId{0}, {{LayerId{1}, ExpertId{3}, begin, end}}};
  }

  std::string LoadError(const Shard& shard) {
    const auto checkpoint = Checkpoint::Open(folder_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return std::string(
        LoadShard(**checkpoint, shard, nullptr).status().message());
  }

  static Edit Without(std::string key) {
    return [key](std::vector<testing::PlannedTensor>& plan) {
      std::erase_if(plan, [&](const auto& t) { return t.key == key; });
    };
  }
  // Of the same number of bytes.
  static Edit WithType(std::string key, std::string dtype) {
    return [key, dtype](std::vector<testing::PlannedTensor>& plan) {
      for (auto& t : plan) {
        if (t.key != key) continue;
        t.shape.back() = t.shape.back() * SizeOf(*DTypeFromName(t.dtype)) /
                         SizeOf(*DTypeFromName(dtype));
        t.dtype = dtype;
      }
    };
  }
  static Edit WithShape(std::string key, std::vector<int64_t> shape) {
    return [key, shape](std::vector<testing::PlannedTensor>& plan) {
      for (auto& t : plan) {
        if (t.key == key) t.shape = shape;
      }
    };
  }

  testing::TempFolder folder_;
};

}  // namespace conclave::checkpoint

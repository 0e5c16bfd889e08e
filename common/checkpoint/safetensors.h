// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"

namespace conclave::checkpoint {

// One safetensors file, memory-mapped read-only; headers bounded and checked
// (length, JSON, offsets inside the file, no overlap, size = shape x dtype).
// Immutable; thread-safe. Errors name file and tensor.
class SafetensorsFile {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(
      const std::string& path);
  ~SafetensorsFile();

  const std::vector<TensorView>& tensors() const;  // ascending by name
  absl::StatusOr<TensorView> Find(std::string_view name) const;

 private:
  struct Impl;
  explicit SafetensorsFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::checkpoint

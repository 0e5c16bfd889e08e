// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
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
  const std::string& path() const;

  // Fills `out` from byte `offset` of the file with pread.
  absl::Status Read(uint64_t offset, std::span<std::byte> out) const;

 private:
  struct Impl;
  explicit SafetensorsFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The check of a file's bytes behind Open; the views point into `file`. Reads
// the header only.
absl::StatusOr<std::vector<TensorView>> ParseSafetensors(
    std::span<const std::byte> file, const std::string& file_name);

}  // namespace conclave::checkpoint

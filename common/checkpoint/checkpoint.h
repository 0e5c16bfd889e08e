// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/model_config.h"
#include "common/dtype.h"

namespace conclave::checkpoint {

// One tensor of a checkpoint. `data` points into the mapped file and lives as
// long as the Checkpoint.
struct TensorView {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
  std::string file;  // for error messages
  uint64_t file_offset = 0;
};

// A folder with config.json and safetensors (one file or sharded by an index;
// the MTP block may stand apart in mtp/weights.safetensors), memory-mapped
// read-only. Immutable after Open; thread-safe.
class Checkpoint {
 public:
  // Reads headers only. Every bound is checked before use: header length,
  // offsets, overlap, sizes against shape x dtype, index against files. Then
  // the tensor list is checked against the configuration: a missing, surplus
  // or wrongly shaped tensor is InvalidArgument that names file and tensor.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(
      const std::string& folder);
  ~Checkpoint();

  const ModelConfig& config() const;
  const std::string& folder() const;

  // NotFound names the tensor and the folder. `name` is relative to the
  // language model's prefix, e.g. "layers.0.mlp.gate.weight",
  // "embed_tokens.weight"; "lm_head.weight" and "mtp.*" stand without prefix.
  absl::StatusOr<TensorView> Find(std::string_view name) const;
  bool Has(std::string_view name) const;

  // MLX layout: zero-centred norms have 1 added already.
  bool folded_norms() const;

  // Copies a BF16 or F32 tensor into float32.
  absl::StatusOr<std::vector<float>> ReadFloats(std::string_view name) const;

  // Reads bytes [offset, offset + out.size()) of a tensor with pread, so that
  // they do not count as mapped memory of this process.
  absl::Status ReadBytes(const TensorView& tensor,
                         uint64_t offset,
                         std::span<std::byte> out) const;

  uint64_t total_tensor_bytes() const;

 private:
  struct Impl;
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::checkpoint

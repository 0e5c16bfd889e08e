// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/model/device_decoder.h"
#include "coordinator/model/group_decoder.h"
#include "coordinator/planner/shapes.h"

// A published shape with made-up weights on GPUs, as --shape, --format,
// --layers, --weights, --kv-dtype and --gdn-state say.
namespace conclave::cli {

struct ShapeRequest {
  checkpoint::ModelConfig config;
  planner::WeightFormat format = planner::WeightFormat::kMlx4;
  kernels::KvDType kv = kernels::KvDType::kBF16;
  int32_t kv_bytes = 2;  // of an element
  kernels::GdnDType gdn = kernels::GdnDType::kF32;
  int32_t gdn_bytes = 4;
};

// The decoder and what it runs on: one GPU, or with --gpus a group.
struct ShapeBench {
  ShapeRequest request;
  std::string gpu;
  double read_bytes_per_s = 0;  // of a device's memory, just measured
  std::unique_ptr<model::DeviceDecoder> one;
  std::unique_ptr<model::GroupDecoder> group;

  model::Decoder& decoder() const;
  const model::DeviceDecoder& first() const;  // rank 0
  // As DeviceDecoder and GroupDecoder have them.
  absl::Status RunGreedy(const kernels::StepBatch& batch,
                         std::span<const int32_t> tokens,
                         std::span<int32_t> next) const;
  absl::StatusOr<double> Time(const kernels::StepBatch& batch,
                              std::span<const int32_t> tokens,
                              uint32_t blocks,
                              int32_t repeats) const;
};

// Room for `sequences` sequences of `tokens` tokens and steps of `rows_max`
// rows. InvalidArgument names the flag; Unavailable: no GPU;
// ResourceExhausted: too small a GPU.
absl::StatusOr<ShapeBench> PrepareShape(int32_t sequences,
                                        int32_t tokens,
                                        int32_t rows_max);

// Made-up tokens of `sequences` sequences, from number `first` on, with `rows`
// new rows each. A sequence has the same blocks, state slot and tokens in all
// steps made for the same number of `tokens`.
class ShapeSteps {
 public:
  ShapeSteps(int32_t sequences,
             int32_t rows,
             int32_t tokens,
             int32_t vocab,
             int32_t first = 0);
  // The step whose first row stands at `position`; valid until the next call.
  kernels::StepBatch At(int32_t position);
  std::span<const int32_t> tokens() const { return tokens_; }
  std::span<const int32_t> wanted() const { return wanted_; }

 private:
  int32_t vocab_;
  std::vector<int32_t> slots_, cells_, tokens_, wanted_;
  std::vector<std::vector<int32_t>> blocks_;
  std::vector<kernels::SequenceRows> sequences_;
};

}  // namespace conclave::cli

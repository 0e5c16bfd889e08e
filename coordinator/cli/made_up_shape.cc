// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/made_up_shape.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/parallel_tasks.h"
#include "common/status_macros.h"
#include "coordinator/cli/flags.h"
#include "coordinator/cli/group_flags.h"
#include "kernels/device.h"
#include "kernels/device_choice.h"

ABSL_FLAG(std::string, weights, "synthetic", "synthetic: made up on the GPU");
ABSL_FLAG(int32_t, layers, 0, "layers of the shape; 0: all");

ABSL_DECLARE_FLAG(std::string, shape);
ABSL_DECLARE_FLAG(std::string, format);
ABSL_DECLARE_FLAG(std::string, micro_batches);

namespace conclave::cli {
namespace {

using checkpoint::ModelConfig;
using kernels::SequenceRows;
using model::DeviceDecoder;
using model::LinearRole;
using planner::WeightFormat;

constexpr uint64_t kReadBytes = uint64_t{8} << 30;
constexpr int32_t kReadRepeats = 9;

WeightLayout Affine(int32_t bits, int32_t group, DType scales, bool biases) {
  return {.dtype = DType::kU32,
          .bits = bits,
          .group = group,
          .scale_dtype = scales,
          .biases = biases};
}

// How the format stores a linear (coordinator/planner/shapes.cc).
WeightLayout LayoutOf(WeightFormat format, LinearRole role) {
  switch (format) {
    case WeightFormat::kBf16:
      break;
    case WeightFormat::kFp8:
      if (role == LinearRole::kTable || role == LinearRole::kGates) break;
      return {.dtype = DType::kF8E4M3, .group = 128};
    case WeightFormat::kGptqInt4:
      if (role != LinearRole::kExpert) break;
      return Affine(4, 128, DType::kF16, false);
    case WeightFormat::kMlx3:
      return Affine(3, 64, DType::kBF16, true);
    case WeightFormat::kMlx4:
      return Affine(4, 64, DType::kBF16, true);
    case WeightFormat::kMlx5:
      return Affine(5, 64, DType::kBF16, true);
    case WeightFormat::kMlx6:
      return Affine(6, 64, DType::kBF16, true);
    case WeightFormat::kMlx8:
      return Affine(8, 64, DType::kBF16, true);
  }
  return {.dtype = DType::kBF16};
}

absl::StatusOr<ShapeRequest> FromFlags() {
  ShapeRequest out;
  if (absl::GetFlag(FLAGS_weights) != "synthetic") {
    return absl::InvalidArgumentError("--weights: synthetic");
  }
  ASSIGN_OR_RETURN(out.config, planner::ShapeOf(absl::GetFlag(FLAGS_shape)));
  const std::string format = absl::GetFlag(FLAGS_format);
  ASSIGN_OR_RETURN(out.format,
                   planner::ParseFormat(format.empty() ? "mlx4" : format));
  const std::string kv = KvDtypeFromFlags();
  if (kv == "fp8") {
    out.kv = kernels::KvDType::kFp8;
    out.kv_bytes = 1;
  } else if (kv != "bf16") {
    return absl::InvalidArgumentError("--kv-dtype: bf16 or fp8");
  }
  const std::string gdn = GdnStateFromFlags();
  if (gdn == "bf16") {
    out.gdn = kernels::GdnDType::kBF16;
    out.gdn_bytes = 2;
  } else if (gdn != "f32") {
    return absl::InvalidArgumentError("--gdn-state: f32 or bf16");
  }
  const int32_t layers = absl::GetFlag(FLAGS_layers);
  if (layers < 0 || layers > out.config.num_hidden_layers) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--layers: 1 to ", out.config.num_hidden_layers, ", or 0 for all"));
  }
  if (layers > 0) {
    out.config.num_hidden_layers = layers;
    out.config.full_attention.resize(static_cast<size_t>(layers));
  }
  return out;
}

model::MadeUpModel MadeUp(const ShapeRequest& request) {
  return {.config = request.config,
          .layout = [format = request.format](
                        LinearRole role, int64_t rows, int64_t cols) {
            WeightLayout layout = LayoutOf(format, role);
            layout.rows = rows;
            layout.cols = cols;
            return layout;
          }};
}

absl::StatusOr<std::unique_ptr<model::GroupDecoder>> MakeGroup(
    const model::MadeUpModel& made,
    const std::vector<int32_t>& gpus,
    const DeviceDecoder::Options& options) {
  const auto ranks = static_cast<int32_t>(gpus.size());
  ASSIGN_OR_RETURN(const model::GroupForm form,
                   ParseForm(absl::GetFlag(FLAGS_form)));
  ASSIGN_OR_RETURN(const kernels::GroupExchange exchange,
                   ParseExchange(absl::GetFlag(FLAGS_group_exchange)));
  ASSIGN_OR_RETURN(const std::vector<int32_t> shares,
                   ParseShares(absl::GetFlag(FLAGS_group_shares)));
  ASSIGN_OR_RETURN(const auto micro_batches,
                   Counts(absl::GetFlag(FLAGS_micro_batches),
                          "1",
                          limits::kMicroBatchesMax,
                          0));
  if (micro_batches.size() > 1 ||
      (micro_batches[0] != 1 && form != model::GroupForm::kLone)) {
    return absl::InvalidArgumentError(
        "--micro-batches: one number, and 1 but with --form lone");
  }
  std::vector<model::GroupDecoder::Member> members(gpus.size());
  const auto make = [&](int64_t rank) -> absl::Status {
    model::GroupDecoder::Member& member = members[static_cast<size_t>(rank)];
    const int32_t gpu = gpus[static_cast<size_t>(rank)];
    member.name = absl::StrCat("GPU ", gpu);
    ASSIGN_OR_RETURN(member.queue, kernels::DeviceQueue::Create(gpu));
    ASSIGN_OR_RETURN(
        member.weights,
        model::MakeUpWeights(made,
                             {static_cast<int32_t>(rank), ranks, form, shares},
                             member.queue.get()));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(ParallelTasks(ranks, ranks, make));
  return model::GroupDecoder::Create(
      std::move(members),
      {.each = options,
       .form = form,
       .exchange = exchange,
       .micro_batches = {.count = micro_batches[0]}});
}

}  // namespace

model::Decoder& ShapeBench::decoder() const {
  if (group != nullptr) return *group;
  return *one;
}

const DeviceDecoder& ShapeBench::first() const {
  return group != nullptr ? group->rank(0) : *one;
}

absl::Status ShapeBench::RunGreedy(const kernels::StepBatch& batch,
                                   std::span<const int32_t> tokens,
                                   std::span<int32_t> next) const {
  return group != nullptr ? group->RunGreedy(batch, tokens, next)
                          : one->RunGreedy(batch, tokens, next);
}

absl::StatusOr<double> ShapeBench::Time(const kernels::StepBatch& batch,
                                        std::span<const int32_t> tokens,
                                        uint32_t blocks,
                                        int32_t repeats) const {
  return group != nullptr ? group->Time(batch, tokens, blocks, repeats)
                          : one->Time(batch, tokens, blocks, repeats);
}

absl::StatusOr<ShapeBench> PrepareShape(int32_t sequences,
                                        int32_t tokens,
                                        int32_t rows_max) {
  ShapeBench out;
  ASSIGN_OR_RETURN(out.request, FromFlags());
  ASSIGN_OR_RETURN(const auto devices, kernels::ListCudaDevices());
  ASSIGN_OR_RETURN(std::vector<int32_t> gpus,
                   ParseGpus(absl::GetFlag(FLAGS_gpus)));
  if (gpus.empty()) gpus.push_back(0);
  ASSIGN_OR_RETURN(out.gpu, kernels::GpuName(devices, gpus[0], "--gpus:"));
  ASSIGN_OR_RETURN(
      out.read_bytes_per_s,
      kernels::MeasureReadBandwidth(gpus[0], kReadBytes, kReadRepeats));
  const int32_t blocks = (tokens + limits::kKvBlockTokens - 1) /
                         limits::kKvBlockTokens * sequences;
  const DeviceDecoder::Options options{
      .sizes = {.kv_blocks = blocks, .state_slots = sequences},
      .rows_max = rows_max,
      .sequences_max = sequences,
      .kv = out.request.kv,
      .gdn = out.request.gdn};
  const model::MadeUpModel made = MadeUp(out.request);
  if (gpus.size() > 1) {
    const std::string shares = absl::GetFlag(FLAGS_group_shares);
    out.gpu = absl::StrCat(gpus.size(),
                           " GPUs, ",
                           shares.empty() ? "" : "shares " + shares + ", ",
                           "the first ",
                           out.gpu);
    ASSIGN_OR_RETURN(out.group, MakeGroup(made, gpus, options));
    RETURN_IF_ERROR(out.group->MakeUpCache());
    return out;
  }
  ASSIGN_OR_RETURN(auto queue, kernels::DeviceQueue::Create(gpus[0]));
  ASSIGN_OR_RETURN(model::DeviceWeights weights,
                   model::MakeUpWeights(made, {}, queue.get()));
  ASSIGN_OR_RETURN(
      out.one,
      DeviceDecoder::Create(std::move(queue), std::move(weights), options));
  RETURN_IF_ERROR(out.one->MakeUpCache());
  return out;
}

ShapeSteps::ShapeSteps(int32_t sequences,
                       int32_t rows,
                       int32_t tokens,
                       int32_t vocab,
                       int32_t first)
    : vocab_(vocab) {
  const int32_t blocks =
      (tokens + limits::kKvBlockTokens - 1) / limits::kKvBlockTokens;
  for (int32_t s = 0; s < sequences; ++s) {
    slots_.push_back(first + s);
    blocks_.emplace_back(blocks);
    std::iota(blocks_[s].begin(), blocks_[s].end(), (first + s) * blocks);
    wanted_.push_back((s + 1) * rows - 1);
  }
  for (int32_t at = 0; rows > 1 && at < rows;) {
    at = std::min(rows, at + limits::kGdnCellRows);
    cells_.push_back(at);
  }
  sequences_.resize(sequences);
  tokens_.resize(static_cast<size_t>(sequences) * rows);
}

kernels::StepBatch ShapeSteps::At(int32_t position) {
  const auto count = static_cast<int32_t>(sequences_.size());
  const auto rows = static_cast<int32_t>(tokens_.size()) / count;
  for (int32_t s = 0; s < count; ++s) {
    sequences_[s] = {.row_begin = s * rows,
                     .rows = rows,
                     .position = position,
                     .cells = cells_,
                     .state_slot_in = position == 0 ? -1 : slots_[s],
                     .state_slots_out = {&slots_[s], 1},
                     .kv_blocks = blocks_[s]};
    for (int32_t r = 0; r < rows; ++r) {
      // Far apart, so that routing differs from row to row.
      const int64_t mixed =
          int64_t{slots_[s]} * 7919 + (position + r) * 104729LL;
      tokens_[static_cast<size_t>(s) * rows + r] =
          static_cast<int32_t>(mixed % vocab_);
    }
  }
  return {.sequences = sequences_, .rows = count * rows};
}

}  // namespace conclave::cli

// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/device_memory.h"

#include <algorithm>

#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/model/shapes.h"

namespace conclave::model {
namespace {

using checkpoint::ModelConfig;
using kernels::DeviceBuffer;
using kernels::DeviceQueue;
using kernels::GdnDType;
using kernels::KvDType;

size_t ElementBytes(KvDType dtype) {
  switch (dtype) {
    case KvDType::kF32:
      return sizeof(float);
    case KvDType::kBF16:
      return sizeof(uint16_t);
    case KvDType::kFp8:
      break;
  }
  return sizeof(uint8_t);
}

size_t ElementBytes(GdnDType dtype) {
  return dtype == GdnDType::kF32 ? sizeof(float) : sizeof(uint16_t);
}

size_t BlockBytes(const ModelConfig& config, KvDType kv) {
  return size_t{2} * config.num_key_value_heads * limits::kKvBlockTokens *
         config.head_dim * ElementBytes(kv);
}

// Of the widest row between the two linears of a mixer.
size_t ProjectedWidth(const ModelConfig& c, const kernels::GdnShape& gdn) {
  const size_t attention =
      size_t{2} * c.head_dim * (c.num_attention_heads + c.num_key_value_heads);
  const size_t recurrent = static_cast<size_t>(gdn.channels()) +
                           static_cast<size_t>(gdn.value_heads) *
                               (static_cast<size_t>(gdn.value_dim) + 2);
  return std::max(attention, recurrent);
}

// Rows that products may give in planes (kernels/device_product.h).
constexpr size_t kNarrowRows = 64;

// Columns as products pad them.
size_t Padded(size_t cols) {
  constexpr size_t kUnit = 64;
  return (cols + kUnit - 1) / kUnit * kUnit;
}

}  // namespace

StateBytes DeviceStateBytesOf(const ModelConfig& config,
                              KvDType kv,
                              GdnDType gdn) {
  const kernels::GdnShape s = GdnShapeOf(config);
  const int64_t slot =
      int64_t{s.conv_kernel} * s.channels() * int64_t{sizeof(float)} +
      int64_t{s.value_heads} * s.key_dim * s.value_dim *
          static_cast<int64_t>(ElementBytes(gdn));
  StateBytes out;
  for (const bool full : config.full_attention) {
    if (full) {
      out.per_kv_block += static_cast<int64_t>(BlockBytes(config, kv));
    } else {
      out.per_state_slot += slot;
    }
  }
  return out;
}

int32_t LogitRowsMax(int32_t vocab,
                     int32_t rows_max,
                     int32_t sequences_max,
                     uint64_t logit_bytes) {
  const uint64_t row_bytes = static_cast<uint64_t>(vocab) * sizeof(float);
  const uint64_t held = logit_bytes / row_bytes;
  const auto rows =
      static_cast<uint64_t>(FilledRowsMax(rows_max, sequences_max));
  return std::max(FilledSequencesMax(sequences_max),
                  static_cast<int32_t>(std::min(rows, held)));
}

absl::StatusOr<DeviceMemory> DeviceMemory::Create(DeviceQueue* queue,
                                                  const ModelConfig& config,
                                                  const Options& options) {
  DeviceMemory out;
  out.TakeShapes(config, options);
  RETURN_IF_ERROR(out.AllocateStates(queue, config, options));
  RETURN_IF_ERROR(out.AllocateArrays(queue, config, options));
  RETURN_IF_ERROR(out.AllocateLogits(queue, config, options));
  return out;
}

absl::StatusOr<uint64_t> DeviceMemory::ArrayBytes(DeviceQueue* queue,
                                                  const ModelConfig& config,
                                                  const Options& options) {
  DeviceMemory out;
  out.only_count_ = true;
  out.TakeShapes(config, options);
  RETURN_IF_ERROR(out.AllocateArrays(queue, config, options));
  RETURN_IF_ERROR(out.AllocateLogits(queue, config, options));
  return out.array_bytes_;
}

void DeviceMemory::TakeShapes(const ModelConfig& config,
                              const Options& options) {
  exact_ = options.exact;
  kv_ = options.kv;
  gdn_dtype_ = options.gdn;
  hidden_ = config.hidden_size;
  experts_ = config.num_experts;
  top_k_ = config.num_experts_per_tok;
  attention_ = AttentionShapeOf(config);
  gdn_ = GdnShapeOf(config);
}

absl::Status DeviceMemory::AllocateStates(DeviceQueue* queue,
                                          const ModelConfig& config,
                                          const Options& options) {
  if (options.states_of != nullptr) {
    layers_ = options.states_of->layers_;
    return absl::OkStatus();
  }
  const auto layers = std::make_shared<std::vector<Layer>>();
  layers_ = layers;
  const auto slots = static_cast<size_t>(options.sizes.state_slots);
  const auto blocks = static_cast<size_t>(options.sizes.kv_blocks) + 1;
  const size_t block_bytes = BlockBytes(config, kv_);
  for (const bool full : config.full_attention) {
    Layer& layer = layers->emplace_back();
    if (full) {
      ASSIGN_OR_RETURN(layer.kv,
                       queue->Allocate(blocks * block_bytes, "KV cache"));
      // What was never written must be numbers where a tile reads past the
      // end of a sequence.
      RETURN_IF_ERROR(queue->Fill(layer.kv, 0));
      continue;
    }
    ASSIGN_OR_RETURN(
        layer.conv,
        queue->Allocate(slots * conv_floats() * sizeof(float), "GDN states"));
    ASSIGN_OR_RETURN(
        layer.recurrent,
        queue->Allocate(slots * recurrent_size() * ElementBytes(gdn_dtype_),
                        "GDN states"));
    RETURN_IF_ERROR(queue->Fill(layer.conv, 0));
    RETURN_IF_ERROR(queue->Fill(layer.recurrent, 0));
  }
  return absl::OkStatus();
}

size_t DeviceMemory::ScratchFloats(const DeviceQueue& queue,
                                   size_t rows,
                                   size_t sequences) const {
  // A rank without heads has no mixers.
  if (attention_.heads == 0) return 0;
  const auto count = static_cast<int32_t>(rows);
  return std::max(
      kernels::GdnScratchFloats(gdn_, gdn_form(), count),
      kernels::AttentionScratchFloats(
          queue, attention_, count, static_cast<int32_t>(sequences)));
}

absl::Status DeviceMemory::AllocateArrays(DeviceQueue* queue,
                                          const ModelConfig& c,
                                          const Options& options) {
  const auto rows = static_cast<size_t>(
      FilledRowsMax(options.rows_max, options.sequences_max));
  const auto hidden = static_cast<size_t>(c.hidden_size);
  const size_t each = options.exact ? sizeof(float) : sizeof(uint16_t);
  const size_t pairs = rows * (static_cast<size_t>(top_k_) + 1);
  const size_t mixed =
      std::max(static_cast<size_t>(c.num_attention_heads) * c.head_dim,
               static_cast<size_t>(gdn_.value_heads) * gdn_.value_dim);
  const size_t width = Padded(
      std::max(c.moe_intermediate_size, c.shared_expert_intermediate_size));
  const size_t projected = ProjectedWidth(c, gdn_);
  const auto filled =
      static_cast<size_t>(FilledSequencesMax(options.sequences_max));
  const size_t scratch = ScratchFloats(*queue, rows, filled);
  const size_t groups = std::max(pairs / 8 + experts_ + 1,
                                 size_t{1});  // of kernels::GroupsMax at least
  // Few rows may come in planes.
  const size_t planes = size_t{kernels::kPlanesMax} * kNarrowRows;
  const auto allocate = [&](size_t bytes, DeviceBuffer* to) {
    return Take(queue, bytes, to);
  };
  RETURN_IF_ERROR(allocate(rows * hidden * sizeof(float), &x_));
  RETURN_IF_ERROR(allocate(rows * Padded(hidden) * each, &u_));
  RETURN_IF_ERROR(allocate(rows * Padded(hidden) * sizeof(uint16_t), &low_));
  RETURN_IF_ERROR(allocate(
      rows * Padded(std::max(hidden, mixed)) * sizeof(uint16_t), &ordered_));
  RETURN_IF_ERROR(allocate(rows * projected * sizeof(float), &projected_));
  RETURN_IF_ERROR(allocate(rows * Padded(mixed) * each, &mixed_));
  RETURN_IF_ERROR(allocate((rows + planes) * hidden * sizeof(float), &y_));
  RETURN_IF_ERROR(allocate((rows + planes) * (experts_ + 1) * sizeof(float),
                           &router_logits_));
  RETURN_IF_ERROR(allocate(pairs * width * each, &expert_hidden_));
  RETURN_IF_ERROR(allocate(pairs * hidden * sizeof(float), &pairs_));
  RETURN_IF_ERROR(allocate(scratch * sizeof(float), &scratch_));
  for (DeviceBuffer* buffer :
       {&entry_row_, &entry_place_, &entry_expert_, &entry_weight_}) {
    RETURN_IF_ERROR(allocate(pairs * sizeof(int32_t), buffer));
  }
  RETURN_IF_ERROR(allocate(groups * 4 * sizeof(int32_t), &entry_groups_));
  return allocate(sizeof(int32_t), &entry_count_);
}

absl::Status DeviceMemory::AllocateLogits(DeviceQueue* queue,
                                          const ModelConfig& c,
                                          const Options& options) {
  wanted_max_ = LogitRowsMax(c.vocab_size,
                             options.rows_max,
                             options.sequences_max,
                             options.logit_bytes);
  const auto rows = static_cast<size_t>(wanted_max_);
  const auto cols = static_cast<size_t>(options.logit_cols);
  const size_t each = exact_ ? sizeof(float) : sizeof(uint16_t);
  const size_t width = Padded(static_cast<size_t>(hidden_));
  if (cols > 0) {
    RETURN_IF_ERROR(Take(queue, rows * width * each, &wanted_));
    RETURN_IF_ERROR(Take(queue, rows * cols * sizeof(float), &logits_));
  }
  if (!options.samples) return absl::OkStatus();
  RETURN_IF_ERROR(Take(queue, rows * sizeof(int32_t), &next_));
  RETURN_IF_ERROR(Take(queue,
                       kernels::SamplingScratchBytes(wanted_max_, c.vocab_size),
                       &sampling_scratch_));
  const std::vector<kernels::DeviceSampling> greedy(rows);
  RETURN_IF_ERROR(
      Take(queue, rows * sizeof(kernels::DeviceSampling), &greedy_));
  if (only_count_) return absl::OkStatus();
  return queue->Upload(greedy.data(), greedy_.bytes(), greedy_.as<void>());
}

absl::Status DeviceMemory::Take(DeviceQueue* queue,
                                size_t bytes,
                                DeviceBuffer* to) {
  array_bytes_ += bytes;
  if (only_count_) return absl::OkStatus();
  ASSIGN_OR_RETURN(*to, queue->Allocate(bytes, "arrays of a step"));
  return queue->Fill(*to, 0);
}

float* DeviceMemory::x(int32_t row) const {
  return x_.as<float>() + int64_t{row} * hidden_;
}

kernels::DeviceRows DeviceMemory::u(int32_t row) const {
  kernels::DeviceRows out = Rows(u_);
  const size_t each = exact_ ? sizeof(float) : sizeof(uint16_t);
  const size_t width = Padded(static_cast<size_t>(hidden_));
  out.data = u_.as<std::byte>() + static_cast<size_t>(row) * width * each;
  return out;
}

void* DeviceMemory::low(int32_t row) const {
  if (exact_) return nullptr;
  const size_t width = Padded(static_cast<size_t>(hidden_));
  return low_.as<uint16_t>() + static_cast<size_t>(row) * width;
}

float* DeviceMemory::pairs(int32_t row) const {
  return pairs_.as<float>() + int64_t{row} * (top_k_ + 1) * hidden_;
}

kernels::DeviceKv DeviceMemory::kv(size_t layer) const {
  return {.data = (*layers_)[layer].kv.as<void>(), .dtype = kv_};
}

kernels::DeviceGdnState DeviceMemory::gdn(size_t layer) const {
  return {.conv = (*layers_)[layer].conv.as<float>(),
          .recurrent = (*layers_)[layer].recurrent.as<void>(),
          .dtype = gdn_dtype_};
}

size_t DeviceMemory::conv_floats() const {
  return static_cast<size_t>(gdn_.conv_kernel) * gdn_.channels();
}

size_t DeviceMemory::recurrent_size() const {
  return static_cast<size_t>(gdn_.value_heads) * gdn_.key_dim * gdn_.value_dim;
}

kernels::DeviceEntries DeviceMemory::EntriesOf(int32_t rows,
                                               int32_t row) const {
  const int64_t pairs = int64_t{rows} * (top_k_ + 1);
  const int64_t first = int64_t{row} * (top_k_ + 1);
  kernels::DeviceEntries out{
      .rows = rows, .per_row = top_k_ + 1, .experts = experts_ + 1};
  out.group_rows =
      exact_ ? 8 : kernels::GroupRowsFor(int64_t{rows} * top_k_, experts_);
  out.groups_max = kernels::GroupsMax(pairs, experts_ + 1, out.group_rows);
  out.all_groups = rows == 1;  // a group for each choice
  out.row = entry_row_.as<int32_t>() + first;
  out.place = entry_place_.as<int32_t>() + first;
  out.expert = entry_expert_.as<int32_t>() + first;
  out.weight = entry_weight_.as<float>() + first;
  out.groups = entry_groups_.as<int32_t>();
  out.group_count = entry_count_.as<int32_t>();
  return out;
}

}  // namespace conclave::model

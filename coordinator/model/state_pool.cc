// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/state_pool.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::model {
namespace {

using checkpoint::ModelConfig;

int64_t KvBlockFloats(const ModelConfig& config) {
  return int64_t{2} * config.num_key_value_heads * limits::kKvBlockTokens *
         config.head_dim;
}

int64_t ConvFloats(const ModelConfig& config) {
  const int64_t channels =
      int64_t{2} * config.linear_num_key_heads * config.linear_key_head_dim +
      int64_t{1} * config.linear_num_value_heads * config.linear_value_head_dim;
  return (config.linear_conv_kernel_dim - 1) * channels;
}

int64_t RecurrentFloats(const ModelConfig& config) {
  return int64_t{1} * config.linear_num_value_heads *
         config.linear_key_head_dim * config.linear_value_head_dim;
}

std::span<const float> Slot(std::span<float> all, int32_t slot, int32_t slots) {
  CONCLAVE_CHECK(slot >= 0 && slot < slots && !all.empty());
  const size_t size = all.size() / static_cast<size_t>(slots);
  return all.subspan(static_cast<size_t>(slot) * size, size);
}

}  // namespace

StateBytes StateBytesOf(const ModelConfig& config) {
  StateBytes out;
  for (const bool full : config.full_attention) {
    if (full) {
      out.per_kv_block += KvBlockFloats(config) * int64_t{sizeof(float)};
    } else {
      out.per_state_slot += (ConvFloats(config) + RecurrentFloats(config)) *
                            int64_t{sizeof(float)};
    }
  }
  return out;
}

absl::StatusOr<LazyMemory> LazyMemory::Reserve(size_t floats) {
  LazyMemory out;
  if (floats == 0) return out;
  const size_t bytes = floats * sizeof(float);
  void* const memory = mmap(nullptr,
                            bytes,
                            PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                            -1,
                            0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot reserve ",
                     bytes >> 20,
                     " MiB for the states of the sequences: ",
                     std::strerror(errno),
                     "; lower limits.kv_tokens or limits.max_sequences"));
  }
  out.floats_ = {static_cast<float*>(memory), floats};
  return out;
}

LazyMemory::~LazyMemory() {
  if (!floats_.empty()) munmap(floats_.data(), floats_.size_bytes());
}

LazyMemory::LazyMemory(LazyMemory&& other) noexcept
    : floats_(std::exchange(other.floats_, {})) {}

LazyMemory& LazyMemory::operator=(LazyMemory&& other) noexcept {
  std::swap(floats_, other.floats_);
  return *this;
}

absl::StatusOr<StatePool> StatePool::Create(const ModelConfig& config,
                                            const StateSizes& sizes) {
  if (sizes.kv_blocks < 1 || sizes.state_slots < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("decoder: ",
                     sizes.kv_blocks,
                     " KV blocks and ",
                     sizes.state_slots,
                     " state slots; at least one of each is needed"));
  }
  StatePool out;
  out.sizes_ = sizes;
  for (const bool full : config.full_attention) {
    Layer layer;
    const auto slots = static_cast<size_t>(sizes.state_slots);
    if (full) {
      ASSIGN_OR_RETURN(
          layer.kv,
          LazyMemory::Reserve(static_cast<size_t>(sizes.kv_blocks) *
                              static_cast<size_t>(KvBlockFloats(config))));
    } else {
      ASSIGN_OR_RETURN(
          layer.conv,
          LazyMemory::Reserve(slots * static_cast<size_t>(ConvFloats(config))));
      ASSIGN_OR_RETURN(
          layer.recurrent,
          LazyMemory::Reserve(slots *
                              static_cast<size_t>(RecurrentFloats(config))));
    }
    out.layers_.push_back(std::move(layer));
  }
  return out;
}

kernels::KvCache StatePool::kv(int32_t layer) const {
  return {layers_[static_cast<size_t>(layer)].kv.floats()};
}

kernels::GdnState StatePool::gdn(int32_t layer) const {
  const Layer& held = layers_[static_cast<size_t>(layer)];
  return {.conv = held.conv.floats(), .recurrent = held.recurrent.floats()};
}

std::span<const float> StatePool::conv_slot(int32_t layer, int32_t slot) const {
  return Slot(gdn(layer).conv, slot, sizes_.state_slots);
}

std::span<const float> StatePool::recurrent_slot(int32_t layer,
                                                 int32_t slot) const {
  return Slot(gdn(layer).recurrent, slot, sizes_.state_slots);
}

}  // namespace conclave::model

// SPDX-License-Identifier: Apache-2.0
#include "kernels/context.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "hwy/highway.h"

namespace conclave::kernels {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kFirstBlockBytes = size_t{1} << 20;

size_t RoundUp(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// What this binary contains and this CPU runs, best first, no matter which
// target is pinned.
std::vector<int64_t> Targets() {
  static const std::vector<int64_t> targets =
      hwy::SupportedAndGeneratedTargets();
  return targets;
}

}  // namespace

Workspace::Scope::Scope(Workspace* workspace)
    : workspace_(workspace),
      block_(workspace->block_),
      used_(workspace->used_) {}

Workspace::Scope::~Scope() {
  workspace_->block_ = block_;
  workspace_->used_ = used_;
}

std::byte* Workspace::Allocate(size_t bytes) {
  bytes = RoundUp(bytes);
  while (block_ < blocks_.size() && blocks_[block_].size - used_ < bytes) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size()) {
    Block block;
    // Doubling keeps the number of blocks small.
    block.size = std::max({bytes, kFirstBlockBytes, allocated_bytes()});
    block.memory.reset(new std::byte[block.size + kAlignment]);
    blocks_.push_back(std::move(block));
    used_ = 0;
  }
  const auto address =
      reinterpret_cast<uintptr_t>(blocks_[block_].memory.get());
  std::byte* base = blocks_[block_].memory.get() + (RoundUp(address) - address);
  std::byte* out = base + used_;
  used_ += bytes;
  return out;
}

std::span<float> Workspace::Floats(size_t count) {
  return {reinterpret_cast<float*>(Allocate(count * sizeof(float))), count};
}

std::span<int32_t> Workspace::Ints(size_t count) {
  return {reinterpret_cast<int32_t*>(Allocate(count * sizeof(int32_t))), count};
}

size_t Workspace::allocated_bytes() const {
  size_t total = 0;
  for (const Block& block : blocks_) total += block.size;
  return total;
}

absl::StatusOr<Activations> ParseActivations(const std::string& word) {
  if (word.empty() || word == "f32") return Activations::kF32;
  if (word == "int8") return Activations::kInt8;
  return absl::InvalidArgumentError(
      absl::StrCat("activations \"", word, "\": use f32 or int8"));
}

std::vector<std::string> SupportedSimdTargets() {
  std::vector<std::string> names;
  for (int64_t target : Targets()) names.push_back(hwy::TargetName(target));
  return names;
}

std::string ActiveSimdTarget() {
  Targets();
  return hwy::TargetName(hwy::SupportedAndGeneratedTargets().front());
}

absl::Status PinSimdTarget(const std::string& name) {
  Targets();  // remember them before anything is masked
  if (name.empty()) {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    return absl::OkStatus();
  }
  for (int64_t target : Targets()) {
    if (!absl::EqualsIgnoreCase(name, hwy::TargetName(target))) continue;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("SIMD target \"",
                   name,
                   "\" is not supported here; use one of ",
                   absl::StrJoin(SupportedSimdTargets(), ", ")));
}

}  // namespace conclave::kernels

// SPDX-License-Identifier: Apache-2.0
#include "worker/expert_device.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bf16.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/device.h"
#include "kernels/device_choice.h"
#include "kernels/device_pairs.h"
#include "kernels/expert_stack.h"

namespace conclave::worker {
namespace {

using kernels::DeviceBuffer;
using kernels::DeviceExpertStack;

static_assert(ExpertDevice::kPairsMax >= limits::kExpertsMax);

constexpr int32_t kUnitCols = 64;  // columns are filled up to a multiple
constexpr int32_t kExactGroup = 8;

size_t Padded(int32_t cols) {
  return static_cast<size_t>((cols + kUnitCols - 1) / kUnitCols * kUnitCols);
}

size_t Bytes(bool exact) { return exact ? sizeof(float) : sizeof(uint16_t); }

bool Exact(const ShardWork& work) {
  return work.activations == kernels::Activations::kF32;
}

std::string Label(ShardId shard, size_t layer) {
  return absl::StrCat("shard ", Index(shard), ", layer ", layer);
}

}  // namespace

ExpertDevice::ExpertDevice(std::unique_ptr<kernels::DeviceQueue> queue,
                           Options options)
    : options_(std::move(options)),
      queue_(std::move(queue)),
      loader_(queue_.get()) {}

absl::StatusOr<std::unique_ptr<ExpertDevice>> ExpertDevice::Create(
    int32_t gpu, const std::string& name) {
  auto queue = kernels::DeviceQueue::Create(gpu);
  if (!queue.ok()) {
    return absl::Status(queue.status().code(),
                        absl::StrCat(name, ": ", queue.status().message()));
  }
  const auto memory = [gpu]() -> absl::StatusOr<MemoryState> {
    ASSIGN_OR_RETURN(const std::vector<kernels::CudaDevice> gpus,
                     kernels::ListCudaDevices(gpu));
    const kernels::CudaDevice& one = gpus.at(static_cast<size_t>(gpu));
    return MemoryState{.total_bytes = one.memory_total_bytes,
                       .free_bytes = one.memory_free_bytes};
  };
  auto out = std::make_unique<ExpertDevice>(
      *std::move(queue), Options{.name = name, .memory = memory});
  RETURN_IF_ERROR(out->AskMemory().status());
  return out;
}

MemoryState ExpertDevice::memory() const {
  const std::lock_guard<std::mutex> lock(state_mu_);
  return memory_;
}

absl::StatusOr<MemoryState> ExpertDevice::AskMemory() {
  RETURN_IF_ERROR(Health());
  const absl::StatusOr<MemoryState> memory = options_.memory();
  RETURN_IF_ERROR(Told(memory.status()));
  const std::lock_guard<std::mutex> lock(state_mu_);
  memory_ = *memory;
  return memory_;
}

absl::Status ExpertDevice::Health() const {
  const std::lock_guard<std::mutex> lock(state_mu_);
  return lost_;
}

absl::Status ExpertDevice::Told(const absl::Status& status) {
  // Out of memory and what was refused leave the device as it was; after
  // anything else CUDA answers every further call with the same error.
  if (status.ok()) return status;
  const absl::Status named(status.code(),
                           absl::StrCat(options_.name, ": ", status.message()));
  if (absl::IsResourceExhausted(status) || absl::IsInvalidArgument(status) ||
      absl::IsFailedPrecondition(status)) {
    return named;
  }
  const std::lock_guard<std::mutex> lock(state_mu_);
  if (lost_.ok()) lost_ = absl::UnavailableError(named.message());
  return lost_;
}

absl::StatusOr<uint64_t> ExpertDevice::BytesOf(const WantedShard& wanted) {
  const std::vector<Slice>& all = wanted.shard.slices;
  uint64_t bytes = 0;
  for (size_t begin = 0, end = 0; begin < all.size(); begin = end) {
    while (end < all.size() && all[end].layer == all[begin].layer) ++end;
    const checkpoint::SliceLayout& each = wanted.slices[begin].layout;
    const uint64_t layer = kernels::ExpertStackBytes(
        {each.gate, each.up, each.down}, static_cast<int32_t>(end - begin));
    if (layer == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "assign: ",
          Label(wanted.shard.id, static_cast<size_t>(Index(all[begin].layer))),
          ": weights of this format have no form on the GPU; start the worker "
          "with --backend cpu"));
    }
    bytes += layer;
  }
  return bytes;
}

ExpertDevice::Sizes ExpertDevice::SizesFor(const Room& room) const {
  const auto rows = static_cast<uint64_t>(options_.rows_max);
  const auto pairs = static_cast<uint64_t>(options_.pairs_max);
  const auto hidden = static_cast<uint64_t>(room.hidden);
  const uint64_t padded = Padded(room.hidden);
  return {.x = rows * padded * Bytes(room.exact),
          .wide = rows * padded * sizeof(uint16_t),
          .hidden = pairs * Padded(room.width) * Bytes(room.exact),
          .y = pairs * hidden * sizeof(float),
          .out = rows * hidden * sizeof(float),
          .words = PairPlan::WordsMax(options_.rows_max, options_.pairs_max) *
                   sizeof(int32_t)};
}

ExpertDevice::Room ExpertDevice::Larger(const Room& room) const {
  return {.hidden = std::max(room.hidden, room_.hidden),
          .width = std::max(room.width, room_.width),
          .exact = room.exact || room_.exact};
}

absl::Status ExpertDevice::CheckFits(uint64_t needed,
                                     uint64_t held,
                                     const Room& room) {
  constexpr int32_t kColumns = 4;
  if (room.hidden % kColumns != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("assign: rows of ",
                     room.hidden,
                     " columns cannot be summed on ",
                     options_.name,
                     ", which takes a multiple of 4; start the worker with "
                     "--backend cpu"));
  }
  ASSIGN_OR_RETURN(const MemoryState memory, AskMemory());
  uint64_t buffers = 0, have = 0;
  {
    const std::lock_guard<std::mutex> lock(mu_);
    buffers = SizesFor(Larger(room)).sum();
    for (const DeviceBuffer* b : {&x_, &wide_, &hidden_, &y_, &out_, &words_}) {
      have += b->bytes();
    }
  }
  const uint64_t reserve = kernels::DeviceReserve(memory.total_bytes);
  const uint64_t all = needed + buffers + reserve;
  const uint64_t free = memory.free_bytes + held + have;
  if (all <= free) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("assign: needs ",
                   Gigabytes(all),
                   " on ",
                   options_.name,
                   ", ",
                   Gigabytes(free),
                   " free (experts ",
                   Gigabytes(needed),
                   ", buffers ",
                   Gigabytes(buffers),
                   ", kept free ",
                   Gigabytes(reserve),
                   "); give this worker a smaller share, or take a format "
                   "with fewer bits"));
}

absl::Status ExpertDevice::MakeBuffers(const Room& room) {
  const Room larger = Larger(room);
  const Sizes sizes = SizesFor(larger);
  room_ = {};  // until all of them are there
  const auto grow = [this](uint64_t bytes, DeviceBuffer* to) -> absl::Status {
    if (to->bytes() >= bytes) return absl::OkStatus();
    *to = DeviceBuffer();
    ASSIGN_OR_RETURN(*to, queue_->Allocate(bytes, "buffers of a frame"));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(grow(sizes.x, &x_));
  RETURN_IF_ERROR(grow(sizes.wide, &wide_));
  RETURN_IF_ERROR(grow(sizes.hidden, &hidden_));
  RETURN_IF_ERROR(grow(sizes.y, &y_));
  RETURN_IF_ERROR(grow(sizes.out, &out_));
  RETURN_IF_ERROR(grow(sizes.words, &words_));
  room_ = larger;
  return absl::OkStatus();
}

absl::Status ExpertDevice::Reserve(const Room& room) {
  const std::lock_guard<std::mutex> lock(mu_);
  RETURN_IF_ERROR(Health());
  return Told(MakeBuffers(room));
}

absl::Status ExpertDevice::Move(HeldShard* held, size_t layer) {
  checkpoint::ShardLayer& from = held->weights.layers[layer];
  const kernels::ShardLayerWeights views = kernels::ViewOf(from.Stacked());
  auto stack = std::make_unique<DeviceExpertStack>();
  ASSIGN_OR_RETURN(
      *stack,
      kernels::MakeExpertStack(queue_.get(),
                               kernels::LayoutsOf(kernels::ViewsOf(views, 0)),
                               from.slices,
                               Label(held->weights.shard.id, layer)));
  for (int32_t i = 0; i < from.slices; ++i) {
    RETURN_IF_ERROR(kernels::LoadExpert(
        &loader_, kernels::ViewsOf(views, i), i, stack.get()));
  }
  RETURN_IF_ERROR(queue_->Wait());
  for (checkpoint::StackedWeight* w : {&from.gate, &from.up, &from.down}) {
    *w = {.each = w->each, .data = {}, .scales = {}, .biases = {}};
  }
  held->on_device[layer] = std::move(stack);
  return absl::OkStatus();
}

absl::Status ExpertDevice::Load(HeldShard* held, size_t layer) {
  const std::lock_guard<std::mutex> lock(mu_);
  RETURN_IF_ERROR(Health());
  return Told(Move(held, layer));
}

absl::Status ExpertDevice::UploadRows(const ShardWork& work,
                                      int32_t begin,
                                      int32_t end) {
  const bool exact = Exact(work);
  const auto hidden = static_cast<size_t>(work.hidden);
  const size_t padded = Padded(work.hidden);
  const size_t row_bytes = padded * Bytes(exact);
  rows_.assign(static_cast<size_t>(end - begin) * row_bytes, std::byte{0});
  std::vector<float> row(hidden);
  for (int32_t i = begin; i < end; ++i) {
    std::byte* to = rows_.data() + static_cast<size_t>(i - begin) * row_bytes;
    const int32_t from = work.rows[static_cast<size_t>(i)];
    if (exact) {
      WidenRow(work, from, {reinterpret_cast<float*>(to), hidden});
      continue;
    }
    WidenRow(work, from, row);
    std::transform(
        row.begin(), row.end(), reinterpret_cast<uint16_t*>(to), ToBf16);
  }
  return queue_->Upload(rows_.data(), rows_.size(), x_.as<void>());
}

absl::Status ExpertDevice::SumPiece(const ShardWork& work,
                                    int32_t begin,
                                    int32_t end,
                                    std::span<float> out) {
  const DeviceExpertStack& stack = *work.shard->on_device[work.layer];
  const bool bf16 = !Exact(work);
  const PairPlan::Spread spread = PairPlan::SpreadOf(work.entries, begin, end);
  plan_.Make(
      work.entries,
      begin,
      end,
      bf16 ? kernels::GroupRowsFor(spread.pairs, spread.slices) : kExactGroup);
  const std::span<const int32_t> words = plan_.words();
  RETURN_IF_ERROR(UploadRows(work, begin, end));
  RETURN_IF_ERROR(
      queue_->Upload(words.data(), words.size_bytes(), words_.as<void>()));
  // Products read whole units of columns, of which gate and up write whole
  // tiles only.
  const int32_t width = work.shard->weights.layers[work.layer].width;
  if (width % kUnitCols != 0) RETURN_IF_ERROR(queue_->Fill(hidden_, 0));
  RETURN_IF_ERROR(kernels::DeviceExperts(
      queue_.get(),
      stack,
      plan_.Entries(words_.as<int32_t>(), stack.gate_up.stack),
      {x_.as<void>(), bf16, wide_.as<void>()},
      {hidden_.as<void>(), bf16},
      y_.as<float>()));
  RETURN_IF_ERROR(kernels::DeviceSumPairs(queue_.get(),
                                          plan_.Sums(words_.as<int32_t>()),
                                          y_.as<float>(),
                                          work.hidden,
                                          out_.as<float>()));
  return queue_->Download(out_.as<float>(), out.size_bytes(), out.data());
}

absl::Status ExpertDevice::SumAll(const ShardWork& work, std::span<float> out) {
  const int32_t width = work.shard->weights.layers[work.layer].width;
  if (work.hidden > room_.hidden || width > room_.width ||
      (Exact(work) && !room_.exact)) {
    return absl::FailedPreconditionError("the buffers of a frame are not made");
  }
  const auto hidden = static_cast<size_t>(work.hidden);
  const auto rows = static_cast<int32_t>(work.rows.size());
  const std::vector<int32_t> pairs = CountPairs(work.entries, rows);
  for (int32_t begin = 0, end = 0; begin < rows; begin = end) {
    end = RowsThatFit(pairs, begin, options_.rows_max, options_.pairs_max);
    RETURN_IF_ERROR(
        SumPiece(work,
                 begin,
                 end,
                 out.subspan(static_cast<size_t>(begin) * hidden,
                             static_cast<size_t>(end - begin) * hidden)));
  }
  return absl::OkStatus();
}

absl::Status ExpertDevice::Sum(const ShardWork& work, std::span<float> out) {
  const std::lock_guard<std::mutex> lock(mu_);
  RETURN_IF_ERROR(Health());
  return Told(SumAll(work, out));
}

LayerMover::LayerMover(ExpertDevice* device, std::span<HeldShard* const> shards)
    : device_(device) {
  for (HeldShard* held : shards) {
    for (size_t i = 0; i < held->done.size(); ++i) {
      if (!held->done[i]) ++missing_[{held, held->LayerOf(i)}];
    }
  }
}

absl::Status LayerMover::Arrived(HeldShard* held, size_t slice) {
  const size_t layer = held->LayerOf(slice);
  {
    const std::lock_guard<std::mutex> lock(mu_);
    if (--missing_[{held, layer}] > 0) return absl::OkStatus();
  }
  return device_->Load(held, layer);
}

}  // namespace conclave::worker

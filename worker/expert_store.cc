// SPDX-License-Identifier: Apache-2.0
#include "worker/expert_store.h"

#include <algorithm>
#include <filesystem>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/delivery/deliver_frame.h"
#include "common/delivery/slice_bytes.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace conclave::worker {
namespace {

using checkpoint::Checkpoint;

// Of a device's buffers.
ExpertDevice::Room BuffersFor(const LoadRequest& request) {
  const auto activations = kernels::ParseActivations(request.activations);
  ExpertDevice::Room room{
      .hidden = request.shape.hidden,
      .width = 0,
      .exact = activations.ok() && *activations == kernels::Activations::kF32};
  for (const WantedShard& wanted : request.shards) {
    for (const Slice& slice : wanted.shard.slices) {
      room.width = std::max(room.width, slice.width());
    }
  }
  return room;
}

// Of the largest layer of a shard, in host memory.
uint64_t LargestLayer(const LoadRequest& request) {
  uint64_t largest = 0;
  for (const WantedShard& wanted : request.shards) {
    std::map<LayerId, uint64_t> layers;
    for (size_t i = 0; i < wanted.slices.size(); ++i) {
      uint64_t& bytes = layers[wanted.shard.slices[i].layer];
      bytes += wanted.slices[i].layout.bytes();
      largest = std::max(largest, bytes);
    }
  }
  return largest;
}

absl::Status CheckHost(const MemoryState& memory,
                       uint64_t needed,
                       uint64_t held,
                       const char* for_what) {
  const uint64_t free = memory.free_bytes + held;
  if (memory.total_bytes == 0 || needed <= free) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("assign: needs ",
                   Gigabytes(needed),
                   " for its ",
                   for_what,
                   ", ",
                   Gigabytes(free),
                   " free on this worker; give it a smaller share, or take a "
                   "format with fewer bits"));
}

}  // namespace

// One Assign under way.
struct ExpertStore::Next {
  std::map<ShardId, std::shared_ptr<HeldShard>> held;  // whole already
  std::map<ShardId, std::shared_ptr<HeldShard>> loading;
};

ExpertStore::ExpertStore(Options options)
    : options_(std::move(options)), inbox_(options_.clock, &stop_) {}

void ExpertStore::Stop() {
  stopped_ = true;
  stop_ = true;
  inbox_.End();
}

absl::Status ExpertStore::Assign(const v1::AssignRequest& request,
                                 const LoadReportFn& report) {
  // Whoever asks now replaces who asked before: its coordinator may be gone.
  waiting_.fetch_add(1);
  stop_ = true;
  inbox_.End();
  const std::lock_guard<std::mutex> one_at_a_time(assigning_);
  stop_ = false;  // before the next line: else the newer one's is lost
  if (waiting_.fetch_sub(1) > 1 || stopped_) {
    return absl::CancelledError("assign: a newer one came");
  }
  ASSIGN_OR_RETURN(const LoadRequest parsed, ParseAssign(request));
  inbox_.Begin(parsed.generation, parsed.load);
  const absl::Status status = Load(parsed, report);
  inbox_.End();
  return status;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> ExpertStore::LocalCopy(
    const LoadRequest& request) const {
  if (options_.model == "off") return std::unique_ptr<Checkpoint>();
  const bool stated = !options_.model.empty();
  const auto is_here = [](const std::string& folder) {
    std::error_code error;
    return std::filesystem::is_directory(folder, error);
  };
  std::string folder = options_.model;
  if (!stated) folder = is_here(options_.hint) ? options_.hint : request.model;
  if (!stated && request.load != 0 && !is_here(folder)) {
    return std::unique_ptr<Checkpoint>();
  }
  auto opened = Checkpoint::Open(folder);
  absl::Status status = opened.status();
  if (status.ok() &&
      (*opened)->config().config_sha256 != request.config_sha256) {
    status = absl::FailedPreconditionError(absl::StrCat(
        "assign: config.json in ",
        folder,
        " is not the coordinator's (SHA-256 ",
        (*opened)->config().config_sha256.substr(0, 12),
        "... here); give both sides the same checkpoint, or this side none"));
  }
  if (status.ok()) return opened;
  if (stated || request.load == 0) return status;
  log::Info(absl::StrCat("no copy of the checkpoint here (",
                         std::string(status.message()),
                         "); the slices are fetched"));
  return std::unique_ptr<Checkpoint>();
}

std::shared_ptr<HeldShard> ExpertStore::Reusable(
    const LoadRequest& request, const WantedShard& wanted) const {
  const auto before = current();
  const auto find = [&](const auto& shards) -> std::shared_ptr<HeldShard> {
    const auto it = shards.find(wanted.shard.id);
    return it == shards.end() ? nullptr : it->second;
  };
  std::shared_ptr<HeldShard> held = find(unfinished_);
  if (held == nullptr && before != nullptr) held = find(before->held);
  if (held == nullptr || held->weights.shard.slices != wanted.shard.slices ||
      config_sha256_ != request.config_sha256) {
    return nullptr;
  }
  const bool same_source = source_ == request.source;
  for (size_t i = 0; i < wanted.slices.size(); ++i) {
    if (held->layouts[i] != wanted.slices[i].layout) return nullptr;
    if (!held->done[i]) continue;
    const auto& here = held->hashes[i];
    const auto& there = wanted.slices[i].hash;
    const bool known = here.has_value() && there.has_value();
    if (known ? *here != *there : !same_source) return nullptr;
  }
  return held;
}

absl::StatusOr<std::shared_ptr<HeldShard>> ExpertStore::NewShard(
    const LoadRequest& request, const WantedShard& wanted) const {
  auto held = std::make_shared<HeldShard>();
  for (const WantedSlice& slice : wanted.slices) {
    held->layouts.push_back(slice.layout);
  }
  ASSIGN_OR_RETURN(
      held->weights,
      checkpoint::RoomFor(wanted.shard, held->layouts, request.shape));
  held->hashes.resize(wanted.slices.size());
  held->done.resize(wanted.slices.size());
  if (options_.device != nullptr) {
    held->on_device.resize(held->weights.layers.size());
  }
  return held;
}

uint64_t ExpertStore::BytesOf(const HeldShard& held) const {
  return options_.device != nullptr ? held.DeviceBytes() : held.weights.bytes;
}

absl::Status ExpertStore::CheckFits(const LoadRequest& request,
                                    uint64_t needed,
                                    uint64_t held) const {
  if (options_.device == nullptr) {
    return CheckHost(options_.memory(), needed, held, "experts");
  }
  // Layers leave host memory one by one; the next ones come meanwhile.
  constexpr uint64_t kLayersAtOnce = 2;
  RETURN_IF_ERROR(CheckHost(options_.memory(),
                            kLayersAtOnce * LargestLayer(request),
                            0,
                            "experts' way to the GPU"));
  return options_.device->CheckFits(needed, held, BuffersFor(request));
}

absl::Status ExpertStore::Prepare(const LoadRequest& request, Next* next) {
  uint64_t needed = 0;
  std::vector<const WantedShard*> missing;
  for (const WantedShard& wanted : request.shards) {
    uint64_t bytes = wanted.bytes;
    if (options_.device != nullptr) {
      ASSIGN_OR_RETURN(bytes, ExpertDevice::BytesOf(wanted));
    }
    needed += bytes;
    const std::shared_ptr<HeldShard> held = Reusable(request, wanted);
    if (held == nullptr) {
      missing.push_back(&wanted);
      continue;
    }
    const bool whole =
        std::find(held->done.begin(), held->done.end(), 0) == held->done.end();
    (whole ? next->held : next->loading)[wanted.shard.id] = held;
  }
  const auto before = current();
  uint64_t holds = 0;
  if (before != nullptr) {
    for (const auto& [id, held] : before->held) holds += BytesOf(*held);
  }
  for (const auto& [id, held] : unfinished_) holds += BytesOf(*held);
  RETURN_IF_ERROR(CheckFits(request, needed, holds));
  const bool changes =
      !missing.empty() || !next->loading.empty() ||
      (before != nullptr && before->held.size() != next->held.size());
  if (changes) {
    // Room for the new ones comes first.
    const std::lock_guard<std::mutex> lock(mu_);
    current_ = nullptr;
  }
  unfinished_.clear();
  source_ = request.source;
  config_sha256_ = request.config_sha256;
  for (const WantedShard* wanted : missing) {
    ASSIGN_OR_RETURN(next->loading[wanted->shard.id],
                     NewShard(request, *wanted));
  }
  return absl::OkStatus();
}

absl::Status ExpertStore::Fill(const LoadRequest& request,
                               const LoadReportFn& report,
                               const Checkpoint* local,
                               std::span<HeldShard* const> shards) {
  std::optional<PeerSource> peers;
  if (options_.dial != nullptr && !request.peers.empty()) {
    peers.emplace(request.peers,
                  options_.dial,
                  options_.peer_deadline,
                  options_.clock,
                  stop_);
  }
  std::optional<LayerMover> mover;
  if (options_.device != nullptr) {
    RETURN_IF_ERROR(options_.device->Reserve(BuffersFor(request)));
    mover.emplace(options_.device, shards);
  }
  ShardLoader::Parts parts{.request = &request,
                           .local = local,
                           .local_is_stated = !options_.model.empty(),
                           .cache = options_.cache,
                           .peers = peers.has_value() ? &*peers : nullptr,
                           .inbox = &inbox_,
                           .stop = &stop_,
                           .deadline = options_.deadline,
                           .report = report,
                           .arrived = nullptr};
  if (mover.has_value()) {
    parts.arrived = [&mover](HeldShard* held, size_t slice) {
      return mover->Arrived(held, slice);
    };
  }
  RETURN_IF_ERROR(ShardLoader(std::move(parts), shards).Run());
  if (options_.device == nullptr) return absl::OkStatus();
  return options_.device->AskMemory().status();
}

absl::Status ExpertStore::Load(const LoadRequest& request,
                               const LoadReportFn& report) {
  ASSIGN_OR_RETURN(const kernels::Activations activations,
                   kernels::ParseActivations(request.activations));
  ASSIGN_OR_RETURN(const auto local, LocalCopy(request));
  Next next;
  RETURN_IF_ERROR(Prepare(request, &next));
  std::vector<HeldShard*> shards;
  for (const auto& [id, held] : next.loading) shards.push_back(held.get());
  const absl::Status status = Fill(request, report, local.get(), shards);
  if (!status.ok()) {
    unfinished_ = std::move(next.held);
    unfinished_.merge(next.loading);
    return status;
  }
  auto whole = std::make_shared<Assignment>();
  whole->generation = request.generation;
  whole->layers = request.shape.layers;
  whole->hidden = request.shape.hidden;
  whole->activations = activations;
  whole->held = std::move(next.held);
  whole->held.merge(next.loading);
  for (const auto& [id, held] : whole->held) {
    for (size_t i = 0; i < held->hashes.size(); ++i) {
      if (held->hashes[i].has_value()) {
        whole->contents[*held->hashes[i]] = {held.get(), i};
      }
    }
  }
  {
    const std::lock_guard<std::mutex> lock(mu_);
    current_ = whole;
  }
  if (options_.cache != nullptr) {
    options_.cache->Trim([&](const delivery::ContentHash& hash) {
      return whole->contents.contains(hash);
    });
  }
  return absl::OkStatus();
}

std::shared_ptr<const Assignment> ExpertStore::current() const {
  const std::lock_guard<std::mutex> lock(mu_);
  return current_;
}

uint64_t ExpertStore::resident_bytes() const {
  const auto assignment = current();
  uint64_t bytes = 0;
  if (assignment == nullptr) return 0;
  for (const auto& [id, held] : assignment->held) bytes += BytesOf(*held);
  return bytes;
}

bool ExpertStore::Holds(const delivery::ContentHash& hash) const {
  const auto assignment = current();
  if (assignment != nullptr) {
    const auto it = assignment->contents.find(hash);
    if (it != assignment->contents.end() &&
        it->second.first->InHostMemory(it->second.second)) {
      return true;
    }
  }
  return options_.cache != nullptr && options_.cache->Holds(hash);
}

absl::StatusOr<Buffer> ExpertStore::ReadHeld(const delivery::ContentHash& hash,
                                             uint64_t offset,
                                             uint64_t length) const {
  const auto assignment = current();
  if (assignment != nullptr) {
    const auto it = assignment->contents.find(hash);
    if (it != assignment->contents.end() &&
        it->second.first->InHostMemory(it->second.second)) {
      const auto [held, i] = it->second;
      const uint64_t size = held->layouts[i].bytes();
      if (offset > size || length > size - offset) {
        return absl::OutOfRangeError("fetch: beyond the end of the slice");
      }
      Buffer out(length);
      delivery::CopyOut(held->weights.Part(i), offset, out.bytes());
      return out;
    }
  }
  if (options_.cache == nullptr) return absl::NotFoundError("fetch: not held");
  return options_.cache->ReadRange(hash, offset, length);
}

}  // namespace conclave::worker

// SPDX-License-Identifier: Apache-2.0
#include "worker/shard_loader.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/delivery/slice_bytes.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/parallel_tasks.h"
#include "common/status_macros.h"

namespace conclave::worker {
namespace {

using delivery::ContentHash;

// Of a local copy, compared with the coordinator's: other weights under the
// same configuration differ nearly everywhere.
constexpr size_t kSample = 16;
// Damaged arrivals of one slice before the load gives up.
constexpr int kTries = 3;

}  // namespace

ShardLoader::ShardLoader(Parts parts, std::span<HeldShard* const> shards)
    : parts_(std::move(parts)) {
  uint64_t total = 0, done = 0;
  for (size_t s = 0; s < shards.size(); ++s) {
    HeldShard* held = shards[s];
    const auto wanted =
        std::find_if(parts_.request->shards.begin(),
                     parts_.request->shards.end(),
                     [&](const WantedShard& w) {
                       return w.shard.id == held->weights.shard.id;
                     });
    for (size_t i = 0; i < held->done.size(); ++i) {
      const uint64_t bytes = held->layouts[i].bytes();
      total += bytes;
      if (held->done[i]) {
        done += bytes;
        continue;
      }
      held->hashes[i] = wanted->slices[i].hash;
      tasks_.push_back({held, &*wanted, i});
    }
  }
  progress_.set_bytes_done(done);
  progress_.set_bytes_total(total);
  cache_is_empty_ = parts_.cache == nullptr || parts_.cache->IsEmpty();
}

std::string ShardLoader::Label(const Task& task) const {
  return absl::StrCat("load: shard ",
                      Index(task.shard->shard.id),
                      ", ",
                      ToString(task.shard->shard.slices[task.i]));
}

absl::Status ShardLoader::Run() {
  {
    const std::lock_guard<std::mutex> lock(mu_);
    parts_.report(progress_);
  }
  if (tasks_.empty()) return absl::OkStatus();
  if (parts_.local != nullptr) RETURN_IF_ERROR(CheckLocalCopy());
  if (parts_.local == nullptr) AskPeers();
  return ParallelTasks(
      static_cast<int64_t>(tasks_.size()), limits::kReaders, [this](int64_t i) {
        return Load(tasks_[static_cast<size_t>(i)]);
      });
}

absl::Status ShardLoader::CheckLocalCopy() {
  if (!IsDelivered()) return absl::OkStatus();  // nobody to compare with
  const size_t n = parts_.request->verify_local
                       ? tasks_.size()
                       : std::min(kSample, tasks_.size());
  const auto check = [&](int64_t k) -> absl::Status {
    const Task& task = tasks_[static_cast<size_t>(k) * tasks_.size() / n];
    RETURN_IF_ERROR(ReadLocal(task));
    std::optional<ContentHash>& hash = HashOfTask(task);
    if (!hash.has_value()) {
      ASSIGN_OR_RETURN(hash, AskHash(task));
    }
    const ContentHash here = delivery::HashOf(task.held->layouts[task.i],
                                              task.held->weights.Part(task.i));
    if (here == *hash) {
      return Done(task, Source::kLocal);
    }
    return absl::FailedPreconditionError(
        absl::StrCat(Label(task),
                     ": the copy in ",
                     parts_.local->folder(),
                     " holds other weights than the coordinator's checkpoint; "
                     "give both sides the same one, or this side none"));
  };
  absl::Status status =
      ParallelTasks(static_cast<int64_t>(n), limits::kReaders, check);
  std::erase_if(tasks_, [](const Task& t) { return t.held->done[t.i] != 0; });
  if (status.ok() || parts_.local_is_stated ||
      status.code() == absl::StatusCode::kCancelled) {
    return status;
  }
  log::Warning(absl::StrCat(std::string(status.message()),
                            "; it is not used, the weights are fetched"));
  parts_.local = nullptr;
  return absl::OkStatus();
}

void ShardLoader::AskPeers() {
  if (parts_.peers == nullptr) return;
  std::vector<ContentHash> lacking;
  for (const Task& task : tasks_) {
    const std::optional<ContentHash>& hash = HashOfTask(task);
    if (hash.has_value() &&
        (parts_.cache == nullptr || !parts_.cache->Holds(*hash))) {
      lacking.push_back(*hash);
    }
  }
  parts_.peers->Ask(lacking);
}

absl::Status ShardLoader::Load(const Task& task) {
  if (*parts_.stop) return absl::CancelledError("load: it was stopped");
  ASSIGN_OR_RETURN(const Source source, Fill(task));
  return Done(task, source);
}

absl::StatusOr<ShardLoader::Source> ShardLoader::Fill(const Task& task) {
  if (parts_.local != nullptr) {
    RETURN_IF_ERROR(ReadLocal(task));
    // Nobody computed one of these bytes.
    HashOfTask(task) = std::nullopt;
    return Source::kLocal;
  }
  std::optional<ContentHash>& hash = HashOfTask(task);
  if (!hash.has_value() && !cache_is_empty_) {
    ASSIGN_OR_RETURN(hash, AskHash(task));
  }
  Source source = Source::kCoordinator;
  if (hash.has_value() && FromCacheOrPeers(task, &source)) return source;
  RETURN_IF_ERROR(FromCoordinator(task));
  Keep(task);
  return Source::kCoordinator;
}

absl::Status ShardLoader::ReadLocal(const Task& task) {
  return checkpoint::ReadSlice(*parts_.local,
                               task.shard->shard.slices[task.i],
                               task.held->layouts[task.i],
                               task.held->weights.Part(task.i));
}

bool ShardLoader::FromCacheOrPeers(const Task& task, Source* source) {
  const ContentHash& hash = *HashOfTask(task);
  const checkpoint::SliceLayout& layout = task.held->layouts[task.i];
  const checkpoint::SliceSpans out = task.held->weights.Part(task.i);
  if (parts_.cache != nullptr) {
    const absl::Status status = parts_.cache->Read(hash, layout, out);
    *source = Source::kCache;
    if (status.ok()) return true;
    if (status.code() != absl::StatusCode::kNotFound) {
      log::Warning(std::string(status.message()));
    }
  }
  *source = Source::kPeer;
  if (parts_.peers == nullptr || !parts_.peers->Fetch(hash, layout, out).ok()) {
    return false;
  }
  Keep(task);
  return true;
}

void ShardLoader::Want(const Task& task, bool hash_only) {
  const std::lock_guard<std::mutex> lock(mu_);
  v1::SliceWant* want = progress_.add_wants();
  want->set_slice(Position(task));
  want->set_hash_only(hash_only);
  parts_.report(progress_);
  progress_.clear_wants();
}

absl::StatusOr<ContentHash> ShardLoader::AskHash(const Task& task) {
  parts_.inbox->Expect(Position(task));
  Want(task, true);
  auto arrival = parts_.inbox->Take(Position(task), parts_.deadline);
  parts_.inbox->Forget(Position(task));
  if (!arrival.ok()) {
    return absl::Status(
        arrival.status().code(),
        absl::StrCat(
            Label(task), ": ", std::string(arrival.status().message())));
  }
  arrival->Answer(absl::OkStatus());
  const v1::DeliverHeader& header = arrival->header();
  const auto hash = delivery::HashFromBytes(header.sha256());
  if (!header.error().empty() || !hash.has_value()) {
    return absl::DataLossError(
        absl::StrCat(Label(task), ": coordinator: ", header.error()));
  }
  return *hash;
}

absl::Status ShardLoader::FromCoordinator(const Task& task) {
  if (!IsDelivered()) {
    return absl::FailedPreconditionError(
        absl::StrCat(Label(task), ": no checkpoint here, and nobody delivers"));
  }
  for (int tries = 0; tries < kTries; ++tries) {
    parts_.inbox->Expect(Position(task));
    Want(task, false);
    const absl::StatusOr<bool> received = Receive(task);
    parts_.inbox->Forget(Position(task));
    if (!received.ok()) {
      return absl::Status(
          received.status().code(),
          absl::StrCat(
              Label(task), ": ", std::string(received.status().message())));
    }
    if (*received) return absl::OkStatus();
    log::Warning(absl::StrCat(Label(task), ": arrived damaged, asked again"));
  }
  return absl::DataLossError(
      absl::StrCat(Label(task),
                   ": arrived damaged ",
                   kTries,
                   " times; check the network and memory of both machines"));
}

// False: the bytes are not what the hash says.
absl::StatusOr<bool> ShardLoader::Receive(const Task& task) {
  const checkpoint::SliceLayout& layout = task.held->layouts[task.i];
  const checkpoint::SliceSpans out = task.held->weights.Part(task.i);
  const uint64_t total = layout.bytes();
  std::optional<ContentHash>& hash = HashOfTask(task);
  for (uint64_t at = 0; at < total;) {
    ASSIGN_OR_RETURN(Arrival arrival,
                     parts_.inbox->Take(Position(task), parts_.deadline));
    const v1::DeliverHeader& header = arrival.header();
    if (!header.error().empty()) {
      arrival.Answer(absl::OkStatus());
      return absl::DataLossError(absl::StrCat("coordinator: ", header.error()));
    }
    hash = delivery::HashFromBytes(header.sha256());
    const uint64_t size = arrival.body().size();
    if (!hash.has_value() || size == 0 || header.offset() > at ||
        size > total - header.offset()) {
      const auto bad = absl::InvalidArgumentError(absl::StrCat(
          "deliver: bytes ", header.offset(), " + ", size, " at ", at));
      arrival.Answer(bad);
      return bad;
    }
    // A frame whose answer was lost comes twice.
    delivery::CopyIn(arrival.body(), header.offset(), out);
    at = std::max(at, header.offset() + size);
    arrival.Answer(absl::OkStatus());
  }
  return delivery::HashOf(layout, out) == *hash;
}

void ShardLoader::Keep(const Task& task) {
  if (parts_.cache == nullptr || !cache_works_) return;
  const absl::Status status =
      parts_.cache->Write(*HashOfTask(task), task.held->weights.Part(task.i));
  if (status.ok() || !cache_works_.exchange(false)) return;
  log::Warning(absl::StrCat(
      std::string(status.message()),
      "; the load goes on without the cache, and its rest will be fetched "
      "again after a restart"));
}

absl::Status ShardLoader::Done(const Task& task, Source source) {
  if (parts_.arrived) RETURN_IF_ERROR(parts_.arrived(task.held, task.i));
  task.held->done[task.i] = 1;
  const uint64_t bytes = task.held->layouts[task.i].bytes();
  const std::lock_guard<std::mutex> lock(mu_);
  v1::LoadProgress& p = progress_;
  p.set_bytes_done(p.bytes_done() + bytes);
  switch (source) {
    case Source::kLocal:
      p.set_local_bytes(p.local_bytes() + bytes);
      break;
    case Source::kCache:
      p.set_cache_bytes(p.cache_bytes() + bytes);
      break;
    case Source::kPeer:
      p.set_peer_bytes(p.peer_bytes() + bytes);
      break;
    case Source::kCoordinator:
      p.set_coordinator_bytes(p.coordinator_bytes() + bytes);
      break;
  }
  parts_.report(p);
  return absl::OkStatus();
}

}  // namespace conclave::worker

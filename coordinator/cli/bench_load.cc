// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/bench_load.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <iostream>
#include <memory>
#include <utility>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/checkpoint/shard_weights.h"
#include "common/clock.h"
#include "common/delivery/slice_cache.h"
#include "common/limits.h"
#include "common/parallel_tasks.h"
#include "common/status_macros.h"
#include "common/version.h"
#include "coordinator/cli/flags.h"
#include "coordinator/cli/table.h"
#include "coordinator/model/weights.h"

ABSL_DECLARE_FLAG(int32_t, repeats);
ABSL_FLAG(
    std::string,
    cache,
    "",
    "empty folder for a slice cache of the same size; empty: not measured");

namespace conclave::cli {
namespace {

namespace fs = std::filesystem;

constexpr size_t kReadBytes = size_t{16} << 20;  // as `dd bs=16M`

struct Row {
  explicit Row(std::string name) : what(std::move(name)) {}
  std::string what;
  double bytes = 0;
  std::vector<double> seconds;
};

class Timer {
 public:
  double Seconds() const {
    return absl::ToDoubleSeconds(RealClock()->Now() - start_);
  }

 private:
  const absl::Time start_ = RealClock()->Now();
};

std::vector<std::string> FilesOf(const std::string& folder) {
  std::vector<std::string> out;
  std::error_code error;
  for (const auto& entry : fs::recursive_directory_iterator(folder, error)) {
    if (entry.is_regular_file(error)) out.push_back(entry.path().string());
  }
  return out;
}

// The system forgets what it has of these files.
void DropCaches(const std::vector<std::string>& files) {
  for (const std::string& file : files) {
    const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
  }
}

// One thread, file by file.
absl::Status PlainRead(const std::vector<std::string>& files, Row* row) {
  DropCaches(files);
  Buffer buffer(kReadBytes);
  const Timer timer;
  row->bytes = 0;
  for (const std::string& file : files) {
    const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return absl::ErrnoToStatus(errno, file);
    ssize_t n = 0;
    while ((n = read(fd, buffer.data(), buffer.size())) > 0) {
      row->bytes += static_cast<double>(n);
    }
    close(fd);
    if (n < 0) return absl::ErrnoToStatus(errno, file);
  }
  row->seconds.push_back(timer.Seconds());
  return absl::OkStatus();
}

Shard AllExperts(const checkpoint::ModelConfig& config) {
  Shard shard;
  for (int32_t l = 0; l < config.num_hidden_layers; ++l) {
    for (int32_t e = 0; e < config.num_experts; ++e) {
      shard.slices.push_back(
          {LayerId{l}, ExpertId{e}, 0, config.moe_intermediate_size});
    }
  }
  return shard;
}

absl::Status Load(const std::string& folder, Row* row) {
  DropCaches(FilesOf(folder));
  const Timer timer;
  ASSIGN_OR_RETURN(const auto checkpoint, checkpoint::Checkpoint::Open(folder));
  const Shard shard = AllExperts(checkpoint->config());
  ASSIGN_OR_RETURN(const auto experts,
                   checkpoint::LoadShards(
                       *checkpoint, {&shard, 1}, limits::kReaders, nullptr));
  ASSIGN_OR_RETURN(const auto dense, model::LoadDenseWeights(*checkpoint));
  row->bytes = static_cast<double>(experts[0].bytes + dense.bytes());
  row->seconds.push_back(timer.Seconds());
  return absl::OkStatus();
}

// The experts of the checkpoint in a slice cache.
class Cached {
 public:
  static absl::StatusOr<std::unique_ptr<Cached>> Fill(
      const checkpoint::Checkpoint& checkpoint, const std::string& folder) {
    auto out = std::unique_ptr<Cached>(new Cached);
    ASSIGN_OR_RETURN(out->cache_, delivery::SliceCache::Open(folder, 0));
    if (!out->cache_->IsEmpty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--cache ", folder, ": the folder is not empty"));
    }
    out->shape_ = checkpoint.config().expert_shape();
    ASSIGN_OR_RETURN(out->weights_,
                     checkpoint::LoadShard(
                         checkpoint, AllExperts(checkpoint.config()), nullptr));
    for (size_t i = 0; i < out->weights_.shard.slices.size(); ++i) {
      ASSIGN_OR_RETURN(
          const checkpoint::SliceLayout layout,
          checkpoint::LayoutOfSlice(checkpoint, out->weights_.shard.slices[i]));
      const checkpoint::SliceSpans slice = out->weights_.Part(i);
      out->layouts_.push_back(layout);
      out->hashes_.push_back(delivery::HashOf(layout, slice));
      RETURN_IF_ERROR(out->cache_->Write(out->hashes_.back(), slice));
    }
    return out;
  }

  absl::Status Read(Row* row) {
    DropCaches(FilesOf(cache_->folder()));
    const Shard shard = weights_.shard;
    weights_ = {};
    const Timer timer;
    ASSIGN_OR_RETURN(weights_, checkpoint::RoomFor(shard, layouts_, shape_));
    RETURN_IF_ERROR(ParallelTasks(
        static_cast<int64_t>(layouts_.size()),
        limits::kReaders,
        [&](int64_t task) {
          const auto i = static_cast<size_t>(task);
          return cache_->Read(hashes_[i], layouts_[i], weights_.Part(i));
        }));
    row->bytes = static_cast<double>(weights_.bytes);
    row->seconds.push_back(timer.Seconds());
    return absl::OkStatus();
  }

 private:
  std::unique_ptr<delivery::SliceCache> cache_;
  ExpertShape shape_;
  checkpoint::ShardWeights weights_;
  std::vector<checkpoint::SliceLayout> layouts_;
  std::vector<delivery::ContentHash> hashes_;
};

void Print(const std::string& folder, const std::vector<Row>& rows) {
  std::cout << "conclave " << Version() << ", " << MachineName() << "\nmodel "
            << folder << ", page cache dropped before each run, median of "
            << rows[0].seconds.size() << " interleaved runs\n\n";
  std::vector<std::vector<std::string>> table = {
      {"what", "GB", "seconds", "GB/s", "x plain reading"}};
  double plain = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Row& row = rows[i];
    const double seconds = Median(row.seconds);
    const double rate = row.bytes / seconds / 1e9;
    if (i % 2 == 0) plain = rate;
    table.push_back({row.what,
                     Fixed(row.bytes / 1e9, 3),
                     Fixed(seconds, 2),
                     Fixed(rate, 2),
                     Fixed(rate / plain, 2)});
  }
  std::cout << FormatTable(table);
}

absl::Status Bench() {
  ASSIGN_OR_RETURN(const v1::ClusterConfig config, ConfigFromFlags());
  const std::string& folder = config.model();
  const std::string cache = absl::GetFlag(FLAGS_cache);
  std::vector<Row> rows = {Row("read files, 1 thread, 16 MiB"),
                           Row("load checkpoint")};
  std::unique_ptr<Cached> cached;
  if (!cache.empty()) {
    ASSIGN_OR_RETURN(const auto opened, checkpoint::Checkpoint::Open(folder));
    ASSIGN_OR_RETURN(cached, Cached::Fill(*opened, cache));
    rows.push_back(Row("read cache, 1 thread, 16 MiB"));
    rows.push_back(Row("load experts from cache"));
  }
  for (int32_t i = 0; i < absl::GetFlag(FLAGS_repeats); ++i) {
    RETURN_IF_ERROR(PlainRead(FilesOf(folder), &rows[0]));
    RETURN_IF_ERROR(Load(folder, &rows[1]));
    if (cached == nullptr) continue;
    RETURN_IF_ERROR(PlainRead(FilesOf(cache), &rows[2]));
    RETURN_IF_ERROR(cached->Read(&rows[3]));
  }
  Print(folder, rows);
  return absl::OkStatus();
}

int Run(const std::vector<std::string>&) {
  const absl::Status status = Bench();
  return status.ok() ? 0 : Fail("bench load", status);
}

}  // namespace

Command BenchLoadCommand() {
  return {.name = "bench load",
          .summary = "How fast weights come from this machine's disk.",
          .usage = "bench load --model DIR [--cache EMPTY-FOLDER]",
          .examples =
              "  conclave bench load --model DIR\n"
              "  conclave bench load --model DIR --cache /tmp/slices "
              "--repeats 7\n",
          .flags = {"model", "cache", "repeats", "log_level"},
          .run = Run};
}

}  // namespace conclave::cli

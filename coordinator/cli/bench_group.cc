// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/bench_group.h"

#include <algorithm>
#include <iostream>
#include <memory>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/parallel_tasks.h"
#include "common/status_macros.h"
#include "common/version.h"
#include "coordinator/cli/flags.h"
#include "coordinator/cli/table.h"
#include "coordinator/model/rank_cut.h"
#include "kernels/device.h"
#include "kernels/device_group.h"

ABSL_FLAG(std::string,
          rows,
          "",
          "rows of an exchange between GPUs, comma list; empty: 1 to 256");

namespace conclave::cli {
namespace {

using kernels::DeviceBuffer;
using kernels::DeviceGroup;
using kernels::DeviceQueue;
using kernels::GroupExchange;

constexpr int32_t kCols = 4096;      // of the 397B
constexpr int32_t kVocab = 248'320;  // its columns of logits
constexpr char kRows[] = "1,2,4,8,16,32,64,128,256";
constexpr int32_t kRowsMax = 4096;
constexpr int32_t kSums = 120;    // of a step: those of the 397B
constexpr int32_t kReplays = 20;  // of one measurement
constexpr int32_t kRepeats = 9;
constexpr int32_t kRounds = 2'000;

enum class What : uint8_t {
  kSums,      // in which all ranks have parts
  kLoneSums,  // in every other one rank 0 alone has a part
  kHead,      // after every other one, columns of logits to rank 0
};

struct Member {
  std::unique_ptr<DeviceQueue> queue;
  DeviceBuffer x, u, part, w, logits;
};

class Bench {
 public:
  static absl::StatusOr<std::unique_ptr<Bench>> Create(
      const std::vector<int32_t>& gpus,
      GroupExchange exchange,
      int32_t rows_max) {
    auto out = std::make_unique<Bench>();
    std::vector<DeviceQueue*> queues;
    const std::vector<int32_t> bounds =
        model::HeadBounds(kVocab, static_cast<int32_t>(gpus.size()));
    for (const int32_t gpu : gpus) {
      const size_t rank = out->members_.size();
      Member& member = out->members_.emplace_back();
      ASSIGN_OR_RETURN(member.queue, DeviceQueue::Create(gpu));
      queues.push_back(member.queue.get());
      for (DeviceBuffer* to : {&member.x, &member.u, &member.part, &member.w}) {
        ASSIGN_OR_RETURN(
            *to,
            member.queue->Allocate(sizeof(float) * rows_max * kCols, "rows"));
        RETURN_IF_ERROR(member.queue->Fill(*to, 0));
      }
      const int32_t width =
          rank == 0 ? kVocab : bounds[rank + 1] - bounds[rank];
      ASSIGN_OR_RETURN(
          member.logits,
          member.queue->Allocate(sizeof(float) * rows_max * width, "logits"));
      RETURN_IF_ERROR(member.queue->Fill(member.logits, 0));
    }
    ASSIGN_OR_RETURN(out->group_,
                     DeviceGroup::Create(queues,
                                         {.rows_max = rows_max,
                                          .cols = kCols,
                                          .columns = bounds,
                                          .gathered_max = rows_max,
                                          .exchange = exchange}));
    out->group_->GatherInto(out->members_[0].logits.as<float>());
    return out;
  }

  // Seconds of one sum, the median, with what comes after it.
  absl::StatusOr<double> Measure(int32_t rows, What what) {
    std::vector<double> seconds(members_.size());
    const auto ranks = static_cast<int64_t>(members_.size());
    const auto run = [&](int64_t rank) -> absl::Status {
      ASSIGN_OR_RETURN(seconds[static_cast<size_t>(rank)],
                       Rank(static_cast<int32_t>(rank), rows, what));
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(ParallelTasks(ranks, static_cast<int32_t>(ranks), run));
    return seconds[0];
  }

 private:
  absl::Status Step(int32_t rank, int32_t rows, What what) {
    Member& m = members_[static_cast<size_t>(rank)];
    for (int32_t number = 0; number < kSums; ++number) {
      const bool one = what == What::kLoneSums && number % 2 == 0;
      kernels::GroupSum sum{.number = number,
                            .only = one ? 0 : -1,
                            .rows = rows,
                            .w = m.w.as<float>(),
                            .eps = 1e-6f,
                            .x = m.x.as<float>(),
                            .u = {.data = m.u.as<void>()}};
      if (!one || rank == 0) sum.part.dense = m.part.as<float>();
      RETURN_IF_ERROR(group_->AddNorm(rank, sum));
      if (what != What::kHead || number % 2 == 0) continue;
      RETURN_IF_ERROR(group_->GatherColumns(
          rank, {.rows = rows, .part = m.logits.as<float>()}));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<double> Rank(int32_t rank, int32_t rows, What what) {
    DeviceQueue& queue = *members_[static_cast<size_t>(rank)].queue;
    RETURN_IF_ERROR(queue.BeginRecording());
    const absl::Status status = Step(rank, rows, what);
    absl::StatusOr<kernels::DeviceGraph> graph = queue.EndRecording();
    RETURN_IF_ERROR(status);
    RETURN_IF_ERROR(graph.status());
    RETURN_IF_ERROR(queue.Launch(*graph));
    std::vector<double> times;
    for (int32_t i = 0; i < kRepeats; ++i) {
      RETURN_IF_ERROR(queue.Mark(0));
      for (int32_t r = 0; r < kReplays; ++r) {
        RETURN_IF_ERROR(queue.Launch(*graph));
      }
      RETURN_IF_ERROR(queue.Mark(1));
      ASSIGN_OR_RETURN(const DeviceGroup::End end, group_->Finish(rank));
      if (!end.whole) {
        return absl::UnavailableError(
            absl::StrCat("rank ", end.missed, " did not come to an exchange"));
      }
      ASSIGN_OR_RETURN(const double seconds, queue.Between());
      times.push_back(seconds / kReplays / kSums);
    }
    return Median(times);
  }

  // Freed from the last to the first: the group before its queues.
  std::vector<Member> members_;
  std::unique_ptr<DeviceGroup> group_;
};

// Cells of a line: a sum, one of the lone form, the head's exchange.
absl::Status AddFigures(Bench* bench,
                        int32_t rows,
                        std::vector<std::string>* line) {
  if (bench == nullptr) {
    line->insert(line->end(), 3, "-");
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const double sum, bench->Measure(rows, What::kSums));
  ASSIGN_OR_RETURN(const double lone, bench->Measure(rows, What::kLoneSums));
  ASSIGN_OR_RETURN(const double with, bench->Measure(rows, What::kHead));
  // One of them after two sums.
  for (const double seconds : {sum, lone, 2 * (with - sum)}) {
    line->push_back(Fixed(1e6 * seconds, 2));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status BenchGroupExchange(const std::vector<int32_t>& gpus) {
  if (gpus.size() < 2) {
    return absl::InvalidArgumentError("--gpus: two at least");
  }
  std::cout
      << "conclave " << Version() << ", GPUs " << absl::StrJoin(gpus, ",")
      << "\nMicroseconds of one sum with its norm, rows of " << kCols
      << " float32, " << kSums << " sums in a recorded step; median of "
      << kRepeats
      << ". Two phases of a layer are two of them.\nBefore them, stores "
         "and a flag, there and back, of the same bytes by one block; behind "
         "them what bringing "
      << kVocab << " columns of logits to the first GPU adds to a step.\n\n";
  std::vector<std::vector<std::string>> table = {{"rows",
                                                  "KB",
                                                  "there and back",
                                                  "peer",
                                                  "peer, lone",
                                                  "peer, head",
                                                  "nccl",
                                                  "nccl, lone",
                                                  "nccl, head"}};
  ASSIGN_OR_RETURN(const auto all_rows,
                   Counts(absl::GetFlag(FLAGS_rows), kRows, kRowsMax));
  const int32_t most = *std::max_element(all_rows.begin(), all_rows.end());
  std::unique_ptr<Bench> benches[2];
  ASSIGN_OR_RETURN(benches[0], Bench::Create(gpus, GroupExchange::kPeer, most));
  auto nccl = Bench::Create(gpus, GroupExchange::kNccl, most);
  if (nccl.ok()) benches[1] = *std::move(nccl);
  for (const int32_t rows : all_rows) {
    const uint64_t bytes = sizeof(float) * kCols * static_cast<uint64_t>(rows);
    ASSIGN_OR_RETURN(
        const double floor,
        kernels::MeasurePeerRoundTrip(gpus[0], gpus[1], bytes, kRounds));
    std::vector<std::string> line = {
        absl::StrCat(rows), absl::StrCat(bytes >> 10), Fixed(1e6 * floor, 2)};
    for (const std::unique_ptr<Bench>& bench : benches) {
      RETURN_IF_ERROR(AddFigures(bench.get(), rows, &line));
    }
    table.push_back(std::move(line));
  }
  std::cout << FormatTable(table);
  if (!nccl.ok()) std::cout << "nccl: " << nccl.status().message() << "\n";
  return absl::OkStatus();
}

}  // namespace conclave::cli

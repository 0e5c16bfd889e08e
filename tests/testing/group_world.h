// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/device.h"
#include "kernels/device_group.h"
#include "kernels/device_queue.h"
#include "tests/testing/seeded.h"

// Ranks with made-up parts of a residual sum.
namespace conclave::testing {

// Which group; on GPUs 0 to ranks - 1, or all on the plain twin.
struct GroupCase {
  bool gpus = false;
  int32_t ranks = 2;
  kernels::GroupExchange exchange = kernels::GroupExchange::kPeer;

  std::string Name() const {
    const std::string by = !gpus                                       ? "twin"
                           : exchange == kernels::GroupExchange::kPeer ? "peer"
                                                                       : "nccl";
    return by + std::to_string(ranks);
  }
  int32_t device(int32_t rank) const {
    return gpus ? rank : kernels::kHostDevice;
  }
};

inline constexpr GroupCase kGroupCases[] = {
    {.ranks = 1},
    {.ranks = 2},
    {.ranks = 4},
    {.gpus = true, .ranks = 2},
    {.gpus = true, .ranks = 2, .exchange = kernels::GroupExchange::kNccl},
    {.gpus = true, .ranks = 4},
    {.gpus = true, .ranks = 4, .exchange = kernels::GroupExchange::kNccl}};

// Empty, or why the case cannot run here.
inline std::string WhyNot(const GroupCase& group) {
  if (!group.gpus) {
    return kernels::DeviceQueue::Create(kernels::kHostDevice).ok()
               ? ""
               : "built with CUDA: the plain twins are not linked";
  }
  const auto devices = kernels::ListCudaDevices();
  if (!devices.ok()) return std::string(devices.status().message());
  if (std::ssize(*devices) >= group.ranks) return "";
  return "this machine has " + std::to_string(devices->size()) + " GPUs, not " +
         std::to_string(group.ranks);
}

class GroupWorld {
 public:
  struct Rows {
    std::vector<float> x, u;
  };

  GroupWorld(const GroupCase& group, kernels::DeviceGroup::Options options)
      : cols_(options.cols) {
    options.exchange = group.exchange;
    std::vector<kernels::DeviceQueue*> queues;
    for (int32_t rank = 0; rank < group.ranks; ++rank) {
      auto queue = kernels::DeviceQueue::Create(group.device(rank));
      EXPECT_TRUE(queue.ok()) << queue.status();
      if (!queue.ok()) return;
      queues.push_back(queue->get());
      Member& member = members_.emplace_back();
      member.queue = *std::move(queue);
      for (kernels::DeviceBuffer* to :
           {&member.x, &member.u, &member.part, &member.w}) {
        *to = *member.queue->Allocate(sizeof(float) * options.rows_max * cols_,
                                      "a test's rows");
      }
    }
    auto made = kernels::DeviceGroup::Create(queues, options);
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) group_ = *std::move(made);
  }

  bool ok() const { return group_ != nullptr; }
  int32_t ranks() const { return static_cast<int32_t>(members_.size()); }
  kernels::DeviceGroup& group() { return *group_; }
  kernels::DeviceQueue& queue(int32_t rank) { return *members_[rank].queue; }
  const kernels::DeviceGroup::End& end(int32_t rank) const {
    return members_[rank].end;
  }

  void Fill(uint32_t seed, int32_t rows) {
    rows_ = rows;
    Seeded random(seed);
    x_ = random.Floats(rows * cols_);
    w_ = random.Floats(cols_);
    for (Member& member : members_) {
      member.values = random.Floats(rows * cols_);
      Up(member, x_, member.x);
      Up(member, w_, member.w);
      Up(member, member.values, member.part);
    }
  }
  void SetPart(int32_t rank, size_t at, float value) {
    members_[rank].values[at] = value;
    Up(members_[rank], members_[rank].values, members_[rank].part);
  }

  // What two sums, of which `senders` send in the first and all in the second,
  // give.
  Rows Expected(uint32_t senders) const {
    Rows out{.x = x_, .u = {}};
    for (const uint32_t from : {senders, ~0u}) {
      for (size_t i = 0; i < out.x.size(); ++i) {
        float sum = 0;
        for (int32_t rank = 0; rank < ranks(); ++rank) {
          if (from >> rank & 1) sum += members_[rank].values[i];
        }
        out.x[i] += sum;
      }
    }
    for (int32_t r = 0; r < rows_; ++r) {
      float sum = 0;
      const float* line = &out.x[size_t(r) * cols_];
      for (int32_t c = 0; c < cols_; ++c) sum += line[c] * line[c];
      const float factor = 1.0f / __builtin_sqrtf(sum / cols_ + kEps);
      for (int32_t c = 0; c < cols_; ++c) {
        out.u.push_back(line[c] * factor * w_[c]);
      }
    }
    return out;
  }

  // Queues those two sums.
  absl::Status Queue(int32_t rank, uint32_t senders) {
    Member& m = members_[rank];
    for (int32_t number = 0; number < 2; ++number) {
      const uint32_t from = number == 0 ? senders : ~0u;
      kernels::GroupSum sum{.number = number,
                            .senders = from,
                            .rows = rows_,
                            .w = m.w.as<float>(),
                            .eps = kEps,
                            .x = m.x.as<float>(),
                            .u = {.data = m.u.as<void>(), .bf16 = false}};
      if (from >> rank & 1) sum.part.dense = m.part.as<float>();
      const absl::Status status = group_->AddNorm(rank, sum);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  void Finish(int32_t rank) {
    const auto end = group_->Finish(rank);
    EXPECT_TRUE(end.ok()) << end.status();
    if (end.ok()) members_[rank].end = *end;
  }
  void Step(int32_t rank, uint32_t senders) {
    const absl::Status status = Queue(rank, senders);
    EXPECT_TRUE(status.ok()) << status;
    Finish(rank);
  }

  // Each in a thread of its own.
  void EachRank(const std::function<void(int32_t)>& what) {
    std::vector<std::thread> threads;
    for (int32_t rank = 0; rank < ranks(); ++rank) {
      threads.emplace_back([&what, rank] { what(rank); });
    }
    for (std::thread& thread : threads) thread.join();
  }

  std::vector<float> X(int32_t rank) { return Down(rank, members_[rank].x); }
  std::vector<float> U(int32_t rank) { return Down(rank, members_[rank].u); }
  void RestoreX(int32_t rank) { Up(members_[rank], x_, members_[rank].x); }

 private:
  static constexpr float kEps = 1e-6f;
  struct Member {
    std::unique_ptr<kernels::DeviceQueue> queue;
    kernels::DeviceBuffer x, u, part, w;
    std::vector<float> values;
    kernels::DeviceGroup::End end;
  };
  void Up(Member& member,
          const std::vector<float>& from,
          const kernels::DeviceBuffer& to) {
    const absl::Status status = member.queue->Upload(
        from.data(), from.size() * sizeof(float), to.as<void>());
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(member.queue->Wait().ok());
  }
  std::vector<float> Down(int32_t rank, const kernels::DeviceBuffer& from) {
    std::vector<float> out(static_cast<size_t>(rows_) * cols_);
    const absl::Status status = members_[rank].queue->Download(
        from.as<void>(), out.size() * sizeof(float), out.data());
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  const int32_t cols_;
  int32_t rows_ = 0;
  std::vector<float> x_, w_;
  std::vector<Member> members_;
  std::unique_ptr<kernels::DeviceGroup> group_;
};

}  // namespace conclave::testing

// Skips the test, with the reason, where the group cannot be made; a machine
// with CONCLAVE_REQUIRE_GPUS ranks or more may not skip it.
#define CONCLAVE_REQUIRE_GROUP(group)                                   \
  do {                                                                  \
    const std::string why = ::conclave::testing::WhyNot(group);         \
    if (why.empty()) break;                                             \
    const char* require = std::getenv("CONCLAVE_REQUIRE_GPUS");         \
    if ((group).gpus && require != nullptr &&                           \
        std::atoi(require) >= (group).ranks) {                          \
      FAIL() << "CONCLAVE_REQUIRE_GPUS=" << require << ", but " << why; \
    }                                                                   \
    GTEST_SKIP() << why;                                                \
  } while (false)

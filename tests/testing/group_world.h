// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "kernels/device_group.h"
#include "kernels/device_queue.h"

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
    if (!gpus) return kernels::kHostDevice;
    return rank;
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
std::string WhyNot(const GroupCase& group);

class GroupWorld {
 public:
  struct Rows {
    std::vector<float> x, u;
  };

  GroupWorld(const GroupCase& group, kernels::DeviceGroup::Options options);

  bool ok() const { return group_ != nullptr; }
  int32_t ranks() const { return static_cast<int32_t>(members_.size()); }
  kernels::DeviceGroup& group() { return *group_; }
  kernels::DeviceQueue& queue(int32_t rank) { return *members_[rank].queue; }
  const kernels::DeviceGroup::End& end(int32_t rank) const {
    return members_[rank].end;
  }

  void Fill(uint32_t seed, int32_t rows);
  void SetPart(int32_t rank, size_t at, float value);

  // What two sums give, in the first of which `only` has a part (-1: all).
  Rows Expected(int32_t only) const;

  // Queues those two sums, or the first.
  absl::Status Queue(int32_t rank, int32_t only, int32_t sums = 2);
  void Finish(int32_t rank);
  void Step(int32_t rank, int32_t only);

  // Each in a thread of its own.
  void EachRank(const std::function<void(int32_t)>& what);

  std::vector<float> X(int32_t rank) { return Down(rank, members_[rank].x); }
  std::vector<float> U(int32_t rank) { return Down(rank, members_[rank].u); }
  // As Fill made them.
  const std::vector<float>& filled_x() const { return x_; }
  const std::vector<float>& part(int32_t rank) const {
    return members_[rank].values;
  }
  // Queues their copies to the device.
  absl::Status Load(int32_t rank,
                    const std::vector<float>& x,
                    const std::vector<float>& part);

 private:
  struct Member {
    std::unique_ptr<kernels::DeviceQueue> queue;
    kernels::DeviceBuffer x, u, part, w;
    std::vector<float> values;
    kernels::DeviceGroup::End end;
  };
  void Up(Member& member,
          const std::vector<float>& from,
          const kernels::DeviceBuffer& to);
  std::vector<float> Down(int32_t rank, const kernels::DeviceBuffer& from);

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

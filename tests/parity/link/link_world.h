// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/device_link.h"
#include "tests/gpu/device_values.h"
#include "tests/testing/group_world.h"
#include "tests/testing/simulated_clock.h"

namespace conclave::kernels {

// Ranks of one link, a thread and a device each. Time is the test's on the
// twin; GPUs do not wait for it.
class LinkWorld {
 public:
  explicit LinkWorld(const testing::GroupCase& where) : where_(where) {
    for (int32_t rank = 0; rank < where.ranks; ++rank) {
      auto queue = DeviceQueue::Create(where.device(rank));
      EXPECT_TRUE(queue.ok()) << queue.status();
      queues.push_back(queue.ok() ? *std::move(queue) : nullptr);
    }
    links.resize(queues.size());
  }

  int32_t ranks() const { return where_.ranks; }

  DeviceLink::Options Options(const std::string& id, int32_t rank) {
    return {.id = id,
            .rank = rank,
            .ranks = ranks(),
            .join_deadline = where_.gpus ? absl::Seconds(60) : absl::Seconds(5),
            .deadline = where_.gpus ? absl::Seconds(3) : absl::Seconds(5),
            .lost =
                [this] {
                  return lost ? absl::UnavailableError("w7 is gone")
                              : absl::OkStatus();
                },
            .clock = where_.gpus ? RealClock() : &clock};
  }

  void EachRank(const std::function<void(int32_t)>& what) {
    std::vector<std::thread> threads;
    for (int32_t rank = 0; rank < ranks(); ++rank) {
      threads.emplace_back([&, rank] { what(rank); });
    }
    for (std::thread& thread : threads) thread.join();
  }

  // All ranks, anew.
  void Join() {
    const auto id = DeviceLink::NewId();
    ASSERT_TRUE(id.ok()) << id.status();
    EachRank([&](int32_t rank) {
      auto link = DeviceLink::Create(queues[rank].get(), Options(*id, rank));
      ASSERT_TRUE(link.ok()) << link.status();
      links[rank] = *std::move(link);
    });
  }

  // Moves the twin's time on until `done`.
  std::thread PassTime(const std::atomic<bool>& done) {
    return std::thread([&] {
      while (!done) {
        clock.Advance(absl::Milliseconds(100));
        std::this_thread::yield();
      }
    });
  }

  std::vector<std::unique_ptr<DeviceQueue>> queues;
  std::vector<std::unique_ptr<DeviceLink>> links;
  std::atomic<bool> lost = false;
  testing::SimulatedClock clock;

 private:
  const testing::GroupCase where_;
};

}  // namespace conclave::kernels

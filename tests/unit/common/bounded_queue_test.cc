// SPDX-License-Identifier: Apache-2.0
#include "common/bounded_queue.h"

#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace conclave {
namespace {

TEST(BoundedQueueTest, IsFirstInFirstOut) {
  BoundedQueue<std::unique_ptr<int>> queue(3);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(queue.Push(std::make_unique<int>(i)).ok());
  }
  for (int i = 0; i < 3; ++i) EXPECT_EQ(**queue.TryPop(), i);
  EXPECT_FALSE(queue.TryPop().has_value());
}

TEST(BoundedQueueTest, FullIsResourceExhaustedAndLosesNothing) {
  BoundedQueue<int> queue(2);
  ASSERT_TRUE(queue.Push(1).ok());
  ASSERT_TRUE(queue.Push(2).ok());
  EXPECT_EQ(queue.Push(3).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(queue.size(), 2u);
  EXPECT_EQ(queue.TryPop(), 1);
  EXPECT_TRUE(queue.Push(3).ok());
  EXPECT_EQ(queue.TryPop(), 2);
  EXPECT_EQ(queue.TryPop(), 3);
}

TEST(BoundedQueueTest, ClosedRefusesButDrains) {
  BoundedQueue<int> queue(2);
  ASSERT_TRUE(queue.Push(1).ok());
  queue.Close();
  EXPECT_EQ(queue.Push(2).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(queue.Pop(absl::InfiniteDuration()), 1);
  EXPECT_FALSE(queue.Pop(absl::InfiniteDuration()).has_value());
}

TEST(BoundedQueueTest, PopReturnsAtTheTimeout) {
  BoundedQueue<int> queue(1);
  EXPECT_FALSE(queue.Pop(absl::Milliseconds(1)).has_value());
}

TEST(BoundedQueueTest, CloseWakesAWaiter) {
  BoundedQueue<int> queue(1);
  std::thread waiter(
      [&] { EXPECT_FALSE(queue.Pop(absl::InfiniteDuration()).has_value()); });
  queue.Close();
  waiter.join();
}

TEST(BoundedQueueTest, ManyWritersOneReader) {
  constexpr int kWriters = 4, kItems = 500;
  BoundedQueue<std::pair<int, int>> queue(16);
  std::vector<std::thread> writers;
  for (int w = 0; w < kWriters; ++w) {
    writers.emplace_back([&queue, w] {
      for (int i = 0; i < kItems; ++i) {
        while (!queue.Push({w, i}).ok()) std::this_thread::yield();
      }
    });
  }
  std::vector<int> next(kWriters, 0);
  for (int i = 0; i < kWriters * kItems; ++i) {
    const auto item = queue.Pop(absl::InfiniteDuration());
    ASSERT_TRUE(item.has_value());
    EXPECT_EQ(item->second, next[item->first]++);  // order of each writer
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(queue.size(), 0u);
}

}  // namespace
}  // namespace conclave

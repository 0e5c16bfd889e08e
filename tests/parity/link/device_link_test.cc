// SPDX-License-Identifier: Apache-2.0
// What a rank sends is what its peer gets, and what happens when one does not
// come, goes, or is told to stop.
#include "kernels/device_link.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/parity/link/link_world.h"

namespace conclave::kernels {
namespace {

class LinkOfRanks : public ::testing::TestWithParam<testing::GroupCase> {};

constexpr auto kNccl = GroupExchange::kNccl;
INSTANTIATE_TEST_SUITE_P(
    Forms,
    LinkOfRanks,
    ::testing::Values(
        testing::GroupCase{.ranks = 2},
        testing::GroupCase{.ranks = 4},
        testing::GroupCase{.gpus = true, .ranks = 2, .exchange = kNccl},
        testing::GroupCase{.gpus = true, .ranks = 4, .exchange = kNccl}),
    [](const auto& info) { return info.param.Name(); });

// A number that says who sends it to whom, in which exchange, and where.
std::vector<int32_t> Values(int32_t from, int32_t to, int32_t turn, size_t n) {
  std::vector<int32_t> out(n);
  for (size_t i = 0; i < n; ++i) {
    out[i] = ((from * 16 + to) * 64 + turn) * 100000 + static_cast<int32_t>(i);
  }
  return out;
}

size_t NumbersOf(int32_t from, int32_t to, int32_t turn) {
  return static_cast<size_t>(1000 * turn + 17 * from + 3 * to + 1);
}

// Rank 0 to all others, and back: two exchanges, the second of two parts.
void TwoExchanges(LinkWorld& world, int32_t rank, int32_t turn) {
  DeviceQueue& queue = *world.queues[rank];
  DeviceLink& link = *world.links[rank];
  const auto send = [&](int32_t to, std::vector<DeviceBuffer>* kept) {
    const size_t n = NumbersOf(rank, to, turn);
    kept->push_back(Up(queue, Values(rank, to, turn, n)));
    return LinkPart{to, kept->back().as<void>(), n * sizeof(int32_t)};
  };
  const auto receive = [&](int32_t from, std::vector<DeviceBuffer>* kept) {
    const size_t n = NumbersOf(from, rank, turn);
    kept->push_back(Up(queue, std::vector<int32_t>(n, -1)));
    return LinkPart{from, kept->back().as<void>(), n * sizeof(int32_t)};
  };
  std::vector<DeviceBuffer> sent, got, again;
  std::vector<LinkPart> out, in, twice;
  const int32_t end = rank == 0 ? world.ranks() : 1;
  for (int32_t peer = rank == 0 ? 1 : 0; peer < end; ++peer) {
    out.push_back(send(peer, &sent));
    in.push_back(receive(peer, &got));
    twice.push_back(receive(peer, &again));
  }
  std::vector<LinkPart> both = in;
  both.insert(both.end(), twice.begin(), twice.end());
  std::vector<LinkPart> doubled = out;
  doubled.insert(doubled.end(), out.begin(), out.end());
  if (rank == 0) {
    ASSERT_TRUE(link.Exchange(out, {}).ok());
    ASSERT_TRUE(link.Exchange({}, both).ok());
  } else {
    ASSERT_TRUE(link.Exchange({}, in).ok());
    ASSERT_TRUE(link.Exchange(doubled, {}).ok());
  }
  const absl::Status status = link.Wait();
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < in.size(); ++i) {
    const int32_t from = in[i].peer;
    const auto want = Values(from, rank, turn, NumbersOf(from, rank, turn));
    EXPECT_EQ(Down(queue, got[i].as<int32_t>(), want.size()), want);
    if (rank > 0) continue;
    EXPECT_EQ(Down(queue, again[i].as<int32_t>(), want.size()), want);
  }
}

TEST_P(LinkOfRanks, EachGetsWhatWasSentToIt) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  LinkWorld world(GetParam());
  ASSERT_NO_FATAL_FAILURE(world.Join());
  std::vector<int64_t> before;
  for (const auto& link : world.links) before.push_back(link->passed());
  for (int32_t turn = 1; turn <= 3; ++turn) {
    world.EachRank([&](int32_t rank) { TwoExchanges(world, rank, turn); });
  }
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(world.links[i]->passed(), before[i] + 6);
  }
}

TEST_P(LinkOfRanks, ExchangesAreRecordedOnceAndReplayed) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  LinkWorld world(GetParam());
  ASSERT_NO_FATAL_FAILURE(world.Join());
  world.EachRank([&](int32_t rank) {
    DeviceQueue& queue = *world.queues[rank];
    DeviceLink& link = *world.links[rank];
    constexpr size_t kNumbers = 64;
    std::vector<DeviceBuffer> rooms;
    std::vector<LinkPart> parts;
    const int32_t end = rank == 0 ? world.ranks() : 1;
    for (int32_t peer = rank == 0 ? 1 : 0; peer < end; ++peer) {
      rooms.push_back(Room(queue, kNumbers * sizeof(int32_t)));
      parts.push_back(
          {peer, rooms.back().as<void>(), kNumbers * sizeof(int32_t)});
    }
    ASSERT_TRUE(queue.BeginRecording().ok());
    const absl::Status queued =
        rank == 0 ? link.Exchange(parts, {}) : link.Exchange({}, parts);
    auto graph = queue.EndRecording();
    ASSERT_TRUE(queued.ok() && graph.ok()) << queued << graph.status();
    for (int32_t turn = 0; turn < 3; ++turn) {
      for (size_t i = 0; rank == 0 && i < parts.size(); ++i) {
        const auto values = Values(0, parts[i].peer, turn, kNumbers);
        ASSERT_TRUE(
            queue.Upload(values.data(), parts[i].bytes, parts[i].data).ok());
      }
      ASSERT_TRUE(queue.Launch(*graph).ok());
      const absl::Status status = link.Wait();
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(Down(queue, rooms[0].as<int32_t>(), kNumbers),
                Values(0, rank == 0 ? 1 : rank, turn, kNumbers));
    }
  });
}

// Rank 0 waits for numbers that rank 1 does not send.
absl::Status WaitInVain(LinkWorld& world) {
  DeviceQueue& queue = *world.queues[0];
  const DeviceBuffer room = Room(queue, 64);
  const LinkPart part{1, room.as<void>(), 64};
  absl::Status status = world.links[0]->Exchange({}, {&part, 1});
  if (status.ok()) status = world.links[0]->Wait();
  return status;
}

void ExpectEnded(LinkWorld& world) {
  EXPECT_EQ(world.links[0]->Exchange({}, {}).code(),
            absl::StatusCode::kAborted);
  // The devices are what they were.
  world.lost = false;
  ASSERT_NO_FATAL_FAILURE(world.Join());
  world.EachRank([&](int32_t rank) { TwoExchanges(world, rank, 1); });
}

TEST_P(LinkOfRanks, AWaitEndsAtItsDeadline) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  LinkWorld world(GetParam());
  ASSERT_NO_FATAL_FAILURE(world.Join());
  std::atomic<bool> done = false;
  std::thread time = world.PassTime(done);
  const int64_t before = world.links[0]->passed();
  const absl::Status status = WaitInVain(world);
  done = true;
  time.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_EQ(world.links[0]->passed(), before);
  ExpectEnded(world);
}

// A device takes so many launches and no more: who queues a long step is not
// caught in one of them.
TEST_P(LinkOfRanks, QueueingManyExchangesEndsAtTheDeadlineToo) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  LinkWorld world(GetParam());
  ASSERT_NO_FATAL_FAILURE(world.Join());
  std::atomic<bool> done = false;
  std::thread time = world.PassTime(done);
  const DeviceBuffer room = Room(*world.queues[0], 64);
  const LinkPart part{1, room.as<void>(), 64};
  absl::Status status;
  for (int i = 0; i < 3000 && status.ok(); ++i) {
    status = world.links[0]->Exchange({}, {&part, 1});
  }
  if (status.ok()) status = world.links[0]->Wait();
  done = true;
  time.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  ExpectEnded(world);
}

TEST_P(LinkOfRanks, AbortEndsAWait) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  LinkWorld world(GetParam());
  ASSERT_NO_FATAL_FAILURE(world.Join());
  std::thread other([&] { world.links[0]->Abort(); });
  EXPECT_EQ(WaitInVain(world).code(), absl::StatusCode::kAborted);
  other.join();
  ExpectEnded(world);
}

TEST_P(LinkOfRanks, APeerThatIsLostEndsAWait) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  LinkWorld world(GetParam());
  ASSERT_NO_FATAL_FAILURE(world.Join());
  world.lost = true;
  const absl::Status status = WaitInVain(world);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(status.message(), "w7 is gone");
  ExpectEnded(world);
}

TEST_P(LinkOfRanks, NobodyWaitsForEverForARankThatDoesNotCome) {
  CONCLAVE_REQUIRE_GROUP(GetParam());
  LinkWorld world(GetParam());
  const auto id = DeviceLink::NewId();
  ASSERT_TRUE(id.ok()) << id.status();
  std::atomic<bool> done = false;
  std::thread time = world.PassTime(done);
  const auto link =
      DeviceLink::Create(world.queues[0].get(), world.Options(*id, 0));
  done = true;
  time.join();
  EXPECT_EQ(link.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(DeviceLink::Create(world.queues[0].get(),
                               world.Options("what nobody made", 0))
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
}

// Sizes that do not agree are seen where the twin counts them; NCCL does not.
TEST(LinkTwin, SizesMustAgree) {
  const testing::GroupCase twin{.ranks = 2};
  CONCLAVE_REQUIRE_GROUP(twin);
  LinkWorld world(twin);
  ASSERT_NO_FATAL_FAILURE(world.Join());
  const DeviceBuffer few = Room(*world.queues[1], 32);
  const LinkPart part{0, few.as<void>(), 32};
  ASSERT_TRUE(world.links[1]->Exchange({&part, 1}, {}).ok());
  const absl::Status status = WaitInVain(world);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(),
            "link: rank 1 sent 32 bytes where 64 were awaited");
}

}  // namespace
}  // namespace conclave::kernels

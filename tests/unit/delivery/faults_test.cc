// SPDX-License-Identifier: Apache-2.0
// What goes wrong on the way: recovered or refused, never a wrong weight.
#include <signal.h>
#include <sys/resource.h>

#include <set>
#include <thread>

#include "common/delivery/deliver_frame.h"
#include "tests/testing/grpc_races.h"
#include "tests/testing/simulated_clock.h"
#include "tests/unit/delivery/fixture.h"

namespace conclave {
namespace {

using ::testing::AllOf;
using testing::DeliveryTest;
using ::testing::HasSubstr;
using testing::Node;

constexpr char kDeliver[] = "/conclave.v1.WorkerDelivery/Deliver";
constexpr char kFetch[] = "/conclave.v1.WorkerDelivery/Fetch";

TEST_F(DeliveryTest, DamagedCacheFilesAreFetchedAgain) {
  {
    Node node("w0", Node::Fetching(), Folder("c"));
    MustLoad(node, Request());
  }
  const auto files = CacheFiles(Folder("c"));
  ASSERT_EQ(files.size(), 32u);
  FlipByte(files[3], 0);
  FlipByte(files[9], kSliceBytes - 1);
  std::filesystem::resize_file(files[20], kSliceBytes / 2);
  std::filesystem::resize_file(files[21], 0);
  Node node("w0", Node::Fetching(), Folder("c"));
  const v1::LoadProgress last = MustLoad(node, Request());
  EXPECT_EQ(last.coordinator_bytes(), 4 * kSliceBytes);
  EXPECT_EQ(last.cache_bytes(), kAllBytes - 4 * kSliceBytes);
  Node again("w0", Node::Fetching(), Folder("c"));
  EXPECT_EQ(MustLoad(again, Request()).cache_bytes(), kAllBytes);
}

TEST_F(DeliveryTest, APeerThatServesWrongBytesIsNotUsed) {
  Node old("w0", Node::Fetching(), Folder("old")), young("w1");
  MustLoad(old, Request());
  MustLoad(old, Request(0, 1));  // the rest lies in its cache alone
  for (const auto& file : CacheFiles(Folder("old"))) FlipByte(file, 100);
  v1::AssignRequest request = Request();
  AddPeer("w0", old.address(), &request);
  const v1::LoadProgress last = MustLoad(young, request);
  EXPECT_EQ(last.peer_bytes() + last.coordinator_bytes(), kAllBytes);
  EXPECT_GE(last.coordinator_bytes(), kAllBytes - 4 * kSliceBytes);
}

TEST_F(DeliveryTest, APeerThatDiesMidwayIsReplaced) {
  Node old("w0"), young("w1");
  MustLoad(old, Request());
  std::atomic<int> served{0};
  old.SetHook([&](const std::string& method, std::string*) {
    if (method != kFetch || served.fetch_add(1) < 5) return absl::OkStatus();
    return absl::UnavailableError("gone");
  });
  v1::AssignRequest request = Request();
  AddPeer("w0", old.address(), &request);
  const v1::LoadProgress last = MustLoad(young, request);
  EXPECT_EQ(last.peer_bytes(), 5 * kSliceBytes);
  EXPECT_EQ(last.coordinator_bytes(), kAllBytes - 5 * kSliceBytes);
}

TEST_F(DeliveryTest, FramesDamagedOnTheWayAreAskedAgain) {
  Node node("w0");
  std::set<int32_t> seen;  // the poller alone calls the hook
  node.SetHook([&](const std::string& method, std::string* request) {
    const auto frame = delivery::ParseFrame(*request);
    if (method == kDeliver && seen.insert(frame->header.slice()).second) {
      request->back() = static_cast<char>(request->back() ^ 1);
    }
    return absl::OkStatus();
  });
  EXPECT_EQ(MustLoad(node, Request()).coordinator_bytes(), kAllBytes);
  EXPECT_EQ(seen.size(), 32u);
}

TEST_F(DeliveryTest, FramesThatAreAlwaysDamagedEndTheLoadByName) {
  Node node("w0");
  node.SetHook([](const std::string&, std::string* request) {
    request->back() = static_cast<char>(request->back() ^ 1);
    return absl::OkStatus();
  });
  EXPECT_THAT(Refusal(node, Request()),
              AllOf(HasSubstr("DATA_LOSS"),
                    HasSubstr("shard 0, layer"),
                    HasSubstr("damaged 3 times")));
}

TEST_F(DeliveryTest, ALinkThatDropsAndComesBackIsUsedFurther) {
  // Slices of two frames each, of which the first is lost now and then.
  temp_.Clear();
  testing::WriteCheckpoint(
      model_, {.layers = 4, .hidden = 512, .experts = 2, .intermediate = 2048});
  Reopen();
  Node node("w0");
  std::atomic<int> frames{0};
  node.SetHook([&](const std::string&, std::string*) {
    return frames.fetch_add(1) % 3 == 1
               ? absl::UnavailableError("the link is down")
               : absl::OkStatus();
  });
  const v1::LoadProgress last = MustLoad(node, Request(0, 2));
  EXPECT_EQ(last.coordinator_bytes(), last.bytes_total());
  EXPECT_GT(frames, 16);
}

// The frame arrived, its answer did not: it comes twice.
TEST_F(DeliveryTest, FramesThatComeTwiceDoNoHarm) {
  Node node("w0");
  std::atomic<int> frames{0};
  node.SetHook([&](const std::string&, std::string* request) {
    if (frames.fetch_add(1) % 4 == 0) {
      node.store.inbox()->Deliver(
          *request,
          {.send = [](std::string) {}, .finish = [](const absl::Status&) {}});
    }
    return absl::OkStatus();
  });
  MustLoad(node, Request());
}

TEST_F(DeliveryTest, WhatNobodyAskedForIsRefused) {
  Node node("w0");
  MustLoad(node, Request());
  const auto answer = [&](const std::string& frame) {
    absl::Status status;
    node.store.inbox()->Deliver(
        frame,
        {.send = [](std::string) {},
         .finish = [&](const absl::Status& s) { status = s; }});
    return status.ToString();
  };
  EXPECT_THAT(answer(""), HasSubstr("cannot be parsed"));
  EXPECT_THAT(answer("\xff\xff\xff\xff"), HasSubstr("cannot be parsed"));
  EXPECT_THAT(answer(std::string("\x02\0\0\0\xff\xff", 6)),
              HasSubstr("cannot be parsed"));
  EXPECT_THAT(answer(std::string(4, '\0')), HasSubstr("not asked for"));
}

TEST_F(DeliveryTest, AFullDiskCostsTheCacheNotTheLoad) {
  Node node("w0", Node::Fetching(), Folder("c"));
  // Files may not grow to a slice's size: writes end half way.
  signal(SIGXFSZ, SIG_IGN);
  rlimit before = {};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = kSliceBytes / 2;
  setrlimit(RLIMIT_FSIZE, &small);
  v1::LoadProgress last;
  const absl::Status status = node.Load(supply_.get(), Request(), &last);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_TRUE(status.ok()) << status;
  testing::ExpectHolds(node.store, *checkpoint_);
  EXPECT_TRUE(CacheFiles(Folder("c")).empty());
}

TEST_F(DeliveryTest, ALoadThatWasKilledAnywhereGoesOnFromThere) {
  for (const uint64_t percent : {1, 20, 50, 80, 99}) {
    const std::string cache = Folder(absl::StrCat("c", percent));
    uint64_t had = 0;
    {
      Node node("w0", Node::Fetching(), cache);
      v1::AssignRequest request = Request();
      ASSERT_TRUE(supply_->Describe(&request).ok());
      const auto session = supply_->Open(
          request, "w0", Node::Dial(node.address()), absl::Seconds(20));
      const absl::Status status =
          node.store.Assign(request, [&](const v1::LoadProgress& news) {
            session->Add(news);
            if (news.bytes_done() * 100 >= kAllBytes * percent) {
              node.store.Stop();
            }
          });
      // Near the end, what was under way may have been all.
      EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
      EXPECT_TRUE(percent > 50 || !status.ok());
      had = CacheFiles(cache).size() * kSliceBytes;
      EXPECT_GE(had * 100, kAllBytes * percent);
    }
    Node again("w0", Node::Fetching(), cache);
    const v1::LoadProgress last = MustLoad(again, Request());
    EXPECT_EQ(last.cache_bytes(), had);
    EXPECT_EQ(last.coordinator_bytes(), kAllBytes - had);
  }
}

TEST_F(DeliveryTest, AFailedLoadKeepsWhatItBroughtInMemory) {
  Node node("w0");
  std::atomic<int> frames{0};
  node.SetHook([&](const std::string&, std::string* request) {
    if (frames.fetch_add(1) >= 10) {
      request->back() = static_cast<char>(request->back() ^ 1);
    }
    return absl::OkStatus();
  });
  Refusal(node, Request());
  node.SetHook(nullptr);
  const v1::LoadProgress last = MustLoad(node, Request());
  EXPECT_EQ(last.bytes_total(), kAllBytes);
  EXPECT_LE(last.coordinator_bytes(), kAllBytes - 5 * kSliceBytes);
}

TEST_F(DeliveryTest, WhatTheCoordinatorCannotReadIsNamed) {
  std::filesystem::resize_file(
      model_ / "model.safetensors",
      std::filesystem::file_size(model_ / "model.safetensors") / 2);
  Node node("w0");
  EXPECT_THAT(Refusal(node, Request()),
              AllOf(HasSubstr("coordinator:"), HasSubstr("model.safetensors")));
}

TEST_F(DeliveryTest, ASilentCoordinatorEndsTheLoadInTime) {
  testing::SimulatedClock clock;
  worker::ExpertStore::Options options = Node::Fetching();
  options.clock = &clock;
  Node node("w0", options);
  v1::AssignRequest request = Request();
  ASSERT_TRUE(supply_->Describe(&request).ok());
  absl::Status status;
  std::atomic<bool> ended{false};
  std::thread load([&] {
    status = node.store.Assign(request, [](const auto&) {});
    ended = true;
  });
  std::thread time([&] {
    for (int i = 0; i < 1000 && !ended; ++i) {
      clock.Advance(absl::Seconds(1));
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  load.join();
  time.join();
  EXPECT_THAT(status.ToString(),
              AllOf(HasSubstr("DEADLINE_EXCEEDED"),
                    HasSubstr("load: shard 0, layer"),
                    HasSubstr("coordinator sent nothing for 20s")));
}

TEST_F(DeliveryTest, ANewerAssignmentReplacesTheOneThatRuns) {
  Node node("w0");
  v1::AssignRequest stuck = Request();
  ASSERT_TRUE(supply_->Describe(&stuck).ok());
  std::atomic<bool> began{false};
  absl::Status status;
  std::thread load([&] {
    status = node.store.Assign(stuck, [&](const v1::LoadProgress& news) {
      if (news.wants_size() > 0) began = true;  // and nobody answers
    });
  });
  while (!began) std::this_thread::yield();
  MustLoad(node, Request());
  load.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
}

}  // namespace
}  // namespace conclave

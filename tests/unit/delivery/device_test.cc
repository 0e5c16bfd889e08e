// SPDX-License-Identifier: Apache-2.0
// Slices of a worker that computes on a device: what leaves host memory, and
// what other workers and later loads still get. On the plain twin.
#include "tests/gpu/worker_world.h"
#include "tests/testing/form.h"
#include "tests/unit/delivery/fixture.h"

namespace conclave {
namespace {

using testing::DeliveryTest;
using ::testing::HasSubstr;
using testing::Node;

class DeviceDeliveryTest : public DeliveryTest {
 protected:
  void SetUp() override {
    CONCLAVE_REQUIRE_FORM(testing::kTwinForm);
    DeliveryTest::SetUp();
    device_ = worker::NewDevice(testing::kTwinForm.gpu);
    ASSERT_NE(device_, nullptr);
  }
  worker::ExpertStore::Options OnDevice() {
    worker::ExpertStore::Options options = Node::Fetching();
    options.device = device_.get();
    return options;
  }
  static void ExpectAllOnDevice(const Node& node) {
    const auto assignment = node.store.current();
    ASSERT_NE(assignment, nullptr);
    for (const auto& [id, held] : assignment->held) {
      for (size_t i = 0; i < held->done.size(); ++i) {
        EXPECT_FALSE(held->InHostMemory(i)) << i;
      }
    }
  }
  std::unique_ptr<worker::ExpertDevice> device_;
};

TEST_F(DeviceDeliveryTest, PeersAreServedFromTheCache) {
  Node cached("w0", OnDevice(), Folder("c")), other("w1");
  MustLoad(cached, Request());
  ExpectAllOnDevice(cached);
  v1::AssignRequest request = Request();
  AddPeer("w0", cached.address(), &request);
  EXPECT_EQ(MustLoad(other, request).peer_bytes(), kAllBytes);
}

TEST_F(DeviceDeliveryTest, WithoutACacheTheyAskElsewhere) {
  Node bare("w0", OnDevice()), other("w1");
  MustLoad(bare, Request());
  ExpectAllOnDevice(bare);
  v1::AssignRequest request = Request();
  AddPeer("w0", bare.address(), &request);
  EXPECT_EQ(MustLoad(other, request).coordinator_bytes(), kAllBytes);
}

TEST_F(DeviceDeliveryTest, WhatIsOnTheDeviceIsNotLoadedAgain) {
  Node node("w0", OnDevice());
  MustLoad(node, Request());
  EXPECT_EQ(MustLoad(node, Request()).bytes_total(), 0u);
  // A load that broke off is taken up where it was.
  worker::ExpertStore::Options options = OnDevice();
  options.deadline = absl::Seconds(2);
  Node broken("w1", options);
  std::atomic<int> frames{0};
  broken.SetHook([&](const std::string& method, std::string*) {
    return method.ends_with("/Deliver") && frames.fetch_add(1) >= 13
               ? absl::UnavailableError("cut")
               : absl::OkStatus();
  });
  Refusal(broken, Request());
  broken.SetHook(nullptr);
  const v1::LoadProgress last = MustLoad(broken, Request());
  EXPECT_GT(last.coordinator_bytes(), 0u);
  EXPECT_LT(last.coordinator_bytes(), kAllBytes);
  EXPECT_EQ(last.bytes_total(), kAllBytes);
  ExpectAllOnDevice(broken);
}

TEST_F(DeviceDeliveryTest, HostMemoryNeedsRoomForTwoLayers) {
  worker::ExpertStore::Options options = OnDevice();
  const uint64_t layer = 8 * kSliceBytes;
  options.memory = [&] { return MemoryState{kAllBytes, 2 * layer}; };
  Node enough("w0", options);
  MustLoad(enough, Request());
  options.memory = [&] { return MemoryState{kAllBytes, 2 * layer - 1}; };
  Node little("w1", options);
  EXPECT_THAT(Refusal(little, Request()), HasSubstr("experts' way to the GPU"));
}

}  // namespace
}  // namespace conclave

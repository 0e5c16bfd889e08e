// SPDX-License-Identifier: Apache-2.0
// Where slices come from when nothing goes wrong.
#include "tests/unit/delivery/fixture.h"

namespace conclave {
namespace {

using ::testing::AllOf;
using testing::DeliveryTest;
using ::testing::HasSubstr;
using testing::Node;

TEST_F(DeliveryTest, EveryByteComesFromTheCoordinatorOnce) {
  Node node("w0");
  const v1::LoadProgress last = MustLoad(node, Request());
  EXPECT_EQ(last.bytes_total(), kAllBytes);
  EXPECT_EQ(last.coordinator_bytes(), kAllBytes);
  EXPECT_EQ(node.store.resident_bytes(), kAllBytes);
}

TEST_F(DeliveryTest, ARestartFetchesNothing) {
  {
    MustLoad(*std::make_unique<Node>("w0", Node::Fetching(), Folder("c")),
             Request());
  }
  Node again("w0", Node::Fetching(), Folder("c"));
  again.SetHook([](const std::string& method, std::string*) {
    ADD_FAILURE() << method;
    return absl::UnavailableError("nothing may be asked");
  });
  const v1::LoadProgress last = MustLoad(again, Request());
  EXPECT_EQ(last.cache_bytes(), kAllBytes);
}

TEST_F(DeliveryTest, ARestartOfTheCoordinatorFetchesNothing) {
  Node node("w0", Node::Fetching(), Folder("c"));
  MustLoad(node, Request());
  Reopen();
  // Held in memory: the checkpoint is the same.
  EXPECT_EQ(MustLoad(node, Request()).bytes_total(), 0u);
  // The manifest is lost: the coordinator reads, the worker does not fetch.
  std::filesystem::remove_all(Folder("coordinator"));
  Reopen();
  Node again("w0", Node::Fetching(), Folder("c"));
  const v1::LoadProgress last = MustLoad(again, Request());
  EXPECT_EQ(last.cache_bytes(), kAllBytes);
}

TEST_F(DeliveryTest, AChangedPlacementFetchesWhatChanged) {
  Node node("w0", Node::Fetching(), Folder("c"));
  MustLoad(node, Request(0, 4));
  const v1::LoadProgress last = MustLoad(node, Request(2, 6));
  EXPECT_EQ(last.bytes_total(), kAllBytes / 2);
  EXPECT_EQ(last.cache_bytes(), kAllBytes / 4);
  EXPECT_EQ(last.coordinator_bytes(), kAllBytes / 4);
}

TEST_F(DeliveryTest, OtherWeightsUnderTheSameNamesAreFetched) {
  Node node("w0", Node::Fetching(), Folder("c"));
  MustLoad(node, Request());
  testing::WriteCheckpoint(model_, {.seed = 2});
  Reopen();
  const v1::LoadProgress last = MustLoad(node, Request());
  EXPECT_EQ(last.coordinator_bytes(), kAllBytes);
}

TEST_F(DeliveryTest, PeersServeWhatTheyHold) {
  Node old("w0"), young("w1");
  MustLoad(old, Request());
  v1::AssignRequest request = Request();
  AddPeer("w0", old.address(), &request);
  const v1::LoadProgress last = MustLoad(young, request);
  EXPECT_EQ(last.peer_bytes(), kAllBytes);
  // And from its cache, when it holds others now.
  Node cached("w2", Node::Fetching(), Folder("c"));
  MustLoad(cached, Request());
  MustLoad(cached, Request(0, 1));
  request.mutable_peers(0)->set_name("w2");
  request.mutable_peers(0)->set_address(cached.address());
  Node third("w3");
  EXPECT_EQ(MustLoad(third, request).peer_bytes(), kAllBytes);
}

TEST_F(DeliveryTest, ThoseWhoCannotServeAreNoPeers) {
  Node old("w0"), young("w1");
  MustLoad(old, Request());
  v1::AssignRequest request = Request();
  // Another worker's name; nobody; a worker that holds nothing.
  for (const auto& [name, address] :
       {std::pair<std::string, std::string>{"w9", old.address()},
        {"w8", "127.0.0.1:1"},
        {"w1", young.address()}}) {
    AddPeer(name, address, &request);
  }
  EXPECT_EQ(MustLoad(young, request).coordinator_bytes(), kAllBytes);
}

TEST_F(DeliveryTest, ALocalCopyIsTakenAfterASampleOfItWasCompared) {
  worker::ExpertStore::Options options;
  options.model = model_.string();
  Node node("w0", options, Folder("c"));
  std::atomic<int> asked{0};
  node.SetHook([&](const std::string&, std::string*) {
    asked.fetch_add(1);
    return absl::OkStatus();
  });
  const v1::LoadProgress last = MustLoad(node, Request());
  EXPECT_EQ(last.local_bytes(), kAllBytes);
  EXPECT_EQ(asked, 16);
  v1::AssignRequest whole = Request();
  whole.set_verify_local(true);
  Node careful("w0", options);
  careful.SetHook([&](const std::string&, std::string*) {
    asked.fetch_add(1);
    return absl::OkStatus();
  });
  EXPECT_EQ(MustLoad(careful, whole).local_bytes(), kAllBytes);
  EXPECT_EQ(asked, 32);  // half of the hashes were known by now
}

TEST_F(DeliveryTest, ALocalCopyWithOtherWeights) {
  const std::filesystem::path other = temp_.path() / "other";
  testing::WriteCheckpoint(other, {.seed = 2});
  worker::ExpertStore::Options options = Node::Fetching();
  options.model = other.string();
  Node stated("w0", options);
  EXPECT_THAT(Refusal(stated, Request()),
              AllOf(HasSubstr(other.string()), HasSubstr("other weights")));
  // Nobody said that it is the same: it is left alone.
  options.model = "";
  options.hint = other.string();
  Node hinted("w0", options);
  EXPECT_EQ(MustLoad(hinted, Request()).coordinator_bytes(), kAllBytes);
}

TEST_F(DeliveryTest, EveryFormatArrivesAsItIsStored) {
  using checkpoint::QuantFormat;
  const std::vector<testing::CheckpointOptions> all = {
      {.hidden = 256, .intermediate = 256, .format = QuantFormat::kFp8},
      {.hidden = 256,
       .intermediate = 256,
       .format = QuantFormat::kGptq,
       .affine = {4, 128}},
      {.hidden = 256,
       .intermediate = 256,
       .shared = 64,
       .head_dim = 64,
       .format = QuantFormat::kMlx,
       .affine = {4, 64}}};
  for (const auto& options : all) {
    temp_.Clear();
    testing::WriteCheckpoint(model_, options);
    Reopen();
    Node node("w0");
    const v1::LoadProgress last = MustLoad(node, Request(0, 2));
    EXPECT_EQ(last.coordinator_bytes(), last.bytes_total());
    EXPECT_GT(last.bytes_total(), 0u);
  }
}

TEST_F(DeliveryTest, TooLittleMemoryIsToldWithBothNumbers) {
  worker::ExpertStore::Options options = Node::Fetching();
  options.memory = [] { return MemoryState{1000, 1000}; };
  Node node("w0", options);
  EXPECT_THAT(Refusal(node, Request()),
              AllOf(HasSubstr("RESOURCE_EXHAUSTED"),
                    HasSubstr("needs 0.000 GB"),
                    HasSubstr("0.000 GB free")));
  // What it holds already counts as room.
  uint64_t free = kAllBytes;
  options.memory = [&] { return MemoryState{2 * kAllBytes, free}; };
  Node grown("w1", options);
  MustLoad(grown, Request());
  free = 0;
  MustLoad(grown, Request(0, 4));
}

}  // namespace
}  // namespace conclave

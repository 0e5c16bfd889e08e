// SPDX-License-Identifier: Apache-2.0
// A worker's end of a link: the sums that it sends are those of the frames it
// would have been sent, layer by layer; and what it refuses and survives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "common/limits.h"
#include "kernels/device_link.h"
#include "tests/gpu/device_values.h"
#include "tests/gpu/worker_world.h"
#include "tests/testing/group_world.h"
#include "tests/testing/simulated_clock.h"
#include "tests/unit/worker/assignments.h"
#include "worker/expert_store.h"
#include "worker/link_service.h"
#include "worker/shard_sums.h"

namespace conclave::worker {
namespace {

using kernels::DeviceBuffer;
using kernels::DeviceLink;
using kernels::LinkPart;
using ::testing::HasSubstr;

constexpr uint64_t kGeneration = 5;
constexpr int32_t kRowsMax = 100, kPerRow = 5;
// Computed at a time: large steps come in pieces.
constexpr int32_t kPairsMax = 160;
// Of a row; another row's sums would be off by 1.
constexpr double kBf16Row = 5e-2, kExactRow = 1e-5;

struct Rows {
  Rows(uint32_t seed, int32_t count, int32_t hidden, int32_t experts) {
    testing::Seeded random(seed);
    x = random.Floats(static_cast<size_t>(count) * hidden);
    for (float& value : x) value = FromBf16(ToBf16(value));
    for (int32_t r = 0; r < count; ++r) {
      std::vector<int32_t> row;
      while (row.size() + 1 < kPerRow) {
        const int32_t e = random.Int(experts);
        if (std::count(row.begin(), row.end(), e) == 0) row.push_back(e);
      }
      row.push_back(experts);  // the shared one
      expert.insert(expert.end(), row.begin(), row.end());
    }
    for (size_t i = 0; i < expert.size(); ++i) {
      weight.push_back(static_cast<float>(random.Real()));
    }
  }
  std::vector<float> x;
  std::vector<int32_t> expert;
  std::vector<float> weight;
};

// A worker with three shards of the embedded model, and rank 0 in the test.
class LinkedWorker : public ::testing::TestWithParam<testing::GroupCase> {
 protected:
  void SetUp() override {
    CONCLAVE_REQUIRE_GROUP(GetParam());
    tiny_ = *checkpoint::Checkpoint::Open(testing::kTinyModel);
    device_ =
        NewDevice(GetParam().device(1), ExpertDevice::kRowsMax, kPairsMax);
    ASSERT_NE(device_, nullptr);
    ExpertStore::Options options;
    options.device = device_.get();
    store_ = std::make_unique<ExpertStore>(options);
    host_store_ = std::make_unique<ExpertStore>(ExpertStore::Options());
    auto queue = kernels::DeviceQueue::Create(GetParam().device(0));
    ASSERT_TRUE(queue.ok()) << queue.status();
    queue_ = *std::move(queue);
    service_ = std::make_unique<LinkService>(
        LinkService::Options{.name = "w0",
                             .store = store_.get(),
                             .device = device_.get(),
                             .clock = clock()});
  }

  Clock* clock() { return GetParam().gpus ? RealClock() : &clock_; }
  const checkpoint::ModelConfig& config() const { return tiny_->config(); }

  // Whole experts, none, and halves of columns.
  void Assign(const std::string& activations) {
    const int32_t width = config().moe_intermediate_size;
    auto request = testing::MakeAssign(
        config(),
        kGeneration,
        {testing::MakeShard(config(), 1, 3, 9, 0, width),
         testing::MakeShard(config(), 2, 0, 2, 0, width / 2),
         testing::MakeShard(config(), 4, 1, 16, width / 2, width)});
    request.set_activations(activations);
    for (ExpertStore* store : {store_.get(), host_store_.get()}) {
      const absl::Status status = store->Assign(request, [](const auto&) {});
      ASSERT_TRUE(status.ok()) << status;
    }
  }

  v1::JoinRequest Request(const std::string& id) {
    v1::JoinRequest request;
    request.set_generation(kGeneration);
    request.set_link(++link_number_);
    request.set_id(id);
    request.set_rank(1);
    request.set_ranks(2);
    request.set_rows_max(kRowsMax);
    request.set_per_row(kPerRow);
    request.set_experts(config().num_experts);
    request.set_join_s(20);
    request.set_exchange_s(5);
    return request;
  }

  std::future<absl::Status> Call(const v1::JoinRequest& request) {
    auto told = std::make_shared<std::promise<absl::Status>>();
    service_->Join(
        request,
        {.send = [](const std::string&) {},
         .finish =
             [told](const absl::Status& status) { told->set_value(status); }});
    return told->get_future();
  }

  void Join() {
    link_ = nullptr;
    const auto id = DeviceLink::NewId();
    ASSERT_TRUE(id.ok()) << id.status();
    auto joined = Call(Request(*id));
    auto link = DeviceLink::Create(queue_.get(),
                                   {.id = *id,
                                    .rank = 0,
                                    .ranks = 2,
                                    .join_deadline = absl::Seconds(20),
                                    .deadline = absl::Seconds(5),
                                    .clock = clock()});
    const absl::Status status = joined.get();
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(link.ok()) << link.status();
    link_ = *std::move(link);
  }

  transport::StepFrame Frame(int32_t rows, bool record) {
    return {.tag = {.generation = kGeneration, .step = ++step_},
            .link = link_number_,
            .rows = rows,
            .record = record};
  }
  // Empty where the step was taken.
  std::string Refusal(const transport::StepFrame& step) {
    const Buffer answer = service_->Begin(transport::EncodeStep(step).bytes());
    const auto same = transport::DecodeStep(answer.bytes());
    if (same.ok()) {
      EXPECT_EQ(*same, step);
      return "";
    }
    const auto error = transport::DecodeError(answer.bytes());
    EXPECT_TRUE(error.ok()) << error.status();
    EXPECT_EQ(error->tag, step.tag);
    return error->message;
  }
  v1::HealthReply Health() {
    v1::HealthReply reply;
    service_->Describe(&reply);
    return reply;
  }

  // The sums of one layer, by shards.
  std::vector<std::vector<float>> Exchange(const Rows& rows, bool exact);
  // What a frame with those rows would have been answered.
  std::vector<float> FrameSums(int32_t shard, int32_t layer, const Rows& rows) {
    const auto assignment = store_->current();
    return Sums(device_.get(), *assignment, shard, layer, rows);
  }
  // The same in float32 on the CPU.
  std::vector<float> PlainSums(int32_t shard, int32_t layer, const Rows& rows) {
    Assignment assignment = *host_store_->current();
    assignment.activations = kernels::Activations::kF32;
    return Sums(&plain_, assignment, shard, layer, rows);
  }
  std::vector<float> Sums(ShardSums* sums,
                          const Assignment& assignment,
                          int32_t shard,
                          int32_t layer,
                          const Rows& rows);
  void Step(uint32_t seed, int32_t count, bool exact, bool record);

  std::unique_ptr<checkpoint::Checkpoint> tiny_;
  testing::SimulatedClock clock_;
  std::unique_ptr<ExpertDevice> device_;
  std::unique_ptr<ExpertStore> store_, host_store_;
  ThreadPool pool_{1};
  HostShardSums plain_{kernels::Backend::kCpuPlain, &pool_};
  std::unique_ptr<kernels::DeviceQueue> queue_;
  std::unique_ptr<LinkService> service_;
  std::unique_ptr<DeviceLink> link_;
  uint64_t link_number_ = 0, step_ = 0;
};

std::vector<std::vector<float>> LinkedWorker::Exchange(const Rows& rows,
                                                       bool exact) {
  std::vector<uint16_t> rounded(rows.x.size());
  std::transform(rows.x.begin(), rows.x.end(), rounded.begin(), ToBf16);
  const DeviceBuffer x =
      exact ? kernels::Up(*queue_, rows.x) : kernels::Up(*queue_, rounded);
  const DeviceBuffer expert = kernels::Up(*queue_, rows.expert);
  const DeviceBuffer weight = kernels::Up(*queue_, rows.weight);
  const LinkPart sends[] = {{1, x.as<void>(), rows.x.size() * (exact ? 4 : 2)},
                            {1, expert.as<void>(), rows.expert.size() * 4},
                            {1, weight.as<void>(), rows.weight.size() * 4}};
  std::vector<DeviceBuffer> rooms;
  std::vector<LinkPart> receives;
  for (int i = 0; i < 3; ++i) {
    rooms.push_back(kernels::Room(*queue_, rows.x.size() * 4));
    receives.push_back({1, rooms.back().as<void>(), rows.x.size() * 4});
  }
  EXPECT_TRUE(link_->Exchange(sends, {}).ok());
  EXPECT_TRUE(link_->Exchange({}, receives).ok());
  const absl::Status status = link_->Wait();
  EXPECT_TRUE(status.ok()) << status;
  if (!status.ok()) return {};
  std::vector<std::vector<float>> out;
  for (const DeviceBuffer& room : rooms) {
    out.push_back(kernels::Down(*queue_, room.as<float>(), rows.x.size()));
  }
  return out;
}

std::vector<float> LinkedWorker::Sums(ShardSums* sums,
                                      const Assignment& assignment,
                                      int32_t shard,
                                      int32_t layer,
                                      const Rows& rows) {
  const HeldShard& held = *assignment.held.at(ShardId{shard});
  const auto hidden = static_cast<size_t>(config().hidden_size);
  std::vector<int32_t> slice, row, all;
  std::vector<float> weight;
  int32_t number = 0;
  for (const Slice& s : held.weights.shard.slices) {
    if (Index(s.layer) != layer) continue;
    for (size_t i = 0; i < rows.expert.size(); ++i) {
      if (rows.expert[i] != Index(s.expert)) continue;
      slice.push_back(number);
      row.push_back(static_cast<int32_t>(i) / kPerRow);
      weight.push_back(rows.weight[i]);
    }
    ++number;
  }
  for (size_t r = 0; r < rows.x.size() / hidden; ++r) {
    all.push_back(static_cast<int32_t>(r));
  }
  std::vector<float> out(rows.x.size());
  if (slice.empty()) return out;  // no frame is sent for that
  const absl::Status status =
      sums->Sum({.shard = &held,
                 .layer = static_cast<size_t>(layer),
                 .hidden = static_cast<int32_t>(hidden),
                 .activations = assignment.activations,
                 .x = std::as_bytes(std::span(rows.x)),
                 .dtype = DType::kF32,
                 .rows = all,
                 .entries = {.slice = slice, .row = row, .weight = weight}},
                out);
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

void LinkedWorker::Step(uint32_t seed, int32_t count, bool exact, bool record) {
  SCOPED_TRACE(::testing::Message() << count << " rows, exact " << exact);
  ASSERT_EQ(Refusal(Frame(count, record)), "");
  constexpr int32_t kShards[] = {1, 2, 4};
  const auto hidden = static_cast<size_t>(config().hidden_size);
  for (int32_t layer = 0; layer < config().num_hidden_layers; ++layer) {
    const Rows rows(seed + static_cast<uint32_t>(layer),
                    count,
                    config().hidden_size,
                    config().num_experts);
    const auto got = Exchange(rows, exact);
    ASSERT_EQ(got.size(), 3u);
    for (size_t i = 0; i < got.size(); ++i) {
      const auto want = FrameSums(kShards[i], layer, rows);
      if (!GetParam().gpus) {
        ASSERT_EQ(got[i], want) << "layer " << layer << ", part " << i;
      }
      const auto plain = PlainSums(kShards[i], layer, rows);
      for (size_t at = 0; at < want.size(); at += hidden) {
        SCOPED_TRACE(::testing::Message() << "layer " << layer << ", part " << i
                                          << ", row " << at / hidden);
        const double bound = exact ? kExactRow : kBf16Row;
        EXPECT_LE(testing::RelativeError(&want[at], &plain[at], hidden), bound)
            << "of a frame";
        ASSERT_LE(testing::RelativeError(&got[i][at], &plain[at], hidden),
                  bound);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Forms,
    LinkedWorker,
    ::testing::Values(testing::GroupCase{.ranks = 2},
                      testing::GroupCase{
                          .gpus = true,
                          .ranks = 2,
                          .exchange = kernels::GroupExchange::kNccl}),
    [](const auto& info) { return info.param.Name(); });

TEST_P(LinkedWorker, SendsTheSumsOfFrames) {
  for (const bool exact : {true, false}) {
    Assign(exact ? "f32" : "int8");
    ASSERT_NO_FATAL_FAILURE(Join());
    Step(10, 1, exact, false);
    Step(20, kRowsMax, exact, false);
    for (uint32_t turn = 0; turn < 3; ++turn) {
      Step(30 + 10 * turn, 8, exact, true);
      Step(80 + 10 * turn, 3, exact, true);
    }
    EXPECT_EQ(Health().link_error(), "");
    EXPECT_EQ(Health().link_step(), step_);
  }
}

TEST_P(LinkedWorker, RefusesWhatIsNotItsLink) {
  Assign("f32");
  EXPECT_THAT(Refusal(Frame(1, false)), HasSubstr("link 0 is not joined"));
  v1::JoinRequest stale = Request("any");
  stale.set_generation(kGeneration - 1);
  const absl::Status refused = Call(stale).get();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("experts of generation 5, the coordinator is of "
                        "generation 4"));
  v1::JoinRequest huge = Request("any");
  huge.set_rows_max(limits::kLinkRowsMax + 1);
  EXPECT_EQ(Call(huge).get().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_NO_FATAL_FAILURE(Join());
  transport::StepFrame step = Frame(1, false);
  step.tag.generation = kGeneration + 1;
  EXPECT_THAT(Refusal(step), HasSubstr("worker w0: the link is of generation"));
  step = Frame(1, false);
  --step.link;
  EXPECT_THAT(Refusal(step), HasSubstr("is not joined"));
  EXPECT_THAT(Refusal(Frame(kRowsMax + 1, false)), HasSubstr("rows 101"));
  Step(10, 2, true, false);
}

// The coordinator begins a step and is heard of no more.
TEST_P(LinkedWorker, AVanishedCoordinatorIsNotWaitedFor) {
  Assign("f32");
  ASSERT_NO_FATAL_FAILURE(Join());
  ASSERT_EQ(Refusal(Frame(2, false)), "");
  Exchange(Rows(1, 2, config().hidden_size, config().num_experts), true);
  while (Health().link_error().empty()) clock_.Advance(absl::Milliseconds(100));
  EXPECT_THAT(Health().link_error(), HasSubstr("waiting for rows of layer 1"));
  EXPECT_EQ(Health().link_layers(), 1);
  EXPECT_THAT(Refusal(Frame(2, false)), HasSubstr("waiting for rows"));
  ASSERT_NO_FATAL_FAILURE(Join());
  Step(10, 2, true, true);
}

TEST_P(LinkedWorker, ANewJoinOrAssignmentEndsAStepAtOnce) {
  Assign("f32");
  ASSERT_NO_FATAL_FAILURE(Join());
  ASSERT_EQ(Refusal(Frame(2, false)), "");
  ASSERT_NO_FATAL_FAILURE(Join());
  ASSERT_EQ(Refusal(Frame(2, false)), "");
  service_->Leave();
  EXPECT_THAT(Refusal(Frame(2, false)), HasSubstr("is not joined"));
  Assign("f32");
  ASSERT_NO_FATAL_FAILURE(Join());
  Step(10, 2, true, true);
}

TEST(LinkedWorkerOnTheCpu, JoinsNothing) {
  ExpertStore store({});
  LinkService service({.name = "w0", .store = &store, .clock = RealClock()});
  std::promise<absl::Status> told;
  service.Join(
      v1::JoinRequest(),
      {.send = [](const std::string&) {},
       .finish = [&](const absl::Status& status) { told.set_value(status); }});
  EXPECT_THAT(std::string(told.get_future().get().message()),
              HasSubstr("start it with --backend cuda"));
}

}  // namespace
}  // namespace conclave::worker

// SPDX-License-Identifier: Apache-2.0
#include "worker/control_service.h"

#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/transport/channel.h"
#include "common/version.h"
#include "conclave/v1/control.grpc.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/worker/assignments.h"
#include "worker/worker.h"

namespace conclave::worker {
namespace {

using ::testing::HasSubstr;

class ControlServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto worker = Worker::Start({.name = "w0",
                                 .address = "127.0.0.1:0",
                                 .model = "",
                                 .hint = "",
                                 .threads = 1,
                                 .spin_us = 0,
                                 .tls = {},
                                 .progress = nullptr,
                                 .cache = "",
                                 .cache_bytes = 0});
    ASSERT_TRUE(worker.ok()) << worker.status();
    worker_ = *std::move(worker);
    stub_ = v1::WorkerControl::NewStub(
        transport::Dial(absl::StrCat("127.0.0.1:", worker_->port()),
                        {},
                        transport::Traffic::kControl));
    config_ = (*checkpoint::Checkpoint::Open(testing::kTinyModel))->config();
    experts_ = config_.num_experts;
    width_ = config_.moe_intermediate_size;
  }

  grpc::Status Assign(const v1::AssignRequest& request,
                      v1::LoadProgress* last) {
    grpc::ClientContext context;
    auto reader = stub_->Assign(&context, request);
    v1::LoadProgress progress;
    while (reader->Read(&progress)) {
      EXPECT_GE(progress.bytes_done(), last->bytes_done());
      EXPECT_LE(progress.bytes_done(), progress.bytes_total());
      *last = progress;
    }
    return reader->Finish();
  }

  v1::HealthReply Health(uint64_t generation) {
    grpc::ClientContext context;
    v1::HealthRequest request;
    request.set_generation(generation);
    v1::HealthReply reply;
    EXPECT_TRUE(stub_->Health(&context, request, &reply).ok());
    return reply;
  }

  std::string Refusal(const v1::AssignRequest& request) {
    v1::LoadProgress last;
    const grpc::Status status = Assign(request, &last);
    EXPECT_FALSE(status.ok());
    EXPECT_FALSE(last.done());
    return status.error_message();
  }

  std::unique_ptr<Worker> worker_;
  std::unique_ptr<v1::WorkerControl::Stub> stub_;
  checkpoint::ModelConfig config_;
  int32_t experts_ = 0, width_ = 0;
};

TEST_F(ControlServiceTest, RegisterChecksVersionAndName) {
  v1::RegisterRequest request;
  request.set_protocol_version(kProtocolVersion);
  request.set_worker_name("w0");
  v1::RegisterReply reply;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Register(&context, request, &reply).ok());
  }
  EXPECT_EQ(reply.protocol_version(), kProtocolVersion);
  EXPECT_EQ(reply.worker_name(), "w0");
  EXPECT_EQ(reply.threads(), 1);
  request.set_worker_name("w1");
  {
    grpc::ClientContext context;
    const auto status = stub_->Register(&context, request, &reply);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_THAT(status.error_message(), HasSubstr("this is worker w0"));
  }
  request.set_worker_name("w0");
  request.set_protocol_version(kProtocolVersion + 1);
  {
    grpc::ClientContext context;
    const auto status = stub_->Register(&context, request, &reply);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_THAT(status.error_message(), HasSubstr("same version"));
  }
}

TEST_F(ControlServiceTest, AssignLoadsOnceAndHealthTellsIt) {
  EXPECT_FALSE(Health(5).ready());
  const auto shard = testing::MakeShard(config_, 0, 0, 4, 0, width_);
  v1::LoadProgress last;
  ASSERT_TRUE(Assign(testing::MakeAssign(config_, 5, {shard}), &last).ok());
  EXPECT_TRUE(last.done());
  const uint64_t bytes = uint64_t{3} * 4 * width_ * config_.hidden_size * 2 *
                         config_.num_hidden_layers;
  EXPECT_EQ(last.bytes_done(), bytes);
  EXPECT_EQ(last.bytes_total(), bytes);
  v1::HealthReply health = Health(5);
  EXPECT_TRUE(health.ready());
  EXPECT_EQ(health.generation(), 5u);
  EXPECT_EQ(health.resident_bytes(), bytes);
  EXPECT_FALSE(Health(4).ready());
  // A new coordinator with the same wishes: nothing is loaded.
  v1::LoadProgress again;
  ASSERT_TRUE(Assign(testing::MakeAssign(config_, 6, {shard}), &again).ok());
  EXPECT_TRUE(again.done());
  EXPECT_EQ(again.bytes_done(), 0u);
  EXPECT_TRUE(Health(6).ready());
  EXPECT_FALSE(Health(5).ready());
  // One shard more, then the first one no longer.
  const auto more = testing::MakeShard(config_, 2, 4, 5, 0, width_ / 2);
  v1::LoadProgress grown;
  ASSERT_TRUE(
      Assign(testing::MakeAssign(config_, 6, {shard, more}), &grown).ok());
  EXPECT_EQ(grown.bytes_done(), bytes / 8);
  ASSERT_TRUE(Assign(testing::MakeAssign(config_, 6, {more}), &again).ok());
  EXPECT_EQ(Health(6).resident_bytes(), bytes / 8);
}

TEST_F(ControlServiceTest, AssignRefusesByName) {
  const auto shard = testing::MakeShard(config_, 0, 0, 4, 0, width_);
  auto request = testing::MakeAssign(config_, 5, {shard});
  request.set_config_hash("something else");
  EXPECT_THAT(Refusal(request), HasSubstr("config.json"));

  request = testing::MakeAssign(config_, 5, {shard});
  request.set_model("no/such/folder");
  EXPECT_THAT(Refusal(request), HasSubstr("no/such/folder"));

  request = testing::MakeAssign(config_, 5, {shard});
  request.mutable_shards(0)->mutable_slices(0)->set_layer(
      config_.num_hidden_layers);
  EXPECT_THAT(Refusal(request), HasSubstr("layer"));

  request = testing::MakeAssign(config_, 5, {shard});
  request.mutable_shards(0)->mutable_slices(3)->set_expert(experts_);
  EXPECT_THAT(Refusal(request), HasSubstr("expert"));

  request = testing::MakeAssign(config_, 5, {shard});
  request.mutable_shards(0)->mutable_slices(0)->set_end(width_ + 16);
  EXPECT_THAT(Refusal(request), HasSubstr("not part of the model"));

  request = testing::MakeAssign(config_, 5, {shard, shard});
  EXPECT_THAT(Refusal(request), HasSubstr("shard 0 after 0"));

  EXPECT_FALSE(Health(5).ready());
}

TEST_F(ControlServiceTest, HealthTellsTimeAndMemory) {
  const absl::Time before = RealClock()->Now();
  const v1::HealthReply health = Health(0);
  EXPECT_GE(absl::FromUnixNanos(health.unix_nanos()), before);
  EXPECT_LE(absl::FromUnixNanos(health.unix_nanos()), RealClock()->Now());
  EXPECT_GT(health.memory_free_bytes(), 0u);
  EXPECT_LE(health.memory_free_bytes(), health.memory_total_bytes());
}

TEST_F(ControlServiceTest, MeasuresOnceAtATime) {
  v1::MeasureRequest request;
  request.set_hidden(64);
  request.set_width(32);
  request.set_top_k(2);
  for (const auto& [weights, activations] : {std::pair("bf16", ""),
                                             {"fp8", "f32"},
                                             {"gptq-int4", "int8"},
                                             {"mlx4", "f32"},
                                             {"mlx4", "int8"}}) {
    request.set_weights(weights);
    request.set_activations(activations);
    grpc::CompletionQueue queue;
    grpc::ClientContext contexts[2];
    v1::MeasureReply replies[2];
    grpc::Status statuses[2];
    std::unique_ptr<grpc::ClientAsyncResponseReader<v1::MeasureReply>> calls[2];
    for (size_t i = 0; i < 2; ++i) {
      calls[i] = stub_->AsyncMeasure(&contexts[i], request, &queue);
      calls[i]->Finish(&replies[i], &statuses[i], nullptr);
    }
    EXPECT_FALSE(Health(1).ready());  // answers meanwhile
    void* tag = nullptr;
    bool ok = false;
    for (size_t i = 0; i < 2; ++i) ASSERT_TRUE(queue.Next(&tag, &ok));
    const size_t one = statuses[0].ok() ? 0 : 1;
    ASSERT_TRUE(statuses[one].ok()) << statuses[one].error_message();
    EXPECT_EQ(statuses[1 - one].error_code(),
              grpc::StatusCode::RESOURCE_EXHAUSTED);
    const v1::MeasureReply& reply = replies[one];
    EXPECT_GT(reply.memory_bytes_per_s(), 0);
    EXPECT_GT(reply.expert_bytes_per_s(), 0);
    EXPECT_GE(reply.expert_call_s(), 0);
    EXPECT_GE(reply.expert_row_share(), 0);
  }
}

TEST_F(ControlServiceTest, MeasureRefusesSizesThatNoModelHas) {
  const auto refusal = [&](const v1::MeasureRequest& request) {
    grpc::ClientContext context;
    v1::MeasureReply reply;
    return stub_->Measure(&context, request, &reply).error_message();
  };
  v1::MeasureRequest request;
  request.set_hidden(1 << 30);
  request.set_width(32);
  request.set_top_k(2);
  EXPECT_THAT(refusal(request), HasSubstr("hidden"));
  request.set_hidden(64);
  request.set_weights("int3");
  EXPECT_THAT(refusal(request), HasSubstr("int3"));
  request.set_weights("mlx7");
  EXPECT_THAT(refusal(request), HasSubstr("mlx7"));
  request.set_weights("mlx4");
  request.set_activations("int4");
  EXPECT_THAT(refusal(request), HasSubstr("int4"));
  for (const double bad : {-1.0, 1e9, std::nan("")}) {
    request.set_begin_after_s(bad);
    EXPECT_THAT(refusal(request), HasSubstr("begin_after_s"));
  }
}

TEST_F(ControlServiceTest, PortInUseIsNamed) {
  const std::string address = absl::StrCat("127.0.0.1:", worker_->port());
  const auto second = Worker::Start({.name = "w1",
                                     .address = address,
                                     .model = "",
                                     .hint = "",
                                     .threads = 1,
                                     .spin_us = 0,
                                     .tls = {},
                                     .progress = nullptr,
                                     .cache = "",
                                     .cache_bytes = 0});
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(address));
}

}  // namespace
}  // namespace conclave::worker

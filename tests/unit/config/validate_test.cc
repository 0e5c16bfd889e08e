// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/config/cluster_config.h"

namespace conclave::config {
namespace {

using ::testing::HasSubstr;

constexpr char kWorkers[] =
    "workers: [{name: a, address: 'h:1'}, {name: b, address: 'h:2'}]\n";

TEST(Validate, EachRuleNamesItsField) {
  const struct {
    const char* yaml;
    const char* error;
  } kCases[] = {
      {"coordinator: {listen: here}", "coordinator.listen: 'here'"},
      {"coordinator: {threads: -1}", "coordinator.threads: must be in [0, "},
      {"coordinator: {backend: gpu}",
       "coordinator.backend: must be 'auto' or 'cuda' or 'cpu' or "
       "'cpu-plain', is 'gpu'"},
      {"coordinator: {gpu: -1}", "coordinator.gpu: must be in [0, "},
      {"coordinator: {kv_dtype: f16}", "kv_dtype: must be 'bf16' or 'fp8'"},
      {"coordinator: {gdn_state: fp8}", "gdn_state: must be 'f32' or 'bf16'"},
      {"workers: [{name: a, address: \"h:1\", link_gb_per_s: -1}]",
       "workers[0].link_round_trip_us and link_gb_per_s: must not be"},
      {"exchange: {rows: fp8}", "exchange.rows: must be 'f32' or 'bf16'"},
      {"exchange: {replies: x}", "exchange.replies: must be 'f32' or 'bf16'"},
      {"coordinator: {spin_us: -2}", "coordinator.spin_us: must be in [-1, "},
      {"coordinator: {api_key: a, api_key_file: b}",
       "coordinator.api_key_file: stands beside api_key"},
      {"coordinator: {api_key: a b}", "coordinator.api_key: must be printable"},
      {"workers: [{address: 'h:1'}]", "workers[0].name: must have 1 to 64"},
      {"workers: [{name: a/b, address: 'h:1'}]", "workers[0].name: must have"},
      {"workers: [{name: coordinator, address: 'h:1'}]", "is taken"},
      {"workers: [{name: a}]", "workers[0].address: "},
      {"workers: [{name: a, address: 'h:0'}]",
       "workers[0].address: the port must not be 0"},
      {"workers: [{name: a, address: 'h:1', share: 0}]", "workers[0].share: "},
      {"workers: [{name: a, address: 'h:1', share: -1}]", "workers[0].share: "},
      {"workers: [{name: a, address: 'h:1'}, {name: a, address: 'h:2'}]",
       "workers[1].name: 'a' is the name of workers[0] too"},
      {"workers: [{name: a, address: 'h:1'}, {name: b, address: 'h:1'}]",
       "workers[1].address: h:1 is the address of workers[0] too"},
      {"placement: {split: rows}",
       "placement.split: must be 'experts' or 'columns', is 'rows'"},
      {"placement: {shards: 5000}", "placement.shards: must be in [0, 4096]"},
      {"placement: {coordinator_share: -1}", "placement.coordinator_share: "},
      {"placement: {explicit: [{holder: c, slices: [{}]}]}",
       "placement.explicit[0].holder: 'c' is no holder; known are a, b, "
       "coordinator"},
      {"placement: {explicit: [{holder: b}]}",
       "placement.explicit[0].slices: is empty"},
      {"placement: {explicit: [{holder: b, slices: [{expert_begin: 4, "
       "expert_end: 4}]}]}",
       "placement.explicit[0].slices[0].expert_begin, expert_end: [4, 4)"},
      {"deadlines: {connect_s: 0}", "deadlines.connect_s: must be above 0"},
      {"deadlines: {load_progress_s: -1}", "deadlines.load_progress_s: "},
      {"deadlines: {exchange_s: 1e9}", "deadlines.exchange_s: "},
      {"deadlines: {http_idle_s: 0}", "deadlines.http_idle_s: "},
      {"deadlines: {shutdown_s: 0}", "deadlines.shutdown_s: "},
      {"tls: {ca: a, cert: b}", "tls.key: is missing"},
      {"tls: {key: a}", "tls.ca: is missing"},
      {"on_expert_loss: ignore",
       "on_expert_loss: must be 'error', is 'ignore'"},
      {"limits: {max_sequences: 0}", "limits.max_sequences: must be in [1, "},
      {"limits: {max_queue: -1}", "limits.max_queue: "},
      {"limits: {max_context: -1}", "limits.max_context: "},
      {"limits: {step_tokens: 8}", "limits.step_tokens: must be in [64, 7168]"},
      {"limits: {kv_tokens: -1}", "limits.kv_tokens: "},
      {"limits: {max_body_bytes: 10}", "limits.max_body_bytes: "},
  };
  for (const auto& c : kCases) {
    std::string yaml = c.yaml;
    if (yaml.find("workers") == yaml.npos) yaml = kWorkers + yaml;
    const absl::Status status = ParseClusterConfig(yaml, "c.yaml").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << yaml;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.error)) << yaml;
    EXPECT_THAT(std::string(status.message()), HasSubstr("c.yaml: ")) << yaml;
  }
}

TEST(Validate, GroupsOfGpusNameTheirFields) {
  const struct {
    const char* yaml;
    const char* error;
  } kCases[] = {
      {"coordinator: {gpus: [0, 0]}", "coordinator.gpus: names one GPU twice"},
      {"coordinator: {gpus: [-1]}", "coordinator.gpus: must be in [0, "},
      {"coordinator: {gpus: [0, 1, 2, 3, 4, 5, 6, 7, 8]}",
       "number of coordinator.gpus: must be in [0, 8]"},
      {"coordinator: {group_form: both}",
       "group_form: must be 'symmetric' or 'lone'"},
      {"exchange: {over: nccl}",
       "exchange.over: is nccl, but the file has no workers"},
      {"exchange: {over: ib}", "exchange.over: must be 'grpc' or 'nccl'"},
      {"coordinator: {group_exchange: mpi}",
       "group_exchange: must be 'peer' or 'nccl'"},
      {"coordinator: {gpus: [0, 1], group_shares: [2, 1, 1]}",
       "coordinator.group_shares: must have one for each of coordinator.gpus, "
       "2, has 3"},
      {"coordinator: {group_shares: [2, 1]}",
       "one for each of coordinator.gpus, 0, has 2"},
      {"coordinator: {gpus: [0, 1], group_shares: [2, 0]}",
       "coordinator.group_shares: must be in [1, 1000]"},
  };
  for (const auto& [yaml, error] : kCases) {
    const auto config = ParseClusterConfig(yaml, "cluster.yaml");
    const std::string message(config.status().message());
    EXPECT_NE(message.find(error), std::string::npos) << yaml << message;
  }
}

TEST(Validate, MicroBatchesAreFew) {
  v1::ClusterConfig config = DefaultClusterConfig();
  for (const int32_t count : {0, 1, 2}) {
    config.mutable_exchange()->set_micro_batches(count);
    EXPECT_TRUE(Validate(config).ok()) << Validate(config);
  }
  for (const int32_t count : {-1, 3}) {
    config.mutable_exchange()->set_micro_batches(count);
    EXPECT_THAT(std::string(Validate(config).message()),
                HasSubstr("exchange.micro_batches: must be in [0, 2]"));
  }
}

TEST(Validate, NumberOfWorkersIsBounded) {
  v1::ClusterConfig config = DefaultClusterConfig();
  for (int i = 0; i < 257; ++i) {
    v1::Worker& worker = *config.add_workers();
    worker.set_name("w" + std::to_string(i));
    worker.set_address("h:" + std::to_string(i + 1));
    worker.set_share(1);
  }
  EXPECT_THAT(std::string(Validate(config).message()),
              HasSubstr("number of workers: must be in [0, 256], is 257"));
  config.mutable_workers()->RemoveLast();
  EXPECT_TRUE(Validate(config).ok()) << Validate(config);
}

}  // namespace
}  // namespace conclave::config

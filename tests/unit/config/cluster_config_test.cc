// SPDX-License-Identifier: Apache-2.0
#include "common/config/cluster_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "common/config/yaml_reader.h"
#include "tests/testing/temp_folder.h"

namespace conclave::config {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(std::string_view yaml) {
  const auto config = ParseClusterConfig(yaml, "cluster.yaml");
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << yaml;
  return std::string(config.status().message());
}

v1::ClusterConfig Parsed(std::string_view yaml,
                         const std::string& file = "cluster.yaml") {
  auto config = ParseClusterConfig(yaml, file);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : v1::ClusterConfig();
}

TEST(ClusterConfig, LeftOutFieldsTakeTheDefaultsOfTheSchema) {
  const v1::ClusterConfig c = Parsed(
      "model: /m\nworkers: [{name: a, address: "
      "'127.0.0.1:7101'}]\ntls:\n");
  EXPECT_EQ(c.coordinator().listen(), "127.0.0.1:8080");
  EXPECT_EQ(c.coordinator().spin_us(), 50);
  EXPECT_EQ(c.exchange().rows(), "f32");
  EXPECT_EQ(c.exchange().replies(), "f32");
  EXPECT_EQ(c.exchange().micro_batches(), 0);
  EXPECT_EQ(c.exchange().over(), "grpc");
  EXPECT_EQ(c.coordinator().threads(), 0);
  EXPECT_EQ(c.coordinator().served_model_name(), "m");
  EXPECT_FALSE(c.coordinator().soft_switches_off());
  ASSERT_EQ(c.workers_size(), 1);
  EXPECT_EQ(c.workers(0).share(), 1);
  EXPECT_EQ(c.workers(0).spin_us(), 50);
  EXPECT_EQ(c.workers(0).model(), "");
  EXPECT_EQ(c.placement().split(), "experts");
  EXPECT_EQ(c.placement().shards(), 0);
  EXPECT_EQ(c.placement().coordinator_share(), 0);
  EXPECT_EQ(c.deadlines().connect_s(), 5);
  EXPECT_EQ(c.deadlines().load_progress_s(), 30);
  EXPECT_EQ(c.deadlines().exchange_s(), 5);
  EXPECT_EQ(c.deadlines().http_idle_s(), 60);
  EXPECT_EQ(c.deadlines().shutdown_s(), 10);
  EXPECT_FALSE(c.insecure());
  EXPECT_EQ(c.on_expert_loss(), "error");
  EXPECT_EQ(c.limits().max_sequences(), 16);
  EXPECT_EQ(c.limits().max_queue(), 64);
  EXPECT_EQ(c.limits().step_tokens(), 0);  // by what computes
  EXPECT_EQ(c.coordinator().backend(), "auto");
  EXPECT_EQ(c.coordinator().gpu(), 0);
  EXPECT_EQ(c.coordinator().kv_dtype(), "bf16");
  EXPECT_EQ(c.coordinator().gdn_state(), "f32");
  EXPECT_EQ(c.limits().max_body_bytes(), 8 << 20);
  EXPECT_TRUE(Validate(DefaultClusterConfig()).ok());
}

TEST(ClusterConfig, GivenFieldsWinOverDefaults) {
  const v1::ClusterConfig c = Parsed(R"(
model: models/big/
coordinator: {listen: "[::1]:9000", spin_us: 0, soft_switches_off: true}
workers:
  - {name: a, address: "127.0.0.1:1", share: 2.5, model: other, spin_us: -1}
placement:
  split: columns
  explicit:
    - holder: a
      slices: [{layer_begin: 1, layer_end: 3}, {column_end: 16}]
deadlines: {exchange_s: 0.5}
limits: {kv_tokens: 10000000000}
)",
                                     "/etc/conclave/cluster.yaml");
  EXPECT_EQ(c.model(), "/etc/conclave/models/big/");
  EXPECT_EQ(c.coordinator().served_model_name(), "big");
  EXPECT_EQ(c.coordinator().listen(), "[::1]:9000");
  EXPECT_EQ(c.coordinator().spin_us(), 0);
  EXPECT_TRUE(c.coordinator().soft_switches_off());
  EXPECT_EQ(c.workers(0).share(), 2.5);
  EXPECT_EQ(c.workers(0).spin_us(), -1);
  EXPECT_EQ(c.workers(0).model(), "/etc/conclave/other");
  EXPECT_EQ(c.placement().split(), "columns");
  ASSERT_EQ(c.placement().explicit__size(), 1);
  ASSERT_EQ(c.placement().explicit_(0).slices_size(), 2);
  EXPECT_EQ(c.placement().explicit_(0).slices(0).layer_end(), 3);
  EXPECT_EQ(c.placement().explicit_(0).slices(1).column_end(), 16);
  EXPECT_EQ(c.deadlines().exchange_s(), 0.5);
  EXPECT_EQ(c.deadlines().connect_s(), 5);
  EXPECT_EQ(c.limits().kv_tokens(), 10'000'000'000);
}

TEST(ClusterConfig, ListsOfNumbersAreRead) {
  const v1::ClusterConfig c =
      Parsed("coordinator: {gpus: [3, 1], group_shares: [2, 3]}");
  ASSERT_EQ(c.coordinator().gpus_size(), 2);
  EXPECT_EQ(c.coordinator().gpus(0), 3);
  EXPECT_EQ(c.coordinator().gpus(1), 1);
  ASSERT_EQ(c.coordinator().group_shares_size(), 2);
  EXPECT_EQ(c.coordinator().group_shares(1), 3);
  EXPECT_EQ(c.coordinator().group_form(), "symmetric");
  EXPECT_EQ(c.coordinator().group_exchange(), "peer");
}

TEST(ClusterConfig, PathsAreRelativeToTheFile) {
  const v1::ClusterConfig c = Parsed(
      "model: ../m\ntls: {ca: ca.pem, cert: /c.pem, key: k/k.pem}\n"
      "coordinator: {api_key_file: key}",
      "a/b/cluster.yaml");
  EXPECT_EQ(c.model(), "a/m");
  EXPECT_EQ(c.tls().ca(), "a/b/ca.pem");
  EXPECT_EQ(c.tls().cert(), "/c.pem");
  EXPECT_EQ(c.tls().key(), "a/b/k/k.pem");
  EXPECT_EQ(c.coordinator().api_key_file(), "a/b/key");
}

TEST(ClusterConfig, UnknownKeyNamesLineAndTheLikelyKey) {
  EXPECT_EQ(ErrorOf("model: m\nworkers:\n  - name: a\n    adress: b\n"),
            "cluster.yaml:4: unknown key 'adress' in workers[0]; did you mean "
            "'address'?");
  EXPECT_THAT(ErrorOf("modle: m\n"),
              HasSubstr("cluster.yaml:1: unknown key 'modle' at the top level; "
                        "did you mean 'model'?"));
  EXPECT_THAT(ErrorOf("tls:\n  zzzzzzzz: 1\n"),
              HasSubstr("cluster.yaml:2: unknown key 'zzzzzzzz' in tls; known "
                        "are ca, cert, key"));
  EXPECT_THAT(ErrorOf("placement: {explicit: [{holder: coordinator, slices: "
                      "[{layer_beginn: 1}]}]}"),
              HasSubstr("in placement.explicit[0].slices[0]; did you mean "
                        "'layer_begin'?"));
}

TEST(ClusterConfig, RepeatedKeyIsAnError) {
  EXPECT_THAT(ErrorOf("model: a\ncoordinator:\n  threads: 1\n  threads: 2\n"),
              HasSubstr("cluster.yaml:4: key 'threads' in coordinator stands "
                        "there twice"));
  EXPECT_THAT(ErrorOf("model: a\nmodel: b\n"),
              HasSubstr("cluster.yaml:2: key 'model' at the top level"));
}

TEST(ClusterConfig, WrongTypesNameLineFieldAndWhatWasWanted) {
  const struct {
    const char* yaml;
    const char* error;
  } kCases[] = {
      {"coordinator:\n  threads: many\n",
       "cluster.yaml:2: coordinator.threads must be a whole number of 32 bits, "
       "is 'many'"},
      {"coordinator: {threads: 1.5}", "must be a whole number"},
      {"coordinator: {threads: 99999999999}", "must be a whole number"},
      {"coordinator: {threads: '4'}", "must be a whole number"},
      {"coordinator: {threads: }", "is nothing"},
      {"coordinator: {threads: [1]}", "is a list"},
      {"limits: {kv_tokens: x}", "limits.kv_tokens must be a whole number"},
      {"insecure: yes", "insecure must be true or false, is 'yes'"},
      {"deadlines: {exchange_s: fast}",
       "deadlines.exchange_s must be a number"},
      {"deadlines: {exchange_s: .nan}",
       "deadlines.exchange_s must be a number"},
      {"model: [a]", "model must be text, is a list"},
      {"model: {a: b}", "model must be text, is a group of keys"},
      {"model: \"a\\0b\"", "model must be text without control characters"},
      {"workers: a", "workers must be a list, is 'a'"},
      {"workers: [a]", "workers[0] must be a group of keys, is 'a'"},
      {"coordinator: 3", "coordinator must be a group of keys, is '3'"},
      {"- a", "the file must be a group of keys, is a list"},
      {"? [a]\n: b", "a key at the top level must be a word"},
      {"a: b\n---\nc: d", "more than one YAML document"},
  };
  for (const auto& c : kCases) {
    EXPECT_THAT(ErrorOf(c.yaml), HasSubstr(c.error)) << c.yaml;
  }
}

TEST(ClusterConfig, BrokenYamlNamesTheLine) {
  EXPECT_THAT(ErrorOf("model: a\nworkers: [\n"),
              HasSubstr("cluster.yaml:3: broken YAML: "));
  EXPECT_THAT(ErrorOf("model: *nowhere\n"),
              HasSubstr("cluster.yaml:1: broken YAML: "));
  EXPECT_THAT(ErrorOf(std::string(100'000, '[')), HasSubstr("broken YAML"));
  EXPECT_THAT(ErrorOf(std::string(5 << 20, ' ')), HasSubstr("larger than"));
}

// yaml-cpp sees an endless row of empty documents here (found by fuzzing).
TEST(ClusterConfig, StrayCommasEnd) {
  EXPECT_THAT(ErrorOf(",,"), HasSubstr("cluster.yaml: holds more than one"));
  EXPECT_FALSE(ParseClusterConfig("model: a\n,\n", "c").ok());
}

TEST(ClusterConfig, AliasesDoNotMultiplyWithoutBound) {
  std::string yaml = "placement:\n  explicit:\n  - &s\n    holder: coordinator";
  yaml += "\n    slices:\n";
  for (int i = 0; i < 1000; ++i) yaml += "    - {layer_end: 1}\n";
  for (int i = 0; i < 1000; ++i) yaml += "  - *s\n";
  EXPECT_THAT(ErrorOf(yaml), HasSubstr("more than 100000 list items"));
}

TEST(ClusterConfig, EmptyFileIsTheDefault) {
  EXPECT_EQ(Parsed("").SerializeAsString(),
            DefaultClusterConfig().SerializeAsString());
  EXPECT_EQ(Parsed("# only a comment\n").SerializeAsString(),
            DefaultClusterConfig().SerializeAsString());
}

TEST(ClusterConfig, DidYouMeanKnowsWhenNothingIsNear) {
  EXPECT_EQ(DidYouMean("thread", {"name", "threads"}), "threads");
  EXPECT_EQ(DidYouMean("xyz", {"name", "threads"}), "");
  EXPECT_EQ(DidYouMean(std::string(1000, 'a'), {"name"}), "");
}

TEST(ClusterConfig, FindWorkerListsTheNames) {
  const v1::ClusterConfig c =
      Parsed("workers: [{name: a, address: 'h:1'}, {name: b, address: 'h:2'}]");
  EXPECT_EQ(FindWorker(c, "b")->address(), "h:2");
  const absl::Status none = FindWorker(c, "x").status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(std::string(none.message()), "no worker 'x'; known are a, b");
}

class KeyFile : public ::testing::Test {
 protected:
  void SetUp() override {
    Write("cluster.yaml", "coordinator: {api_key_file: key}\n");
  }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
  }
  std::string Path() const { return (folder_ / "cluster.yaml").string(); }

  testing::TempFolder temp_;
  const std::filesystem::path& folder_ = temp_.path();
};

TEST_F(KeyFile, IsReadWithoutItsLineEnd) {
  Write("key", "s3cret\n");
  const auto config = LoadClusterConfig(Path());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->coordinator().api_key(), "s3cret");
  EXPECT_TRUE(CheckHttpBind(*config).ok());
}

TEST_F(KeyFile, MissingStopsTheCoordinatorAlone) {
  const auto config = LoadClusterConfig(Path());
  ASSERT_TRUE(config.ok()) << config.status();
  const absl::Status bind = CheckHttpBind(*config);
  EXPECT_EQ(bind.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(bind.message()), HasSubstr("api_key_file"));
}

TEST_F(KeyFile, BadContentIsAnError) {
  for (const char* content : {"", "\n", "two words\n", "a\nb\n"}) {
    Write("key", content);
    EXPECT_FALSE(LoadClusterConfig(Path()).ok()) << content;
  }
  Write("key", std::string(10'000, 'k'));
  EXPECT_FALSE(LoadClusterConfig(Path()).ok());
}

TEST(ClusterConfig, MissingFileIsNamed) {
  const absl::Status none = LoadClusterConfig("no/such.yaml").status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(none.message()), HasSubstr("no/such.yaml"));
}

}  // namespace
}  // namespace conclave::config

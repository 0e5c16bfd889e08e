// SPDX-License-Identifier: Apache-2.0
#include "common/config/cluster_config.h"

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/config/read_file.h"
#include "common/config/yaml_reader.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::config {
namespace {

namespace fs = std::filesystem;
using google::protobuf::Message;

constexpr int32_t kSpinUsDefault = 50;
constexpr int32_t kStreamsDefault = 4;
constexpr size_t kKeyFileBytesMax = 4096;

// The defaults that proto/conclave/v1/config.proto states, message by message.
// They stand before the file is read, so that an explicit 0 stays a 0.
void SetDefaults(Message& message) {
  const auto* type = message.GetDescriptor();
  if (type == v1::Coordinator::descriptor()) {
    auto& coordinator = static_cast<v1::Coordinator&>(message);
    coordinator.set_listen("127.0.0.1:8080");
    coordinator.set_spin_us(kSpinUsDefault);
    coordinator.set_activations("int8");
    coordinator.set_backend("auto");
    coordinator.set_kv_dtype("bf16");
    coordinator.set_gdn_state("f32");
    coordinator.set_group_form("symmetric");
    coordinator.set_group_exchange("peer");
  } else if (type == v1::Worker::descriptor()) {
    auto& worker = static_cast<v1::Worker&>(message);
    worker.set_share(1);
    worker.set_spin_us(kSpinUsDefault);
  } else if (type == v1::Placement::descriptor()) {
    static_cast<v1::Placement&>(message).set_split("experts");
  } else if (type == v1::Deadlines::descriptor()) {
    auto& deadlines = static_cast<v1::Deadlines&>(message);
    deadlines.set_connect_s(5);
    deadlines.set_load_progress_s(30);
    deadlines.set_exchange_s(5);
    deadlines.set_http_idle_s(60);
    deadlines.set_shutdown_s(10);
  } else if (type == v1::Exchange::descriptor()) {
    auto& exchange = static_cast<v1::Exchange&>(message);
    exchange.set_rows("f32");
    exchange.set_replies("f32");
    exchange.set_over("grpc");
  } else if (type == v1::Delivery::descriptor()) {
    static_cast<v1::Delivery&>(message).set_streams(kStreamsDefault);
  } else if (type == v1::Limits::descriptor()) {
    auto& limits = static_cast<v1::Limits&>(message);
    limits.set_max_sequences(limits::kSequencesDefault);
    limits.set_max_queue(limits::kQueueDefault);
    limits.set_max_body_bytes(limits::kBodyBytesDefault);
  } else if (type == v1::ClusterConfig::descriptor()) {
    auto& config = static_cast<v1::ClusterConfig&>(message);
    SetDefaults(*config.mutable_coordinator());
    SetDefaults(*config.mutable_placement());
    SetDefaults(*config.mutable_deadlines());
    SetDefaults(*config.mutable_limits());
    SetDefaults(*config.mutable_exchange());
    SetDefaults(*config.mutable_delivery());
    config.set_on_expert_loss("error");
  }
}

void Expand(const fs::path& folder, std::string* path) {
  if (path->empty() || fs::path(*path).is_absolute()) return;
  *path = (folder / *path).lexically_normal().string();
}

void ExpandOrOff(const fs::path& folder, std::string* path) {
  if (*path != "off") Expand(folder, path);
}

void ExpandPaths(const std::string& file_name, v1::ClusterConfig& config) {
  const fs::path folder = fs::path(file_name).parent_path();
  Expand(folder, config.mutable_model());
  for (v1::Worker& worker : *config.mutable_workers()) {
    ExpandOrOff(folder, worker.mutable_model());
    ExpandOrOff(folder, worker.mutable_cache());
  }
  ExpandOrOff(folder, config.mutable_delivery()->mutable_cache());
  Expand(folder, config.mutable_links());
  if (!config.coordinator().api_key_file().empty()) {
    Expand(folder, config.mutable_coordinator()->mutable_api_key_file());
  }
  if (config.has_tls()) {
    Expand(folder, config.mutable_tls()->mutable_ca());
    Expand(folder, config.mutable_tls()->mutable_cert());
    Expand(folder, config.mutable_tls()->mutable_key());
  }
}

// Defaults that follow from other fields.
void Derive(v1::ClusterConfig& config) {
  if (config.model().empty()) return;
  if (!config.coordinator().served_model_name().empty()) return;
  // "models/tiny/" has no file name; "models/tiny" has.
  const fs::path model = (fs::path(config.model()) / ".").lexically_normal();
  config.mutable_coordinator()->set_served_model_name(
      model.parent_path().filename().string());
}

// A worker reads the same file and may lack the key: CheckHttpBind, which only
// the coordinator asks, is the place where a missing key file is an error.
absl::Status ReadKeyFile(v1::Coordinator& coordinator) {
  const std::string path = coordinator.api_key_file();
  if (path.empty()) return absl::OkStatus();
  absl::StatusOr<std::string> key = ReadFile(path, kKeyFileBytesMax);
  if (absl::IsNotFound(key.status())) return absl::OkStatus();
  RETURN_IF_ERROR(key.status());
  while (!key->empty() && (key->back() == '\n' || key->back() == '\r')) {
    key->pop_back();
  }
  if (key->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": coordinator.api_key_file holds no key"));
  }
  coordinator.set_api_key(*std::move(key));
  coordinator.clear_api_key_file();
  return absl::OkStatus();
}

absl::Status Prefixed(const std::string& file, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(file, ": ", std::string(status.message())));
}

}  // namespace

v1::ClusterConfig DefaultClusterConfig() {
  v1::ClusterConfig config;
  SetDefaults(config);
  return config;
}

absl::StatusOr<v1::ClusterConfig> ParseClusterConfig(
    std::string_view yaml, const std::string& file_name) {
  v1::ClusterConfig config;
  RETURN_IF_ERROR(ReadYaml(yaml, file_name, SetDefaults, config));
  ExpandPaths(file_name, config);
  Derive(config);
  const absl::Status valid = Validate(config);
  if (!valid.ok()) return Prefixed(file_name, valid);
  return config;
}

absl::StatusOr<v1::ClusterConfig> LoadClusterConfig(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string yaml,
                   ReadFile(path, limits::kConfigFileBytesMax));
  ASSIGN_OR_RETURN(v1::ClusterConfig config, ParseClusterConfig(yaml, path));
  RETURN_IF_ERROR(ReadKeyFile(*config.mutable_coordinator()));
  const absl::Status valid = Validate(config);
  if (!valid.ok()) return Prefixed(path, valid);
  return config;
}

absl::StatusOr<v1::Worker> FindWorker(const v1::ClusterConfig& config,
                                      std::string_view name) {
  std::vector<std::string> names;
  for (const v1::Worker& worker : config.workers()) {
    if (worker.name() == name) return worker;
    names.push_back(worker.name());
  }
  const std::string known =
      names.empty() ? "the configuration has no workers"
                    : absl::StrCat("known are ", absl::StrJoin(names, ", "));
  return absl::NotFoundError(
      absl::StrCat("no worker '", std::string(name), "'; ", known));
}

}  // namespace conclave::config

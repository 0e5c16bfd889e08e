// SPDX-License-Identifier: Apache-2.0
// What has to hold for every program that reads the file.

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/config/cluster_config.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::config {
namespace {

constexpr int32_t kThreadsMax = 1024;
constexpr int32_t kGpuMax = 1023;
constexpr int32_t kSpinUsMax = 1'000'000;
constexpr double kShareMax = 1e6;
constexpr double kDeadlineMax_s = 86'400;
constexpr double kCacheGbMax = 1e6;
constexpr int32_t kStreamsMax = 64;
constexpr int32_t kQueueMax = 1 << 20;
constexpr int64_t kBodyBytesMin = 1024;
constexpr int64_t kBodyBytesMax = int64_t{1} << 30;
constexpr size_t kNameBytesMax = 64;
constexpr char kCoordinatorName[] = "coordinator";

absl::Status Bad(const std::string& field, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", why));
}

template <typename Number>
absl::Status CheckRange(const std::string& field,
                        Number value,
                        Number min,
                        Number max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return Bad(field,
             absl::StrCat("must be in [", min, ", ", max, "], is ", value));
}

absl::Status CheckWord(const std::string& field,
                       const std::string& word,
                       const std::vector<std::string>& words) {
  if (std::find(words.begin(), words.end(), word) != words.end()) {
    return absl::OkStatus();
  }
  return Bad(field,
             absl::StrCat("must be '",
                          absl::StrJoin(words, "' or '"),
                          "', is '",
                          absl::CHexEscape(word),
                          "'"));
}

absl::Status CheckAddress(const std::string& field,
                          const std::string& address,
                          int port_min) {
  const auto parsed = ParseHostPort(address);
  if (!parsed.ok()) return Bad(field, std::string(parsed.status().message()));
  if (parsed->port < port_min) return Bad(field, "the port must not be 0");
  return absl::OkStatus();
}

absl::Status CheckGroup(const v1::Coordinator& coordinator) {
  RETURN_IF_ERROR(CheckRange("number of coordinator.gpus",
                             coordinator.gpus_size(),
                             0,
                             limits::kRanksMax));
  for (const int32_t gpu : coordinator.gpus()) {
    RETURN_IF_ERROR(CheckRange("coordinator.gpus", gpu, 0, kGpuMax));
    if (std::count(coordinator.gpus().begin(), coordinator.gpus().end(), gpu) >
        1) {
      return Bad("coordinator.gpus", "names one GPU twice");
    }
  }
  RETURN_IF_ERROR(CheckWord("coordinator.group_form",
                            coordinator.group_form(),
                            {"symmetric", "lone"}));
  RETURN_IF_ERROR(CheckWord("coordinator.group_exchange",
                            coordinator.group_exchange(),
                            {"peer", "nccl"}));
  const int32_t shares = coordinator.group_shares_size();
  if (shares > 0 && shares != coordinator.gpus_size()) {
    return Bad("coordinator.group_shares",
               absl::StrCat("must have one for each of coordinator.gpus, ",
                            coordinator.gpus_size(),
                            ", has ",
                            shares));
  }
  for (const int32_t share : coordinator.group_shares()) {
    RETURN_IF_ERROR(CheckRange(
        "coordinator.group_shares", share, 1, limits::kRankShareMax));
  }
  return absl::OkStatus();
}

absl::Status CheckCoordinator(const v1::Coordinator& coordinator) {
  RETURN_IF_ERROR(CheckAddress("coordinator.listen", coordinator.listen(), 0));
  RETURN_IF_ERROR(
      CheckRange("coordinator.threads", coordinator.threads(), 0, kThreadsMax));
  RETURN_IF_ERROR(
      CheckRange("coordinator.spin_us", coordinator.spin_us(), -1, kSpinUsMax));
  RETURN_IF_ERROR(CheckWord(
      "coordinator.activations", coordinator.activations(), {"int8", "f32"}));
  RETURN_IF_ERROR(CheckWord("coordinator.backend",
                            coordinator.backend(),
                            {"auto", "cuda", "cpu", "cpu-plain"}));
  RETURN_IF_ERROR(CheckRange("coordinator.gpu", coordinator.gpu(), 0, kGpuMax));
  RETURN_IF_ERROR(CheckWord(
      "coordinator.kv_dtype", coordinator.kv_dtype(), {"bf16", "fp8"}));
  RETURN_IF_ERROR(CheckWord(
      "coordinator.gdn_state", coordinator.gdn_state(), {"f32", "bf16"}));
  RETURN_IF_ERROR(CheckGroup(coordinator));
  const std::string& key = coordinator.api_key();
  if (!key.empty() && !coordinator.api_key_file().empty()) {
    return Bad("coordinator.api_key_file",
               "stands beside api_key; only one of them can hold");
  }
  if (!std::all_of(key.begin(), key.end(), [](unsigned char c) {
        return absl::ascii_isgraph(c);
      })) {
    return Bad("coordinator.api_key",
               "must be printable ASCII without spaces, because it travels in "
               "an HTTP header");
  }
  return absl::OkStatus();
}

absl::Status CheckWorkerName(const std::string& field,
                             const std::string& name) {
  const bool fits =
      !name.empty() && name.size() <= kNameBytesMax &&
      std::all_of(name.begin(), name.end(), [](unsigned char c) {
        return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
      });
  if (!fits) {
    return Bad(field,
               absl::StrCat("must have 1 to ",
                            kNameBytesMax,
                            " letters, digits, '.', '_' or '-'"));
  }
  if (name == kCoordinatorName) {
    return Bad(field, "'coordinator' is taken by the coordinator itself");
  }
  return absl::OkStatus();
}

absl::Status CheckWorkers(const v1::ClusterConfig& config) {
  RETURN_IF_ERROR(CheckRange(
      "number of workers", config.workers_size(), 0, limits::kWorkersMax));
  std::map<std::string, int> names, addresses;
  for (int i = 0; i < config.workers_size(); ++i) {
    const v1::Worker& worker = config.workers(i);
    const std::string at = absl::StrCat("workers[", i, "].");
    RETURN_IF_ERROR(CheckWorkerName(at + "name", worker.name()));
    RETURN_IF_ERROR(CheckAddress(at + "address", worker.address(), 1));
    RETURN_IF_ERROR(
        CheckRange(at + "threads", worker.threads(), 0, kThreadsMax));
    RETURN_IF_ERROR(
        CheckRange(at + "spin_us", worker.spin_us(), -1, kSpinUsMax));
    if (!(worker.link_round_trip_us() >= 0 && worker.link_gb_per_s() >= 0)) {
      return Bad(at + "link_round_trip_us and link_gb_per_s",
                 "must not be negative");
    }
    if (!(worker.share() > 0 && worker.share() <= kShareMax)) {
      return Bad(at + "share",
                 absl::StrCat("must be above 0 and at most ", kShareMax));
    }
    const auto [name, new_name] = names.emplace(worker.name(), i);
    if (!new_name) {
      return Bad(at + "name",
                 absl::StrCat("'",
                              worker.name(),
                              "' is the name of workers[",
                              name->second,
                              "] too"));
    }
    const auto [address, new_address] = addresses.emplace(worker.address(), i);
    if (!new_address) {
      return Bad(at + "address",
                 absl::StrCat(worker.address(),
                              " is the address of workers[",
                              address->second,
                              "] too"));
    }
  }
  return absl::OkStatus();
}

// 0 0 stands for everything; the model's sizes are checked where it is known.
absl::Status CheckSpan(const std::string& field, int32_t begin, int32_t end) {
  if ((begin == 0 && end == 0) || (begin >= 0 && begin < end)) {
    return absl::OkStatus();
  }
  return Bad(field,
             absl::StrCat("[", begin, ", ", end, ") is empty or negative"));
}

absl::Status CheckExplicit(const std::string& at,
                           const v1::ShardPlacement& shard,
                           const std::set<std::string>& holders) {
  if (!holders.contains(shard.holder())) {
    return Bad(at + "holder",
               absl::StrCat("'",
                            absl::CHexEscape(shard.holder()),
                            "' is no holder; known are ",
                            absl::StrJoin(holders, ", ")));
  }
  if (shard.slices().empty()) return Bad(at + "slices", "is empty");
  for (int i = 0; i < shard.slices_size(); ++i) {
    const v1::SliceRange& slice = shard.slices(i);
    const std::string in = absl::StrCat(at, "slices[", i, "].");
    RETURN_IF_ERROR(CheckSpan(
        in + "layer_begin, layer_end", slice.layer_begin(), slice.layer_end()));
    RETURN_IF_ERROR(CheckSpan(in + "expert_begin, expert_end",
                              slice.expert_begin(),
                              slice.expert_end()));
    RETURN_IF_ERROR(CheckSpan(in + "column_begin, column_end",
                              slice.column_begin(),
                              slice.column_end()));
  }
  return absl::OkStatus();
}

absl::Status CheckPlacement(const v1::ClusterConfig& config) {
  const v1::Placement& placement = config.placement();
  RETURN_IF_ERROR(
      CheckWord("placement.split", placement.split(), {"experts", "columns"}));
  RETURN_IF_ERROR(CheckRange(
      "placement.shards", placement.shards(), 0, limits::kShardsMax));
  RETURN_IF_ERROR(CheckRange("placement.coordinator_share",
                             placement.coordinator_share(),
                             0.0,
                             kShareMax));
  RETURN_IF_ERROR(CheckRange("number of entries in placement.explicit",
                             placement.explicit__size(),
                             0,
                             limits::kShardsMax));
  std::set<std::string> holders = {kCoordinatorName};
  for (const v1::Worker& worker : config.workers()) {
    holders.insert(worker.name());
  }
  for (int i = 0; i < placement.explicit__size(); ++i) {
    RETURN_IF_ERROR(CheckExplicit(absl::StrCat("placement.explicit[", i, "]."),
                                  placement.explicit_(i),
                                  holders));
  }
  return absl::OkStatus();
}

absl::Status CheckDeadlines(const v1::Deadlines& deadlines) {
  const std::pair<const char*, double> all[] = {
      {"connect_s", deadlines.connect_s()},
      {"load_progress_s", deadlines.load_progress_s()},
      {"exchange_s", deadlines.exchange_s()},
      {"http_idle_s", deadlines.http_idle_s()},
      {"shutdown_s", deadlines.shutdown_s()}};
  for (const auto& [name, seconds] : all) {
    if (seconds > 0 && seconds <= kDeadlineMax_s) continue;
    return Bad(absl::StrCat("deadlines.", name),
               absl::StrCat("must be above 0 and at most ",
                            kDeadlineMax_s,
                            " seconds, is ",
                            seconds));
  }
  return absl::OkStatus();
}

absl::Status CheckDelivery(const v1::Delivery& delivery) {
  if (!(delivery.cache_gb() >= 0 && delivery.cache_gb() <= kCacheGbMax)) {
    return Bad("delivery.cache_gb",
               absl::StrCat("must be 0 (no limit) to ", kCacheGbMax));
  }
  return CheckRange("delivery.streams", delivery.streams(), 1, kStreamsMax);
}

absl::Status CheckLimits(const v1::Limits& limits) {
  RETURN_IF_ERROR(CheckRange("limits.max_sequences",
                             limits.max_sequences(),
                             1,
                             limits::kSequencesMax));
  RETURN_IF_ERROR(
      CheckRange("limits.max_queue", limits.max_queue(), 0, kQueueMax));
  RETURN_IF_ERROR(
      CheckRange("limits.max_context", limits.max_context(), 0, INT32_MAX));
  if (limits.step_tokens() != 0) {  // else by what computes
    RETURN_IF_ERROR(CheckRange("limits.step_tokens",
                               limits.step_tokens(),
                               limits::kGdnCellRows,
                               limits::kStepRowsMax - limits::kSequencesMax));
  }
  RETURN_IF_ERROR(CheckRange(
      "limits.kv_tokens", limits.kv_tokens(), int64_t{0}, INT64_MAX));
  return CheckRange("limits.max_body_bytes",
                    limits.max_body_bytes(),
                    kBodyBytesMin,
                    kBodyBytesMax);
}

absl::Status CheckTls(const v1::Tls& tls) {
  const std::pair<const char*, const std::string&> all[] = {
      {"ca", tls.ca()}, {"cert", tls.cert()}, {"key", tls.key()}};
  const auto given = std::count_if(std::begin(all), std::end(all), [](auto& f) {
    return !f.second.empty();
  });
  if (given == 0 || given == 3) return absl::OkStatus();
  for (const auto& [name, path] : all) {
    if (!path.empty()) continue;
    return Bad(absl::StrCat("tls.", name),
               "is missing; mutual TLS needs ca, cert and key");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const v1::ClusterConfig& config) {
  RETURN_IF_ERROR(CheckCoordinator(config.coordinator()));
  RETURN_IF_ERROR(CheckWorkers(config));
  RETURN_IF_ERROR(CheckPlacement(config));
  RETURN_IF_ERROR(CheckDeadlines(config.deadlines()));
  RETURN_IF_ERROR(CheckTls(config.tls()));
  RETURN_IF_ERROR(CheckDelivery(config.delivery()));
  RETURN_IF_ERROR(
      CheckWord("on_expert_loss", config.on_expert_loss(), {"error"}));
  RETURN_IF_ERROR(
      CheckWord("exchange.rows", config.exchange().rows(), {"f32", "bf16"}));
  RETURN_IF_ERROR(CheckWord(
      "exchange.replies", config.exchange().replies(), {"f32", "bf16"}));
  RETURN_IF_ERROR(CheckRange("exchange.micro_batches",
                             config.exchange().micro_batches(),
                             0,
                             limits::kMicroBatchesMax));
  RETURN_IF_ERROR(
      CheckWord("exchange.over", config.exchange().over(), {"grpc", "nccl"}));
  if (config.exchange().over() == "nccl" && config.workers_size() == 0) {
    return Bad("exchange.over", "is nccl, but the file has no workers");
  }
  return CheckLimits(config.limits());
}

}  // namespace conclave::config

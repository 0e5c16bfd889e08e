// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/bench_over.h"

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <memory>
#include <utility>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/clock.h"
#include "common/config/cluster_config.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "common/version.h"
#include "coordinator/cli/backend_choice.h"
#include "coordinator/cli/deployment.h"
#include "coordinator/cli/flags.h"
#include "coordinator/cli/group_flags.h"
#include "coordinator/cli/linked.h"
#include "coordinator/cli/served_steps.h"
#include "coordinator/cli/table.h"

ABSL_FLAG(
    std::string,
    over,
    "",
    "what rows travel over, to compare in one table, comma list of local "
    "(no workers: all experts in this process), grpc and nccl; empty: as "
    "the cluster file says. Steps as serve runs them: --batch, --context, "
    "--steps, --repeats; one of --backends. Needs the weights: --shape is "
    "for one process");
ABSL_FLAG(int32_t,
          ready_s,
          60,
          "with --over: seconds without news of a worker that is not ready, "
          "until it is missed");

ABSL_DECLARE_FLAG(std::string, backends);
ABSL_DECLARE_FLAG(std::string, batch);
ABSL_DECLARE_FLAG(std::string, micro_batches);
ABSL_DECLARE_FLAG(int32_t, steps);
ABSL_DECLARE_FLAG(int32_t, repeats);

namespace conclave::cli {
namespace {

constexpr int32_t kContextDefault = 128;
constexpr int32_t kTokensMax = 1 << 24;  // of a sequence

struct Way {
  std::string over;
  v1::ClusterConfig config = {};
  kernels::Backend backend = kernels::Backend::kCpu;
  std::string computes_on = "";
  ServedFigures figures = {};
};

bool IsWord(const std::string& word) {
  return word == "local" || word == "grpc" || word == "nccl";
}

absl::StatusOr<ServedOptions> OptionsFromFlags() {
  if (!absl::GetFlag(FLAGS_sequences).empty()) {
    return absl::InvalidArgumentError(
        "--sequences: on a GPU, and with --over, say --batch instead");
  }
  ServedOptions out;
  ASSIGN_OR_RETURN(
      out.batches,
      Counts(absl::GetFlag(FLAGS_batch), "1,8,32", limits::kSequencesMax));
  const int32_t context = absl::GetFlag(FLAGS_context);
  out.context = context > 0 ? context : kContextDefault;
  out.steps = absl::GetFlag(FLAGS_steps);
  out.repeats = absl::GetFlag(FLAGS_repeats);
  if (out.steps < 1) return absl::InvalidArgumentError("--steps: at least 1");
  if (int64_t{out.context} + out.steps > kTokensMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--context and --steps: together at most ", kTokensMax));
  }
  if (out.repeats < 1) {
    return absl::InvalidArgumentError("--repeats: at least 1");
  }
  out.clock = RealClock();
  return out;
}

// The file with the caches that the steps need and no more.
absl::Status UseFlags(const ServedOptions& options, v1::ClusterConfig* config) {
  const model::StateSizes caches = ServedCaches(options);
  v1::Limits& limits = *config->mutable_limits();
  limits.set_max_sequences(caches.state_slots);
  limits.set_max_context(options.context + options.steps);
  limits.set_kv_tokens(int64_t{caches.kv_blocks} * limits::kKvBlockTokens);
  v1::Coordinator& c = *config->mutable_coordinator();
  const auto text = [](const absl::Flag<std::string>& flag, auto set) {
    if (const std::string v = absl::GetFlag(flag); !v.empty()) set(v);
  };
  text(FLAGS_backends, [&](const auto& v) { c.set_backend(v); });
  text(FLAGS_kv_dtype, [&](const auto& v) { c.set_kv_dtype(v); });
  text(FLAGS_gdn_state, [&](const auto& v) { c.set_gdn_state(v); });
  const std::string counts = absl::GetFlag(FLAGS_micro_batches);
  if (counts.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const auto micro_batches,
                   Counts(counts, counts, limits::kMicroBatchesMax, 0));
  if (micro_batches.size() > 1) {
    return absl::InvalidArgumentError(
        "--micro-batches: one number where ways are compared (--over)");
  }
  config->mutable_exchange()->set_micro_batches(micro_batches[0]);
  return absl::OkStatus();
}

// As long as weights move, it may take its time.
absl::Status WaitForWorkers(Deployment* deployment) {
  const absl::Duration within = absl::Seconds(absl::GetFlag(FLAGS_ready_s));
  uint64_t moved = 0;
  while (true) {
    const absl::Status ready =
        deployment->WaitReady(RealClock()->Now() + within);
    if (ready.ok()) return ready;
    uint64_t now = 0;
    for (const cluster::WorkerState& worker : deployment->Workers()) {
      now += worker.bytes_done;
    }
    if (now <= moved) {
      return {ready.code(),
              absl::StrCat(ready.message(),
                           "; start the workers of the file (no news for ",
                           absl::FormatDuration(within),
                           ", --ready-s)")};
    }
    moved = now;
  }
}

// All that can be refused before anything is loaded.
absl::StatusOr<Way> Prepare(const v1::ClusterConfig& config,
                            const std::string& name) {
  Way out{.over = name};
  ASSIGN_OR_RETURN(out.config, ConfigOver(config, name));
  if (name == "local") {
    RETURN_IF_ERROR(ApplyGroupFlags(out.config.mutable_coordinator()));
    RETURN_IF_ERROR(config::Validate(out.config));
  }
  ASSIGN_OR_RETURN(const BackendChoice choice,
                   ChooseBackend(out.config, kernels::ListCudaDevices));
  out.backend = choice.backend;
  RETURN_IF_ERROR(CheckLinked(out.config, out.backend));
  return out;
}

absl::Status Measure(ServedOptions options, Way* way) {
  Metrics metrics;
  Deployment::Options parts;
  parts.backend = way->backend;
  parts.clock = options.clock;
  parts.metrics = &metrics;
  parts.with_engine = true;
  ASSIGN_OR_RETURN(const std::unique_ptr<Deployment> deployment,
                   Deployment::Create(way->config, parts));
  const int32_t longest =
      deployment->checkpoint().config().max_position_embeddings;
  if (options.context + options.steps > longest) {
    return absl::InvalidArgumentError(absl::StrCat("--context ",
                                                   options.context,
                                                   " and --steps ",
                                                   options.steps,
                                                   ": the model has ",
                                                   longest,
                                                   " positions"));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<model::Decoder> decoder,
                   deployment->MakeDecoder());
  RETURN_IF_ERROR(WaitForWorkers(deployment.get()));
  way->computes_on = deployment->ComputesOn();
  const int32_t chunk = deployment->limits().step_tokens();
  options.chunk_rows = chunk > 0 ? chunk : limits::kStepTokensDefault;
  options.vocab = deployment->checkpoint().config().vocab_size;
  options.metrics = &metrics;
  options.tell = [way](const std::string& what) {
    log::Info(absl::StrCat("over ", way->over, ": ", what));
  };
  ASSIGN_OR_RETURN(way->figures, MeasureServed(decoder.get(), options));
  return absl::OkStatus();
}

// Sequences that both would go on with the same token.
int32_t Agreeing(const ServedBatch& a, const ServedBatch& b) {
  int32_t out = 0;
  for (size_t i = 0; i < a.tokens.size(); ++i) {
    out += a.tokens[i] == b.tokens[i] ? 1 : 0;
  }
  return out;
}

std::vector<std::string> RowOf(const Way& way,
                               const ServedBatch& f,
                               const ServedBatch& first) {
  // Over NCCL rows move inside the step; no host sees when.
  const bool waits = way.over == "grpc";
  const bool travels = way.over != "local";
  return {way.over,
          absl::StrCat(f.batch),
          Fixed(1e3 * f.step_s, 3),
          Fixed(1e3 * f.tail_s, 3),
          Fixed(f.batch / f.step_s, 1),
          Fixed(first.step_s / f.step_s, 2),
          waits ? Fixed(1e3 * f.exchange_s, 3) : "-",
          travels ? Fixed(f.sent_bytes / 1e6, 3) : "-",
          travels ? Fixed(f.received_bytes / 1e6, 3) : "-",
          absl::StrCat(Agreeing(f, first), " of ", f.batch)};
}

void Print(const v1::ClusterConfig& config,
           const ServedOptions& options,
           const std::vector<Way>& ways) {
  std::cout << "conclave " << Version() << ", " << MachineName() << "\nmodel "
            << config.model() << ", " << config.workers_size()
            << " workers, context " << options.context << ", activations "
            << config.coordinator().activations() << ", median of "
            << options.repeats << " x " << options.steps << " steps\n\n";
  std::vector<std::vector<std::string>> rows = {{"over",
                                                 "batch",
                                                 "ms/step",
                                                 "90 % within",
                                                 "tok/s",
                                                 "x first",
                                                 "exchange ms",
                                                 "MB sent",
                                                 "MB received",
                                                 "same token"}};
  for (size_t b = 0; b < options.batches.size(); ++b) {
    const ServedBatch& first = ways[0].figures.batches[b];
    for (const Way& way : ways) {
      rows.push_back(RowOf(way, way.figures.batches[b], first));
    }
  }
  std::cout << FormatTable(rows) << "\n";
  rows = {{"over", "prompts", "tokens", "prompt tok/s", "coordinator on"}};
  for (const Way& way : ways) {
    rows.push_back({way.over,
                    absl::StrCat(way.figures.prompts),
                    absl::StrCat(options.context),
                    Fixed(way.figures.prompt_tokens_s, 0),
                    way.computes_on});
  }
  std::cout << FormatTable(rows) << std::flush;
}

}  // namespace

bool ComparesWays(const v1::ClusterConfig& config) {
  if (!absl::GetFlag(FLAGS_over).empty() || IsLinked(config)) return true;
  const std::string backends = absl::GetFlag(FLAGS_backends);
  return (backends.empty() ? config.coordinator().backend() : backends) ==
         "cuda";
}

absl::StatusOr<std::vector<std::string>> ParseWays(
    const std::string& words, const v1::ClusterConfig& config) {
  const bool workers = config.workers_size() > 0;
  std::vector<std::string> out;
  if (words.empty()) {
    out.push_back(!workers ? "local" : config.exchange().over());
    return out;
  }
  for (const auto& word : absl::StrSplit(words, ',')) {
    const std::string way(word);
    if (!IsWord(way) || std::find(out.begin(), out.end(), way) != out.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--over: \"", words, "\"; local, grpc and nccl, each once"));
    }
    if (way != "local" && !workers) {
      return absl::InvalidArgumentError(
          absl::StrCat("--over ",
                       way,
                       ": needs workers; give --config FILE with workers that "
                       "run"));
    }
    out.push_back(way);
  }
  return out;
}

absl::StatusOr<v1::ClusterConfig> ConfigOver(const v1::ClusterConfig& config,
                                             const std::string& way) {
  v1::ClusterConfig out = config;
  if (way == "local") {
    out.clear_workers();
    out.clear_placement();
    out.clear_links();
    out.mutable_placement()->set_split("experts");
    out.mutable_exchange()->set_over("grpc");
  } else {
    out.mutable_exchange()->set_over(way);
  }
  RETURN_IF_ERROR(config::Validate(out));
  if (way != "nccl") return out;
  for (const v1::Worker& worker : out.workers()) {
    RETURN_IF_ERROR(config::CheckWorkerBind(out, worker));
  }
  return out;
}

absl::Status BenchOver(const v1::ClusterConfig& config) {
  ASSIGN_OR_RETURN(const ServedOptions options, OptionsFromFlags());
  ASSIGN_OR_RETURN(const std::vector<std::string> names,
                   ParseWays(absl::GetFlag(FLAGS_over), config));
  if (!absl::GetFlag(FLAGS_gpus).empty() &&
      std::find(names.begin(), names.end(), "local") == names.end()) {
    return absl::InvalidArgumentError(
        "--gpus: of the way local alone; workers and several GPUs of a "
        "coordinator do not go together yet");
  }
  v1::ClusterConfig sized = config;
  RETURN_IF_ERROR(UseFlags(options, &sized));
  const auto of = [](const std::string& name, const absl::Status& status) {
    if (status.ok()) return status;
    return absl::Status(status.code(),
                        absl::StrCat("over ", name, ": ", status.message()));
  };
  std::vector<Way> ways;
  for (const std::string& name : names) {
    absl::StatusOr<Way> way = Prepare(sized, name);
    RETURN_IF_ERROR(of(name, way.status()));
    ways.push_back(*std::move(way));
  }
  absl::Status status;
  size_t done = 0;
  while (status.ok() && done < ways.size()) {
    status = of(ways[done].over, Measure(options, &ways[done]));
    if (status.ok()) ++done;
  }
  // What was measured before something went wrong is worth its time.
  ways.resize(done);
  if (done > 0) Print(sized, options, ways);
  return status;
}

}  // namespace conclave::cli

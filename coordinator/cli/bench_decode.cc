// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/bench_decode.h"

#include <algorithm>
#include <iostream>
#include <memory>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "common/version.h"
#include "coordinator/cli/bench_over.h"
#include "coordinator/cli/bench_shape.h"
#include "coordinator/cli/deployment.h"
#include "coordinator/cli/flags.h"
#include "coordinator/cli/made_up_steps.h"
#include "coordinator/cli/table.h"

ABSL_FLAG(std::string, bench_threads, "1,2", "compute threads, comma list");
ABSL_FLAG(std::string,
          backends,
          "",
          "forms of the blocks to compare, comma list of cpu and cpu-plain; "
          "empty: both; or cuda: steps as serve runs them, --over; with --over "
          "one of the three, empty: as the configuration says");
ABSL_FLAG(int32_t, steps, 64, "decode steps of one measurement");
ABSL_FLAG(int32_t, prefill, 512, "tokens of the prefill measurement");
ABSL_FLAG(std::string,
          micro_batches,
          "",
          "of a step, comma list of 0 (by measured gain), 1, 2: with workers, "
          "empty: as the configuration says; with --form lone one of them, "
          "empty: 1");
ABSL_FLAG(int32_t, repeats, 5, "measurements of each case; medians are shown");

ABSL_DECLARE_FLAG(std::string, over);
ABSL_DECLARE_FLAG(std::string, shape);

namespace conclave::cli {
namespace {

constexpr absl::Duration kReadyWithin = absl::Seconds(60);

// Tokens before the first decode step.
int32_t Context() {
  const int32_t asked = absl::GetFlag(FLAGS_context);
  return asked > 0 ? asked : 128;
}

// With one setting of exchange.micro_batches; a number per repeat.
struct Figures {
  int32_t micro_batches = 0;
  std::vector<double> decode;   // tokens/s
  std::vector<double> prefill;  // tokens/s, one sequence
  std::vector<double> prompts;  // tokens/s, all contexts in one step
};

struct Case {
  std::string backend;
  int32_t threads = 1;
  int32_t sequences = 1;
  std::vector<Figures> settings;  // measured step by step in turn
};

// Decodes made-up tokens on the bare decoder: no HTTP, no text, no sampling.
class Runner {
 public:
  static absl::StatusOr<std::unique_ptr<Runner>> Create(
      const v1::ClusterConfig& config, const Case& what) {
    auto runner = std::unique_ptr<Runner>(new Runner);
    Deployment::Options options;
    options.backend = what.backend == "cpu-plain" ? kernels::Backend::kCpuPlain
                                                  : kernels::Backend::kCpu;
    options.threads = what.threads;
    options.clock = RealClock();
    options.metrics = &runner->metrics_;
    options.show_progress = false;
    ASSIGN_OR_RETURN(runner->deployment_, Deployment::Create(config, options));
    RETURN_IF_ERROR(
        runner->deployment_->WaitReady(RealClock()->Now() + kReadyWithin));
    const int32_t tokens = std::max(Context() + absl::GetFlag(FLAGS_steps),
                                    absl::GetFlag(FLAGS_prefill));
    Deployment& deployment = *runner->deployment_;
    model::MicroBatchSettings micro_batches = deployment.micro_batches();
    for (const Figures& setting : what.settings) {
      if (config.workers_size() > 0) {
        micro_batches.count = setting.micro_batches;
      }
      ASSIGN_OR_RETURN(
          runner->decoders_.emplace_back(),
          MadeUpSteps::Create(deployment.checkpoint(),
                              deployment.experts(),
                              deployment.pool(),
                              {.backend = options.backend,
                               .sequences = what.sequences,
                               .tokens = tokens,
                               .activations = deployment.activations(),
                               .micro_batches = micro_batches}));
      RETURN_IF_ERROR(runner->decoders_.back()->Run(1, 64, 0));
    }
    return runner;
  }

  absl::Status Measure(Case& what) {
    const int32_t context = Context();
    const int32_t steps = absl::GetFlag(FLAGS_steps);
    const int32_t prefill = absl::GetFlag(FLAGS_prefill);
    const int32_t sequences = what.sequences;
    for (size_t i = 0; i < decoders_.size(); ++i) {
      ASSIGN_OR_RETURN(const double seconds, Step(i, 1, prefill, 0));
      what.settings[i].prefill.push_back(prefill / seconds);
    }
    for (size_t i = 0; i < decoders_.size(); ++i) {
      ASSIGN_OR_RETURN(const double seconds, Step(i, sequences, context, 0));
      what.settings[i].prompts.push_back(context * sequences / seconds);
    }
    std::vector<double> decode(decoders_.size());
    for (int32_t step = 0; step < steps; ++step) {
      for (size_t i = 0; i < decoders_.size(); ++i) {
        ASSIGN_OR_RETURN(const double seconds,
                         Step(i, sequences, 1, context + step));
        decode[i] += seconds;
      }
    }
    for (size_t i = 0; i < decoders_.size(); ++i) {
      what.settings[i].decode.push_back(steps * sequences / decode[i]);
    }
    return absl::OkStatus();
  }

 private:
  // Seconds of a step with that setting.
  absl::StatusOr<double> Step(size_t setting,
                              int32_t sequences,
                              int32_t rows,
                              int32_t position) {
    const absl::Time start = RealClock()->Now();
    RETURN_IF_ERROR(decoders_[setting]->Run(sequences, rows, position));
    return absl::ToDoubleSeconds(RealClock()->Now() - start);
  }

  Metrics metrics_;
  std::unique_ptr<Deployment> deployment_;
  std::vector<std::unique_ptr<MadeUpSteps>> decoders_;  // by setting
};

absl::StatusOr<std::vector<Case>> Cases(const v1::ClusterConfig& config) {
  ASSIGN_OR_RETURN(const auto sequences,
                   Counts(absl::GetFlag(FLAGS_sequences), "1,8"));
  ASSIGN_OR_RETURN(const auto threads,
                   Counts(absl::GetFlag(FLAGS_bench_threads), "1,2"));
  ASSIGN_OR_RETURN(const auto micro_batches,
                   Counts(absl::GetFlag(FLAGS_micro_batches),
                          absl::StrCat(config.exchange().micro_batches()),
                          limits::kMicroBatchesMax,
                          0));
  if (config.workers_size() == 0 && micro_batches.size() > 1) {
    return absl::InvalidArgumentError(
        "--micro-batches: without workers there is one; give --config with "
        "workers");
  }
  const std::string backends = absl::GetFlag(FLAGS_backends);
  std::vector<Case> out;
  for (const auto& backend :
       absl::StrSplit(backends.empty() ? "cpu,cpu-plain" : backends, ',')) {
    if (backend != "cpu" && backend != "cpu-plain") {
      return absl::InvalidArgumentError(
          "--backends: cpu, cpu-plain, both, or cuda alone");
    }
    for (const int32_t t : threads) {
      for (const int32_t s : sequences) {
        // The plain twins have one thread.
        if (backend == "cpu-plain" && t != threads[0]) continue;
        Case& one = out.emplace_back();
        one.backend = std::string(backend);
        one.threads = t;
        one.sequences = s;
        for (const int32_t count : micro_batches) {
          one.settings.emplace_back().micro_batches = count;
        }
      }
    }
  }
  return out;
}

std::string MicroBatchesOf(const v1::ClusterConfig& config,
                           const Figures& setting) {
  if (config.workers_size() == 0) return "1";
  const int32_t count = setting.micro_batches;
  return count == 0 ? "by gain" : absl::StrCat(count);
}

void Print(const v1::ClusterConfig& config, const std::vector<Case>& cases) {
  std::cout << "conclave " << Version() << ", " << MachineName() << ", SIMD "
            << kernels::ActiveSimdTarget() << "\nmodel " << config.model()
            << ", " << config.workers_size() << " workers, context "
            << Context() << ", prefill " << absl::GetFlag(FLAGS_prefill)
            << ", activations " << config.coordinator().activations()
            << ", median of " << absl::GetFlag(FLAGS_repeats)
            << " interleaved runs\n\n";
  std::vector<std::vector<std::string>> rows = {{"form",
                                                 "threads",
                                                 "sequences",
                                                 "micro-batches",
                                                 "decode tok/s",
                                                 "us/step",
                                                 "x first row",
                                                 "prefill tok/s",
                                                 "x first row",
                                                 "prompts tok/s"}};
  const double decode = Median(cases[0].settings[0].decode);
  const double prefill = Median(cases[0].settings[0].prefill);
  for (const Case& c : cases) {
    for (const Figures& setting : c.settings) {
      const double rate = Median(setting.decode);
      rows.push_back({c.backend,
                      absl::StrCat(c.threads),
                      absl::StrCat(c.sequences),
                      MicroBatchesOf(config, setting),
                      Fixed(rate, 0),
                      Fixed(1e6 * c.sequences / rate, 0),
                      Fixed(rate / decode, 2),
                      Fixed(Median(setting.prefill), 0),
                      Fixed(Median(setting.prefill) / prefill, 2),
                      Fixed(Median(setting.prompts), 0)});
    }
  }
  std::cout << FormatTable(rows);
}

absl::Status Bench() {
  ASSIGN_OR_RETURN(const v1::ClusterConfig config, ConfigFromFlags());
  RETURN_IF_ERROR(UseProcessFlags(config.coordinator().simd()));
  if (ComparesWays(config)) return BenchOver(config);
  ASSIGN_OR_RETURN(std::vector<Case> cases, Cases(config));
  std::vector<std::unique_ptr<Runner>> runners;
  for (const Case& c : cases) {
    // A cluster serves one coordinator at a time: made anew for each case.
    if (config.workers_size() > 0) break;
    ASSIGN_OR_RETURN(auto runner, Runner::Create(config, c));
    runners.push_back(std::move(runner));
  }
  for (int32_t i = 0; i < absl::GetFlag(FLAGS_repeats); ++i) {
    for (size_t c = 0; c < cases.size(); ++c) {
      std::unique_ptr<Runner> own;
      if (runners.empty()) {
        ASSIGN_OR_RETURN(own, Runner::Create(config, cases[c]));
      }
      RETURN_IF_ERROR((own ? own : runners[c])->Measure(cases[c]));
    }
  }
  Print(config, cases);
  return absl::OkStatus();
}

absl::Status BenchShape() {
  if (!absl::GetFlag(FLAGS_over).empty()) {
    return absl::InvalidArgumentError(
        "--over: workers load shards of a checkpoint, and --shape has none; "
        "say --config and leave --shape out");
  }
  return BenchShapeDecode();
}

int Run(const std::vector<std::string>&) {
  const absl::Status status =
      absl::GetFlag(FLAGS_shape).empty() ? Bench() : BenchShape();
  return status.ok() ? 0 : Fail("bench decode", status);
}

}  // namespace

Command BenchDecodeCommand() {
  return {
      .name = "bench decode",
      .summary = "Decode and prefill speed of a machine or a cluster.",
      .usage = "bench decode (--model DIR | --config FILE | --shape SHAPE)",
      .examples =
          "  conclave bench decode --model DIR\n"
          "  conclave bench decode --model DIR --sequences 1,8,16 "
          "--bench-threads 2 --backends cpu\n"
          "  conclave bench decode --config cluster.yaml --backends cpu   "
          "# its workers must run\n"
          "  conclave bench decode --config cluster.yaml --backends cpu "
          "--sequences 8 --micro-batches 1,2\n"
          "  conclave bench decode --config cluster.yaml --over "
          "local,grpc,nccl --backends cuda --batch 1,8,32 --context 4096\n"
          "  conclave bench decode --shape 122b-a10b --weights synthetic "
          "--format mlx4 --batch 1,8,32 --context 16384   # on a GPU\n"
          "  conclave bench decode --shape 397b-a17b --format mlx4 "
          "--gpus 2 --form symmetric --batch 1,8,32 --context 16384\n",
      .flags = {"model",       "config",    "sequences",      "bench_threads",
                "backends",    "over",      "ready_s",        "steps",
                "context",     "prefill",   "repeats",        "shape",
                "format",      "weights",   "batch",          "layers",
                "gpus",        "form",      "group_exchange", "group_shares",
                "kv_dtype",    "gdn_state", "micro_batches",  "simd",
                "activations", "log_level"},
      .run = Run};
}

}  // namespace conclave::cli

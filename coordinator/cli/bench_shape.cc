// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/bench_shape.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <set>
#include <vector>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "common/version.h"
#include "coordinator/cli/flags.h"
#include "coordinator/cli/made_up_shape.h"
#include "coordinator/cli/table.h"
#include "coordinator/planner/shapes.h"

ABSL_FLAG(std::string,
          batch,
          "",
          "sequences of a step, comma list; empty: 1, with --over 1,8,32");
ABSL_FLAG(std::string, prompt, "8192", "tokens of the prompt, comma list");

ABSL_DECLARE_FLAG(std::string, shape);
ABSL_DECLARE_FLAG(int32_t, steps);
ABSL_DECLARE_FLAG(int32_t, repeats);

namespace conclave::cli {
namespace {

using checkpoint::ModelConfig;
using model::DeviceDecoder;

// Mean number of distinct experts over the layers of a step.
class Distinct final : public model::Probe {
 public:
  void Hidden(int32_t, std::span<const float> x) override {
    for (const float value : x) finite = finite && std::isfinite(value);
  }
  void Routed(int32_t, const experts::Routing& routing) override {
    const std::set<int32_t> seen(routing.expert.begin(), routing.expert.end());
    sum += static_cast<double>(seen.size());
    ++layers;
  }
  double Mean() const { return layers > 0 ? sum / layers : 0; }
  double sum = 0;
  int32_t layers = 0;
  bool finite = true;
};

struct BlockRow {
  const char* name;
  DeviceDecoder::Block block;
  double bytes = 0;  // that it has to move
};

// Bytes that one decode step has to move, block by block.
std::vector<BlockRow> BlocksOf(const ShapeBench& bench,
                               int32_t batch,
                               int32_t context,
                               double distinct) {
  const ModelConfig& c = bench.request.config;
  const DeviceDecoder& d = bench.first();
  const auto weights = [&](DeviceDecoder::Block block) {
    return static_cast<double>(d.WeightBytesOf(block));
  };
  const double experts = c.num_experts + 1;
  return {
      {"projections",
       DeviceDecoder::kProjections,
       weights(DeviceDecoder::kProjections)},
      {"experts",
       DeviceDecoder::kExperts,
       weights(DeviceDecoder::kExperts) / experts * (distinct + 1)},
      {"GDN",
       DeviceDecoder::kGdn,
       2.0 * batch *
           static_cast<double>(
               planner::StateBytes(c, bench.request.gdn_bytes))},
      {"attention",
       DeviceDecoder::kAttention,
       static_cast<double>(batch) * context *
           static_cast<double>(
               planner::KvBytesPerToken(c, bench.request.kv_bytes))},
      {"router", DeviceDecoder::kRouter, weights(DeviceDecoder::kRouter)},
      {"norms", DeviceDecoder::kNorms, 0},
      {"head", DeviceDecoder::kHead, weights(DeviceDecoder::kHead)},
      {"sampling", DeviceDecoder::kSample, 0},
  };
}

void PrintHead(const ShapeBench& bench) {
  const ModelConfig& c = bench.request.config;
  const planner::WeightBytes plan =
      planner::ResidentBytes(c, bench.request.format);
  const uint64_t held =
      bench.decoder().dense_bytes() + bench.decoder().expert_bytes();
  const uint64_t planned = plan.embedding + plan.dense + plan.experts;
  std::cout << "conclave " << Version() << ", " << bench.gpu
            << ", read bandwidth " << Fixed(bench.read_bytes_per_s / 1e12, 2)
            << " TB/s in the same run\nshape " << absl::GetFlag(FLAGS_shape)
            << ", " << c.num_hidden_layers << " layers, "
            << planner::Name(bench.request.format) << ", KV "
            << KvDtypeFromFlags() << ", GDN state " << GdnStateFromFlags()
            << ", weights made up on the device\nresident "
            << Fixed(static_cast<double>(held) / 1e9, 3) << " GB, planned "
            << Fixed(static_cast<double>(planned) / 1e9, 3) << " GB\n\n";
}

struct DecodeFigures {
  int32_t batch = 1;
  double step_s = 0;    // with the host: numbers up, tokens down
  double device_s = 0;  // of the replayed step alone
  double distinct = 0;
  std::vector<BlockRow> blocks;
  std::vector<double> block_s;
};

absl::StatusOr<DecodeFigures> MeasureDecode(ShapeBench& bench,
                                            int32_t batch,
                                            int32_t context) {
  const int32_t steps = absl::GetFlag(FLAGS_steps);
  const int32_t repeats = absl::GetFlag(FLAGS_repeats);
  DecodeFigures out;
  out.batch = batch;
  ShapeSteps made(batch, 1, context + steps, bench.request.config.vocab_size);
  Distinct distinct;
  RETURN_IF_ERROR(
      bench.decoder()
          .Run(made.At(context), made.tokens(), made.wanted(), &distinct)
          .status());
  if (!distinct.finite) {
    return absl::InternalError("made-up weights gave numbers that are none");
  }
  out.distinct = distinct.Mean();
  std::vector<int32_t> next(static_cast<size_t>(batch));
  RETURN_IF_ERROR(bench.RunGreedy(made.At(context), made.tokens(), next));
  std::vector<double> times;
  for (int32_t r = 0; r < repeats; ++r) {
    const absl::Time start = RealClock()->Now();
    for (int32_t i = 0; i < steps; ++i) {
      RETURN_IF_ERROR(
          bench.RunGreedy(made.At(context + i), made.tokens(), next));
    }
    times.push_back(absl::ToDoubleSeconds(RealClock()->Now() - start) / steps);
  }
  out.step_s = Median(times);
  const kernels::StepBatch step = made.At(context);
  ASSIGN_OR_RETURN(out.device_s,
                   bench.Time(step, made.tokens(), DeviceDecoder::kAll, steps));
  out.blocks = BlocksOf(bench, batch, context, out.distinct);
  if (bench.group != nullptr) {
    out.blocks.push_back(
        {"norms and sums",
         static_cast<DeviceDecoder::Block>(DeviceDecoder::kNorms |
                                           DeviceDecoder::kExchange)});
  }
  for (const BlockRow& row : out.blocks) {
    ASSIGN_OR_RETURN(const double seconds,
                     bench.Time(step, made.tokens(), row.block, steps));
    out.block_s.push_back(seconds);
  }
  return out;
}

void PrintDecode(const ShapeBench& bench,
                 int32_t context,
                 const std::vector<DecodeFigures>& all) {
  std::vector<std::vector<std::string>> rows = {{"batch",
                                                 "context",
                                                 "tok/s",
                                                 "ms/step",
                                                 "device ms",
                                                 "GB/step",
                                                 "TB/s",
                                                 "of roofline",
                                                 "experts",
                                                 "of spread"}};
  const ModelConfig& c = bench.request.config;
  for (const DecodeFigures& f : all) {
    double bytes = 0;
    for (const BlockRow& row : f.blocks) bytes += row.bytes;
    const double miss =
        1.0 - static_cast<double>(c.num_experts_per_tok) / c.num_experts;
    const double spread = c.num_experts * (1.0 - std::pow(miss, f.batch));
    const double rate = bytes / f.step_s;
    rows.push_back({absl::StrCat(f.batch),
                    absl::StrCat(context),
                    Fixed(f.batch / f.step_s, 1),
                    Fixed(1e3 * f.step_s, 3),
                    Fixed(1e3 * f.device_s, 3),
                    Fixed(bytes / 1e9, 2),
                    Fixed(rate / 1e12, 2),
                    Fixed(rate / bench.read_bytes_per_s, 2),
                    Fixed(f.distinct, 1),
                    Fixed(f.distinct / spread, 2)});
  }
  std::cout << FormatTable(rows) << "\n";
  rows = {{"block", "batch", "us/step", "MB/step", "TB/s", "of read"}};
  for (const DecodeFigures& f : all) {
    for (size_t i = 0; i < f.blocks.size(); ++i) {
      const double rate = f.blocks[i].bytes / f.block_s[i];
      rows.push_back({f.blocks[i].name,
                      absl::StrCat(f.batch),
                      Fixed(1e6 * f.block_s[i], 1),
                      Fixed(f.blocks[i].bytes / 1e6, 1),
                      Fixed(rate / 1e12, 2),
                      Fixed(rate / bench.read_bytes_per_s, 2)});
    }
  }
  std::cout << FormatTable(rows) << std::flush;
}

absl::Status BenchPrefill() {
  ASSIGN_OR_RETURN(
      const auto prompts,
      Counts(absl::GetFlag(FLAGS_prompt), "8192", limits::kStepRowsMax));
  const int32_t longest = *std::max_element(prompts.begin(), prompts.end());
  ASSIGN_OR_RETURN(ShapeBench bench, PrepareShape(1, longest, longest));
  PrintHead(bench);
  std::vector<std::vector<std::string>> rows = {{"prompt", "tok/s", "ms"}};
  for (const int32_t prompt : prompts) {
    ShapeSteps made(1, prompt, prompt, bench.request.config.vocab_size);
    std::vector<double> times;
    for (int32_t i = 0; i <= absl::GetFlag(FLAGS_repeats); ++i) {
      const absl::Time start = RealClock()->Now();
      RETURN_IF_ERROR(
          bench.decoder()
              .Run(made.At(0), made.tokens(), made.wanted(), nullptr)
              .status());
      if (i == 0) continue;  // to warm up
      times.push_back(absl::ToDoubleSeconds(RealClock()->Now() - start));
    }
    const double seconds = Median(times);
    rows.push_back({absl::StrCat(prompt),
                    Fixed(prompt / seconds, 0),
                    Fixed(1e3 * seconds, 1)});
  }
  std::cout << FormatTable(rows) << std::flush;
  return absl::OkStatus();
}

int RunPrefill(const std::vector<std::string>&) {
  const absl::Status status = BenchPrefill();
  return status.ok() ? 0 : Fail("bench prefill", status);
}

}  // namespace

absl::Status BenchShapeDecode() {
  ASSIGN_OR_RETURN(const auto batches, Counts(absl::GetFlag(FLAGS_batch), "1"));
  const int32_t context = std::max(absl::GetFlag(FLAGS_context), 1);
  const int32_t largest = *std::max_element(batches.begin(), batches.end());
  ASSIGN_OR_RETURN(
      ShapeBench bench,
      PrepareShape(largest, context + absl::GetFlag(FLAGS_steps), largest));
  PrintHead(bench);
  std::vector<DecodeFigures> all;
  for (const int32_t batch : batches) {
    ASSIGN_OR_RETURN(DecodeFigures figures,
                     MeasureDecode(bench, batch, context));
    all.push_back(std::move(figures));
  }
  PrintDecode(bench, context, all);
  return absl::OkStatus();
}

Command BenchPrefillCommand() {
  return {.name = "bench prefill",
          .summary = "Prefill speed of a published shape on a GPU.",
          .usage = "bench prefill --shape SHAPE --weights synthetic",
          .examples =
              "  conclave bench prefill --shape 122b-a10b --weights synthetic "
              "--format mlx4 --prompt 512,8192\n",
          .flags = {"shape",
                    "format",
                    "weights",
                    "layers",
                    "gpus",
                    "form",
                    "group_exchange",
                    "group_shares",
                    "prompt",
                    "repeats",
                    "kv_dtype",
                    "gdn_state",
                    "log_level"},
          .run = RunPrefill};
}

}  // namespace conclave::cli

// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/quantize.h"

#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_format.h"
#include "common/checkpoint/checkpoint.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "coordinator/cli/flags.h"
#include "coordinator/cli/progress.h"
#include "coordinator/quantize/quantize.h"

ABSL_FLAG(std::string, to, "", "mlx4, mlx8 or fp8");
ABSL_DECLARE_FLAG(int32_t, threads);

namespace conclave::cli {
namespace {

absl::Status QuantizeFromFlags() {
  const std::string model = absl::GetFlag(FLAGS_model);
  quantize::QuantizeOptions options;
  options.out = absl::GetFlag(FLAGS_out);
  if (model.empty() || options.out.empty()) {
    return absl::InvalidArgumentError(
        "give --model DIR, --to FORMAT and --out DIR (see --help)");
  }
  ASSIGN_OR_RETURN(const auto format,
                   quantize::ParseTarget(absl::GetFlag(FLAGS_to)));
  ASSIGN_OR_RETURN(const auto source, checkpoint::Checkpoint::Open(model));
  ASSIGN_OR_RETURN(const quantize::Target target,
                   quantize::MakeTarget(*source, format));
  int32_t threads = absl::GetFlag(FLAGS_threads);
  if (threads <= 0) threads = AvailableCores();
  ThreadPool pool(threads, /*spin_us=*/0);
  Progress progress(RealClock(), /*show=*/true);
  uint64_t written = 0;
  RETURN_IF_ERROR(quantize::Quantize(
      *source, target, options, &pool, [&](uint64_t done, uint64_t total) {
        written = total;
        progress.Update("quantize", done, total);
      }));
  std::cout << absl::StrFormat(
      "%s: %.2f GB of weights, from %.2f GB\n",
      options.out,
      static_cast<double>(written) / 1e9,
      static_cast<double>(source->total_tensor_bytes()) / 1e9);
  return absl::OkStatus();
}

int Run(const std::vector<std::string>&) {
  const absl::Status status = QuantizeFromFlags();
  return status.ok() ? 0 : Fail("quantize", status);
}

}  // namespace

Command QuantizeCommand() {
  return {.name = "quantize",
          .summary = "Write a checkpoint in another weight format.",
          .usage = "quantize --model DIR --to FORMAT --out DIR",
          .examples =
              "  conclave quantize --model Qwen3.5-397B-A17B --to mlx4 --out "
              "Qwen3.5-397B-A17B-4bit\n"
              "  conclave quantize --model Qwen3.5-35B-A3B --to fp8 --out "
              "Qwen3.5-35B-A3B-fp8 --threads 8\n",
          .flags = {"model", "to", "out", "threads"},
          .run = Run};
}

}  // namespace conclave::cli

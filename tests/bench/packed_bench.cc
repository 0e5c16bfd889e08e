// SPDX-License-Identifier: Apache-2.0
// Products with packed weights beside bfloat16, one thread. One iteration is
// one call; FLOP/s counts a multiply-add as two, bytes are those of the
// weights as stored.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "kernels/int8.h"
#include "kernels/linear.h"
#include "tests/parity/dense/packed_weight.h"
#include "tests/testing/machine.h"

namespace conclave::kernels {
namespace {

constexpr int64_t kOuts = 4096, kCols = 4096;
constexpr int64_t kRows[] = {1, 8, 64, 512};

void BenchMatMul(benchmark::State& state,
                 const WeightView& w,
                 int64_t rows,
                 Activations activations) {
  Machine machine(Backend::kCpu);
  machine.context.activations = activations;
  const auto x = testing::Seeded(2).Floats(rows * w.cols);
  std::vector<float> out(rows * w.rows);
  for (auto _ : state) {
    CONCLAVE_CHECK(MatMul(machine.context, x, rows, w, out).ok());
  }
  state.counters["FLOP/s"] =
      benchmark::Counter(2.0 * static_cast<double>(rows * w.rows * w.cols),
                         benchmark::Counter::kIsIterationInvariantRate);
  state.SetBytesProcessed(state.iterations() * w.rows * w.row_stride *
                          static_cast<int64_t>(SizeOf(w.dtype)));
}

void RegisterAll() {
  static const std::vector<uint16_t> kHalves(kOuts * kCols, 0x3C00);
  static std::vector<PackedWeight> weights;
  const auto formats = PackedFormats();
  weights.reserve(formats.size());
  for (const PackedFormat& format : formats) {
    weights.emplace_back(3, format, kOuts, kCols);
  }
  for (const int64_t rows : kRows) {
    const auto add = [&](const std::string& name, const WeightView& w) {
      for (const auto a : {Activations::kF32, Activations::kInt8}) {
        const Context context{.activations = a};
        const bool int8 = TakesInt8(context, w);
        if (a == Activations::kInt8 && !int8) continue;
        benchmark::RegisterBenchmark(
            absl::StrCat(name, int8 ? "-int8" : "", "/rows:", rows).c_str(),
            [w, rows, a](benchmark::State& state) {
              BenchMatMul(state, w, rows, a);
            })
            ->UseRealTime();
      }
    };
    add("bf16", {kHalves.data(), DType::kBF16, kOuts, kCols, kCols});
    for (size_t i = 0; i < formats.size(); ++i) {
      add(formats[i].name, weights[i].view());
    }
  }
}

}  // namespace
}  // namespace conclave::kernels

int main(int argc, char** argv) {
  conclave::kernels::RegisterAll();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// Plain against fast twins of the dense blocks. One iteration is one call;
// FLOP/s counts a multiply-add as two.
#include <benchmark/benchmark.h>

#include <bit>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/thread_pool.h"
#include "kernels/linear.h"
#include "kernels/moe.h"
#include "kernels/sampling.h"
#include "tests/testing/machine.h"
#include "tests/testing/seeded.h"

namespace conclave::kernels {
namespace {

using testing::Seeded;

// The plain twins have one thread.
int32_t ThreadsOf(Backend backend) {
  return backend == Backend::kCpu ? AvailableCores() : 1;
}

constexpr int64_t kRows[] = {1, 8, 64, 512};

struct Weight {
  Weight(int64_t rows, int64_t cols) : rows(rows), cols(cols) {
    Seeded seeded(1);
    for (int64_t i = 0; i < rows * cols; ++i) {
      const auto bits =
          std::bit_cast<uint32_t>(static_cast<float>(seeded.Real(0.05)));
      data.push_back(static_cast<uint16_t>(bits >> 16));
    }
  }
  WeightView view() const {
    return {data.data(), DType::kBF16, rows, cols, cols};
  }
  int64_t rows, cols;
  std::vector<uint16_t> data;
};

void CountFlops(benchmark::State& state, double per_call) {
  state.counters["FLOP/s"] = benchmark::Counter(
      per_call, benchmark::Counter::kIsIterationInvariantRate);
}

void BenchMatMul(benchmark::State& state,
                 Backend backend,
                 int64_t rows,
                 int64_t outs,
                 int64_t cols) {
  Machine machine(backend, ThreadsOf(backend));
  const Weight w(outs, cols);
  const auto x = Seeded(2).Floats(rows * cols);
  std::vector<float> out(rows * outs);
  for (auto _ : state) {
    CONCLAVE_CHECK(MatMul(machine.context, x, rows, w.view(), out).ok());
  }
  CountFlops(state, 2.0 * rows * outs * cols);
}

void BenchExperts(benchmark::State& state,
                  Backend backend,
                  int64_t rows,
                  int32_t hidden,
                  int32_t width,
                  int32_t experts,
                  int32_t top_k) {
  Machine machine(backend, ThreadsOf(backend));
  const Weight gate(int64_t{experts} * width, hidden);
  const Weight up(int64_t{experts} * width, hidden);
  const Weight down(int64_t{experts} * hidden, width);
  const auto x = Seeded(3).Floats(rows * hidden);
  std::vector<float> out(rows * hidden), weight;
  std::vector<int32_t> slice, row;
  // Every row takes top_k experts from its own place on: an even load.
  for (int32_t e = 0; e < experts; ++e) {
    for (int32_t r = 0; r < rows; ++r) {
      if ((e + experts - r * 5 % experts) % experts >= top_k) continue;
      slice.push_back(e);
      row.push_back(r);
      weight.push_back(0.25f);
    }
  }
  for (auto _ : state) {
    CONCLAVE_CHECK(
        ExpertFfn(machine.context,
                  {experts, width, hidden, gate.view(), up.view(), down.view()},
                  {slice, row, weight},
                  x,
                  rows,
                  out)
            .ok());
  }
  CountFlops(state, 6.0 * rows * top_k * hidden * width);
}

void BenchRoute(benchmark::State& state,
                Backend backend,
                int64_t rows,
                int64_t hidden,
                int64_t experts,
                int32_t top_k) {
  Machine machine(backend, ThreadsOf(backend));
  const Weight gate(experts, hidden);
  const auto u = Seeded(4).Floats(rows * hidden);
  std::vector<int32_t> ids(rows * top_k);
  std::vector<float> weights(rows * top_k);
  for (auto _ : state) {
    CONCLAVE_CHECK(
        Route(machine.context, gate.view(), u, rows, top_k, ids, weights).ok());
  }
  CountFlops(state, 2.0 * rows * hidden * experts);
}

void BenchShared(benchmark::State& state,
                 Backend backend,
                 int64_t rows,
                 int64_t hidden,
                 int64_t width) {
  Machine machine(backend, ThreadsOf(backend));
  const Weight gate(width, hidden), down(hidden, width), router(1, hidden);
  const SharedExpertWeights weights{
      gate.view(), gate.view(), down.view(), router.view()};
  const auto u = Seeded(5).Floats(rows * hidden);
  std::vector<float> out(rows * hidden);
  for (auto _ : state) {
    CONCLAVE_CHECK(SharedExpert(machine.context, weights, u, rows, out).ok());
  }
  CountFlops(state, 6.0 * rows * hidden * width);
}

void BenchNorm(benchmark::State& state,
               Backend backend,
               int64_t rows,
               int64_t hidden) {
  Machine machine(backend, ThreadsOf(backend));
  const auto x = Seeded(6).Floats(rows * hidden);
  const auto w = Seeded(7).Floats(hidden);
  std::vector<float> out(rows * hidden);
  for (auto _ : state) {
    CONCLAVE_CHECK(RmsNorm(machine.context, x, rows, w, 1e-6f, out).ok());
  }
}

void BenchEmbed(benchmark::State& state,
                Backend backend,
                int64_t rows,
                int64_t hidden) {
  Machine machine(backend, ThreadsOf(backend));
  const Weight table(2048, hidden);
  std::vector<int32_t> ids(rows);
  for (int64_t r = 0; r < rows; ++r) ids[r] = static_cast<int32_t>(r * 3);
  std::vector<float> out(rows * hidden);
  for (auto _ : state) {
    CONCLAVE_CHECK(Embed(machine.context, table.view(), ids, out).ok());
  }
}

void BenchSampling(benchmark::State& state, Backend backend, int64_t vocab) {
  Machine machine(backend, ThreadsOf(backend));
  const auto logits = Seeded(8).Floats(vocab, 10.0);
  std::vector<int32_t> ids(20);
  for (auto _ : state) {
    benchmark::DoNotOptimize(ArgMax(machine.context, logits));
    benchmark::DoNotOptimize(LogSumExp(machine.context, logits));
    CONCLAVE_CHECK(TopK(machine.context, logits, ids).ok());
  }
}

template <class... Args>
void Register(const std::string& name,
              void (*bench)(benchmark::State&, Backend, Args...),
              Args... args) {
  for (Backend backend : {Backend::kCpuPlain, Backend::kCpu}) {
    const char* form = backend == Backend::kCpu ? "/fast" : "/plain";
    benchmark::RegisterBenchmark(
        (name + form).c_str(),
        [=](benchmark::State& state) { bench(state, backend, args...); })
        ->UseRealTime();
  }
}

void RegisterAll() {
  for (int64_t rows : kRows) {
    const auto name = [&](const char* block) {
      return absl::StrCat(block, "/rows:", rows);
    };
    Register(name("tiny/qkv"), BenchMatMul, rows, int64_t{1024}, int64_t{256});
    Register(name("tiny/z"), BenchMatMul, rows, int64_t{512}, int64_t{256});
    Register(name("tiny/out"), BenchMatMul, rows, int64_t{256}, int64_t{512});
    Register(name("tiny/head"), BenchMatMul, rows, int64_t{2048}, int64_t{256});
    Register(
        name("tiny/route"), BenchRoute, rows, int64_t{256}, int64_t{16}, 4);
    Register(name("tiny/experts"), BenchExperts, rows, 256, 64, 16, 4);
    Register(name("tiny/shared"), BenchShared, rows, int64_t{256}, int64_t{64});
    Register(name("tiny/norm"), BenchNorm, rows, int64_t{256});
    Register(name("tiny/embed"), BenchEmbed, rows, int64_t{256});
    Register(name("mid/qkv"), BenchMatMul, rows, int64_t{4096}, int64_t{1024});
    Register(
        name("mid/route"), BenchRoute, rows, int64_t{1024}, int64_t{64}, 8);
    Register(name("mid/experts"), BenchExperts, rows, 1024, 256, 64, 8);
    Register(
        name("mid/shared"), BenchShared, rows, int64_t{1024}, int64_t{256});
    Register(name("mid/norm"), BenchNorm, rows, int64_t{1024});
  }
  Register("tiny/sampling", BenchSampling, int64_t{2048});
  Register("large/sampling", BenchSampling, int64_t{248320});
}

}  // namespace
}  // namespace conclave::kernels

int main(int argc, char** argv) {
  conclave::kernels::RegisterAll();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

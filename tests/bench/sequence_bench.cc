// SPDX-License-Identifier: Apache-2.0
// Plain against fast twins of Gated DeltaNet and gated attention, between the
// projections (blocks_bench.cc times those). One iteration is one call for one
// layer.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/thread_pool.h"
#include "kernels/sequence_forms.h"
#include "tests/testing/machine.h"
#include "tests/testing/seeded.h"

namespace conclave::kernels {
namespace {

using testing::Seeded;

// The plain twins have one thread.
int32_t ThreadsOf(Backend backend) {
  return backend == Backend::kCpu ? AvailableCores() : 1;
}

// `sequences` of `rows` rows each, at `position`.
struct Steps {
  Steps(int32_t sequences, int32_t rows, int32_t position, bool chunked) {
    const int32_t blocks = (position + rows + 63) / 64;
    for (int32_t end = 64; chunked && end < rows; end += 64) {
      cells.push_back(end);
    }
    if (chunked) cells.push_back(rows);
    for (int32_t i = 0; i < sequences * blocks; ++i) kv_blocks.push_back(i);
    for (int32_t i = 0; i < sequences; ++i) slots.push_back(i);
    for (int32_t i = 0; i < sequences; ++i) {
      list.push_back(
          {.row_begin = i * rows,
           .rows = rows,
           .position = position,
           .cells = cells,
           .state_slot_in = i,
           .state_slots_out = std::span(slots).subspan(i, 1),
           .kv_blocks = std::span(kv_blocks).subspan(i * blocks, blocks)});
    }
    batch = {.sequences = list, .rows = sequences * rows};
  }
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;
  std::vector<int32_t> cells, slots, kv_blocks;
  std::vector<SequenceRows> list;
  StepBatch batch;
};

struct GdnCase {
  int32_t key_heads, value_heads, sequences, rows;
  bool chunked;
};

void BenchGdn(benchmark::State& state, Backend backend, GdnCase test) {
  const GdnShape s{.hidden = 1,
                   .key_heads = test.key_heads,
                   .value_heads = test.value_heads,
                   .key_dim = 128,
                   .value_dim = 128,
                   .conv_kernel = 4};
  Machine machine(backend, ThreadsOf(backend));
  const Steps steps(test.sequences, test.rows, 0, test.chunked);
  const size_t values = size_t{128} * s.value_heads;
  const size_t count = steps.batch.rows;
  const auto taps = Seeded(1).Floats(s.channels() * 4);
  const auto gates = Seeded(2).Floats(s.value_heads);
  const auto norm = Seeded(3).Floats(128);
  GdnWeights weights;
  weights.conv = taps;
  weights.a_log = gates;
  weights.dt_bias = gates;
  weights.norm = norm;
  std::vector<float> conv(test.sequences * 3 * s.channels());
  std::vector<float> recurrent(test.sequences * values * 128);
  const auto mixed = Seeded(4).Floats(count * s.channels());
  const auto z = Seeded(5).Floats(count * values);
  const auto ab = Seeded(6).Floats(count * s.value_heads);
  std::vector<float> y(count * values);
  const GdnState states{conv, recurrent};
  const GdnRows rows{.mixed = mixed, .z = z, .b = ab, .a = ab, .y = y};
  for (auto _ : state) {
    if (backend == Backend::kCpu) {
      fast::Gdn(machine.context, s, weights, states, steps.batch, rows);
      continue;
    }
    for (const SequenceRows& sequence : steps.list) {
      const auto part = [&](auto all, size_t cols) {
        return all.subspan(sequence.row_begin * cols, test.rows * cols);
      };
      plain::Gdn(machine.context,
                 s,
                 weights,
                 states,
                 sequence,
                 {.mixed = part(rows.mixed, s.channels()),
                  .z = part(rows.z, values),
                  .b = part(rows.b, s.value_heads),
                  .a = part(rows.a, s.value_heads),
                  .y = part(rows.y, values)});
    }
  }
  state.SetItemsProcessed(state.iterations() * steps.batch.rows);
}

struct AttentionCase {
  int32_t heads, sequences, rows, position;
};

void BenchAttention(benchmark::State& state,
                    Backend backend,
                    AttentionCase test) {
  const AttentionShape s{.hidden = 1,
                         .heads = test.heads,
                         .kv_heads = 2,
                         .head_dim = 256,
                         .rotary_dim = 64};
  Machine machine(backend, ThreadsOf(backend));
  const Steps steps(test.sequences, test.rows, test.position, false);
  const size_t width = size_t{256} * s.heads;
  const size_t count = steps.batch.rows;
  const auto norm = Seeded(1).Floats(256);
  AttentionWeights weights;
  weights.q_norm = norm;
  weights.k_norm = norm;
  auto cache = Seeded(2).Floats(steps.kv_blocks.size() * 4 * 64 * 256);
  auto q = Seeded(3).Floats(count * 2 * width);
  const auto kv = Seeded(4).Floats(count * 512);
  std::vector<float> y(count * width);
  const AttentionRows rows{.q = q, .k = kv, .v = kv, .y = y};
  for (auto _ : state) {
    if (backend == Backend::kCpu) {
      fast::Attention(machine.context, s, weights, {cache}, steps.batch, rows);
      continue;
    }
    for (const SequenceRows& sequence : steps.list) {
      const auto part = [&](auto all, size_t cols) {
        return all.subspan(sequence.row_begin * cols, test.rows * cols);
      };
      plain::Attention(machine.context,
                       s,
                       weights,
                       {cache},
                       sequence,
                       {.q = part(rows.q, 2 * width),
                        .k = part(rows.k, 512),
                        .v = part(rows.v, 512),
                        .y = part(rows.y, width)});
    }
  }
  state.SetItemsProcessed(state.iterations() * steps.batch.rows);
}

template <class Case>
void Register(const std::string& name,
              void (*bench)(benchmark::State&, Backend, Case),
              Case test) {
  for (Backend backend : {Backend::kCpuPlain, Backend::kCpu}) {
    const char* form = backend == Backend::kCpu ? "/fast" : "/plain";
    benchmark::RegisterBenchmark(
        (name + form).c_str(),
        [=](benchmark::State& state) { bench(state, backend, test); })
        ->UseRealTime();
  }
}

void RegisterAll() {
  for (const bool large : {false, true}) {
    const std::string model = large ? "large" : "tiny";
    const int32_t keys = large ? 16 : 2;
    const int32_t values = large ? 64 : 4;
    const int32_t heads = large ? 32 : 4;
    for (const int32_t n : {1, 8}) {
      Register(absl::StrCat(model, "/gdn/decode:", n),
               BenchGdn,
               GdnCase{keys, values, n, 1, false});
      Register(absl::StrCat(model, "/attention/decode:", n, "/at:1000"),
               BenchAttention,
               AttentionCase{heads, n, 1, 1000});
    }
    Register(
        model + "/gdn/verify:4", BenchGdn, GdnCase{keys, values, 1, 4, false});
    for (const int32_t n : {7, 64, 256}) {
      Register(absl::StrCat(model, "/gdn/prefill:", n),
               BenchGdn,
               GdnCase{keys, values, 1, n, true});
      Register(absl::StrCat(model, "/attention/prefill:", n, "/at:0"),
               BenchAttention,
               AttentionCase{heads, 1, n, 0});
    }
    Register(model + "/attention/prefill:64/at:1000",
             BenchAttention,
             AttentionCase{heads, 1, 64, 1000});
  }
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

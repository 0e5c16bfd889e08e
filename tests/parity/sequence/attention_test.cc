// SPDX-License-Identifier: Apache-2.0
// Gated attention against a double-precision reference without blocks.
#include <algorithm>
#include <cmath>

#include "tests/parity/sequence/attention_fixture.h"

namespace conclave::kernels {
namespace {

constexpr double kTolerance = 1e-5;

using Doubles = std::vector<double>;

Doubles Project(const TestWeight& w, const float* u) {
  Doubles y(w.rows);
  for (int64_t o = 0; o < w.rows; ++o) {
    for (int64_t i = 0; i < w.cols; ++i) {
      y[o] += static_cast<double>(w.data[o * w.cols + i]) * u[i];
    }
  }
  return y;
}

void NormAndRotate(const AttentionShape& s,
                   const std::vector<float>& w,
                   int32_t position,
                   double* x) {
  double squares = 0;
  for (int32_t i = 0; i < s.head_dim; ++i) squares += x[i] * x[i];
  for (int32_t i = 0; i < s.head_dim; ++i) {
    x[i] *= w[i] / std::sqrt(squares / s.head_dim + s.eps);
  }
  const int32_t half = s.rotary_dim / 2;
  for (int32_t i = 0; i < half; ++i) {
    const double angle =
        position / std::pow(s.rope_theta, 2.0 * i / s.rotary_dim);
    const double a = x[i], b = x[i + half];
    x[i] = a * std::cos(angle) - b * std::sin(angle);
    x[i + half] = b * std::cos(angle) + a * std::sin(angle);
  }
}

// A whole sequence from position 0; docs/qwen3.5-moe 3.4 word by word.
std::vector<float> Reference(const AttentionLayer& layer,
                             const std::vector<float>& u) {
  const AttentionShape& s = layer.shape;
  const auto rows = static_cast<int32_t>(u.size()) / s.hidden;
  std::vector<Doubles> keys, values;
  std::vector<float> out;
  for (int32_t t = 0; t < rows; ++t) {
    const float* x = &u[t * s.hidden];
    Doubles q = Project(layer.q, x);
    keys.push_back(Project(layer.k, x));
    values.push_back(Project(layer.v, x));
    for (int32_t g = 0; g < s.kv_heads; ++g) {
      NormAndRotate(s, layer.k_norm, t, &keys[t][g * s.head_dim]);
    }
    std::vector<float> joined;
    for (int32_t h = 0; h < s.heads; ++h) {
      double* query = &q[2 * h * s.head_dim];
      NormAndRotate(s, layer.q_norm, t, query);
      const int32_t at = h / (s.heads / s.kv_heads) * s.head_dim;
      Doubles weight(t + 1);
      for (int32_t p = 0; p <= t; ++p) {
        for (int32_t i = 0; i < s.head_dim; ++i) {
          weight[p] += query[i] * keys[p][at + i] / std::sqrt(s.head_dim);
        }
      }
      const double most = *std::max_element(weight.begin(), weight.end());
      double total = 0;
      for (double& w : weight) total += w = std::exp(w - most);
      for (int32_t i = 0; i < s.head_dim; ++i) {
        double sum = 0;
        for (int32_t p = 0; p <= t; ++p) {
          sum += weight[p] / total * values[p][at + i];
        }
        const double gate = 1 / (1 + std::exp(-query[s.head_dim + i]));
        joined.push_back(static_cast<float>(sum * gate));
      }
    }
    for (double y : Project(layer.o, joined.data())) {
      out.push_back(static_cast<float>(y));
    }
  }
  return out;
}

struct Case {
  AttentionShape shape;
  int32_t rows;
  std::vector<int32_t> blocks;  // permuted, with a gap that stays untouched
};

std::vector<Case> Cases() {
  return {{TinyAttention(), 131, {4, 0, 2}},
          {OddAttention(), 23, {6, 1, 5, 0, 2}},
          {{.hidden = 16,
            .heads = 8,
            .kv_heads = 1,
            .head_dim = 64,
            .rotary_dim = 64,
            .block_tokens = 16},
           40,
           {3, 0, 2}}};
}

void ExpectReference(Machine& machine, const Case& test) {
  SCOPED_TRACE(::testing::Message() << "head_dim " << test.shape.head_dim);
  AttentionLayer layer(test.shape, 8);
  const auto u = layer.Input(3, test.rows);
  const auto out = layer.Run(machine, {{.u = u, .kv_blocks = test.blocks}});
  EXPECT_LT(Error(out, Reference(layer, u)), kTolerance);
}

class AttentionForms : public ::testing::TestWithParam<Backend> {};

TEST_P(AttentionForms, EqualsTheReference) {
  Machine machine(GetParam());
  for (const Case& test : Cases()) ExpectReference(machine, test);
}

TEST_P(AttentionForms, RowsInPiecesEqualAtOnceBitForBit) {
  Machine machine(GetParam());
  for (const Case& test : Cases()) {
    AttentionLayer whole(test.shape, 8);
    const size_t hidden = test.shape.hidden;
    const auto u = whole.Input(3, test.rows);
    const auto out = whole.Run(machine, {{.u = u, .kv_blocks = test.blocks}});
    for (int32_t size : {1, 2, 3, 17}) {
      AttentionLayer pieces(test.shape, 8);
      std::vector<float> outs;
      for (int32_t t = 0; t < test.rows; t += size) {
        const size_t count = std::min(size, test.rows - t) * hidden;
        const auto part = pieces.Run(machine,
                                     {{.u = Slice(u, t * hidden, count),
                                       .position = t,
                                       .kv_blocks = test.blocks}});
        outs.insert(outs.end(), part.begin(), part.end());
      }
      EXPECT_EQ(Bits(outs), Bits(out));
      EXPECT_EQ(Bits(pieces.cache), Bits(whole.cache));
    }
  }
}

TEST_P(AttentionForms, WritesItsPositionsAndNothingElse) {
  Machine machine(GetParam());
  const AttentionShape s = OddAttention();
  AttentionLayer layer(s, 8);
  layer.FillBlocks(9);
  const auto before = layer.cache;
  const std::vector<int32_t> blocks = {6, 1, 5};
  layer.Run(machine,
            {{.u = layer.Input(1, 4), .position = 8, .kv_blocks = blocks}});
  const size_t run = size_t{1} * s.block_tokens * s.head_dim;
  for (size_t i = 0; i < before.size(); ++i) {
    const size_t block = i / layer.BlockSize();
    const auto found = std::find(blocks.begin(), blocks.end(), block);
    const size_t position =
        (found - blocks.begin()) * s.block_tokens + i % run / s.head_dim;
    const bool written =
        found != blocks.end() && position >= 8 && position < 12;
    ASSERT_EQ(layer.cache[i] != before[i], written) << i;
  }
}

TEST_P(AttentionForms, BatchEqualsEachAloneBitForBit) {
  Machine machine(GetParam(), 2);
  for (const AttentionShape& shape : {OddAttention(), TinyAttention()}) {
    AttentionLayer together(shape, 9);
    together.FillBlocks(1);
    AttentionLayer alone(shape, 9);
    alone.FillBlocks(1);
    const std::vector<Piece> pieces = {
        {.u = together.Input(1, 7), .kv_blocks = {3, 8}},
        {.u = together.Input(2, 1), .position = 9, .kv_blocks = {5, 0}},
        {.u = together.Input(3, 2), .position = 4, .kv_blocks = {7, 2}},
        {.u = together.Input(4, 1), .kv_blocks = {6}}};
    const auto out = together.Run(machine, pieces);
    std::vector<float> outs;
    for (const Piece& piece : pieces) {
      const auto part = alone.Run(machine, {piece});
      outs.insert(outs.end(), part.begin(), part.end());
    }
    EXPECT_EQ(Bits(out), Bits(outs));
    EXPECT_EQ(Bits(together.cache), Bits(alone.cache));
  }
}

INSTANTIATE_TEST_SUITE_P(Twins,
                         AttentionForms,
                         ::testing::Values(Backend::kCpuPlain, Backend::kCpu),
                         [](const auto& info) {
                           return info.param == Backend::kCpu ? "Fast"
                                                              : "Plain";
                         });

class AttentionFast : public EveryTarget {};

TEST_P(AttentionFast, EqualsTheReference) {
  Machine machine(Backend::kCpu, 2);
  for (const Case& test : Cases()) ExpectReference(machine, test);
}

TEST_P(AttentionFast, LateRowsEqualPlain) {
  Machine plain(Backend::kCpuPlain);
  Machine fast(Backend::kCpu);
  AttentionLayer a(TinyAttention(), 4), b(TinyAttention(), 4);
  a.FillBlocks(4);
  b.FillBlocks(4);
  const Piece piece{
      .u = a.Input(5, 5), .position = 187, .kv_blocks = {2, 0, 3}};
  EXPECT_LT(Error(b.Run(fast, {piece}), a.Run(plain, {piece})), kTolerance);
  EXPECT_LT(Error(b.cache, a.cache), kTolerance);
}

INSTANTIATE_TEST_SUITE_P(Targets,
                         AttentionFast,
                         ::testing::ValuesIn(SupportedSimdTargets()),
                         TargetOf);

}  // namespace
}  // namespace conclave::kernels

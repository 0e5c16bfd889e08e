// SPDX-License-Identifier: Apache-2.0
// The vector of docs/qwen3.5-moe appendix C. What lies around the delta rule is
// made transparent: the convolution passes the current row, its SiLU is
// inverted, the gated norm divides by a large constant and multiplies it back.
#include <cmath>

#include "kernels/sequence_forms.h"
#include "tests/parity/sequence/fixture.h"

namespace conclave::kernels {
namespace {

constexpr int32_t kRows = 5;
constexpr GdnShape kShape{.hidden = 1,
                          .key_heads = 1,
                          .value_heads = 1,
                          .key_dim = 4,
                          .value_dim = 3,
                          .conv_kernel = 4,
                          .eps = 1e8f};

constexpr double kOutputs[kRows][3] = {
    {-0.032549712, 0.006277598, 0.046285746},
    {-0.105582700, 0.042947831, -0.124041570},
    {-0.040855918, 0.015575820, -0.030934979},
    {0.095227460, -0.131726508, 0.133703877},
    {-0.065672703, 0.047861636, -0.106060861}};
constexpr double kState[4][3] = {{-0.037880022, -0.261122657, -0.211502114},
                                 {0.323641439, -0.561533644, 0.317147659},
                                 {0.085029866, 0.199897366, 0.227860604},
                                 {-0.119484854, 0.087086438, -0.125072614}};

// The x > -1.27 with x * sigmoid(x) == y, y > -0.278.
float InverseSilu(double y) {
  double low = -1.27, high = 4;
  for (int i = 0; i < 80; ++i) {
    const double x = (low + high) / 2;
    (x / (1 + std::exp(-x)) < y ? low : high) = x;
  }
  return static_cast<float>(low);
}

// Inputs are scaled so that SiLU reaches them: norms drop the scale of q and
// k, but for their epsilon (the tolerance); outputs and state carry v's.
constexpr double kScale = 0.25;
constexpr double kTolerance = 2e-5;

void ExpectVector(Backend backend, const std::vector<int32_t>& cells) {
  SCOPED_TRACE(::testing::Message() << cells.size() << " cells");
  testing::Seeded q(1), k(2), v(3), a(4), b(5);
  std::vector<float> mixed;
  for (int32_t t = 0; t < kRows; ++t) {
    for (int i = 0; i < 4; ++i) mixed.push_back(InverseSilu(q.Real(kScale)));
    for (int i = 0; i < 4; ++i) mixed.push_back(InverseSilu(k.Real(kScale)));
    for (int i = 0; i < 3; ++i) mixed.push_back(InverseSilu(v.Real(kScale)));
  }
  const auto as = a.Floats(kRows, 2.0);
  const auto bs = b.Floats(kRows, 3.0);
  const std::vector<float> z(kRows * 3, InverseSilu(1.0));
  const std::vector<float> norm(3, std::sqrt(kShape.eps));
  std::vector<float> taps;
  for (int c = 0; c < kShape.channels(); ++c) {
    taps.insert(taps.end(), {0, 0, 0, 1});
  }
  const std::vector<float> a_log = {0.5f}, dt_bias = {-1.0f};
  GdnWeights weights;
  weights.conv = taps;
  weights.a_log = a_log;
  weights.dt_bias = dt_bias;
  weights.norm = norm;
  std::vector<float> conv(3 * kShape.channels()), state(12), y(kRows * 3);
  Machine machine(backend);
  const std::vector<int32_t> slots = {0};
  SequenceRows sequence;
  sequence.rows = kRows;
  sequence.cells = cells;
  sequence.state_slots_out = slots;
  const GdnState states{conv, state};
  const GdnRows rows{.mixed = mixed, .z = z, .b = bs, .a = as, .y = y};
  if (backend == Backend::kCpuPlain) {
    plain::Gdn(machine.context, kShape, weights, states, sequence, rows);
  } else {
    fast::Gdn(machine.context,
              kShape,
              weights,
              states,
              {.sequences = {&sequence, 1}, .rows = kRows},
              rows);
  }
  for (int32_t i = 0; i < kRows * 3; ++i) {
    EXPECT_NEAR(y[i] / kScale, kOutputs[i / 3][i % 3], kTolerance) << i;
  }
  for (int32_t i = 0; i < 12; ++i) {
    EXPECT_NEAR(state[i] / kScale, kState[i / 3][i % 3], kTolerance) << i;
  }
}

void ExpectVectorInAllForms(Backend backend) {
  ExpectVector(backend, {});
  ExpectVector(backend, {5});
  ExpectVector(backend, {2, 5});
  ExpectVector(backend, {1, 2, 3, 4, 5});
}

TEST(GdnVector, Plain) { ExpectVectorInAllForms(Backend::kCpuPlain); }

class GdnVectorFast : public EveryTarget {};

TEST_P(GdnVectorFast, Fast) { ExpectVectorInAllForms(Backend::kCpu); }

INSTANTIATE_TEST_SUITE_P(Targets,
                         GdnVectorFast,
                         ::testing::ValuesIn(SupportedSimdTargets()),
                         TargetOf);

}  // namespace
}  // namespace conclave::kernels

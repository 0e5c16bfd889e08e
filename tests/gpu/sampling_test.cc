// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "coordinator/sample/sampler.h"
#include "kernels/device_sampling.h"
#include "tests/gpu/device_values.h"
#include "tests/gpu/require_gpu.h"
#include "tests/testing/seeded.h"

namespace conclave::kernels {
namespace {

using testing::Seeded;

// The last vocabulary's rows are longer than what is used, and of odd length.
struct Shape {
  int32_t vocab = 0;
  int32_t vocab_used = 0;
};
constexpr Shape kSmall = {2048, 2048};
constexpr Shape kModel = {248320, 248320};
constexpr Shape kOdd = {5011, 4999};

// One row: what the host is asked and what the device is.
struct Row {
  SamplingParams params;
  std::vector<int32_t> prompt, generated;
  uint64_t seed = 0;
  int32_t position = 0;
};

DeviceSampling ForDevice(const Row& row, int32_t counts_row) {
  return {.temperature = row.params.temperature,
          .top_p = row.params.top_p,
          .min_p = row.params.min_p,
          .presence_penalty = row.params.presence_penalty,
          .frequency_penalty = row.params.frequency_penalty,
          .repetition_penalty = row.params.repetition_penalty,
          .uniform =
              sample::UniformAt(row.seed, static_cast<uint64_t>(row.position)),
          .top_k = row.params.top_k,
          .counts_row = counts_row};
}

// What the host chooses from row r of the logits.
int32_t OnHost(const Row& row,
               const Shape& shape,
               const std::vector<float>& logits,
               size_t r) {
  sample::Sampler sampler(row.params, row.seed, shape.vocab_used, row.prompt);
  for (const int32_t id : row.generated) sampler.Accept(id);
  const auto vocab = static_cast<size_t>(shape.vocab);
  return sampler.Sample(std::span(logits).subspan(r * vocab, vocab),
                        row.position);
}

std::vector<int32_t> CountsOf(const Row& row, int32_t vocab_used) {
  std::vector<int32_t> out(static_cast<size_t>(vocab_used));
  for (const int32_t id : row.generated) ++out[static_cast<size_t>(id)];
  for (const int32_t id : row.prompt) {  // may come more than once
    int32_t& count = out[static_cast<size_t>(id)];
    count = std::min(count, -1 - count);
  }
  return out;
}

// What one launch reads and writes, in device memory.
struct Launched {
  Shape shape;
  int32_t rows = 0;
  DeviceBuffer logits{}, how{}, counts{}, scratch{}, token{};
};

class Device {
 public:
  Device() {
    auto queue = DeviceQueue::Create(0);
    EXPECT_TRUE(queue.ok()) << queue.status();
    if (queue.ok()) queue_ = *std::move(queue);
  }
  DeviceQueue& queue() const { return *queue_; }
  void Expect(const absl::Status& got) { EXPECT_TRUE(got.ok()) << got; }

  // Counts lie in the opposite order, so that counts_row is looked at.
  Launched Prepare(const std::vector<Row>& rows,
                   const Shape& shape,
                   const std::vector<float>& logits) {
    std::vector<DeviceSampling> how;
    std::vector<int32_t> counts;
    for (size_t i = 0; i < rows.size(); ++i) {
      const size_t opposite = rows.size() - 1 - i;
      how.push_back(ForDevice(rows[i], static_cast<int32_t>(opposite)));
      const auto of = CountsOf(rows[opposite], shape.vocab_used);
      counts.insert(counts.end(), of.begin(), of.end());
    }
    const auto n = static_cast<int32_t>(rows.size());
    Launched out = {shape, n, Up(queue(), logits), Up(queue(), how)};
    out.counts = Up(queue(), counts);
    out.scratch = Room(queue(), SamplingScratchBytes(n, shape.vocab_used));
    out.token = Room(queue(), rows.size() * sizeof(int32_t));
    Expect(queue().Fill(out.scratch, 0x5a));  // nobody may rely on it
    return out;
  }
  absl::Status Sample(const Launched& on) {
    return DeviceSample(&queue(),
                        on.logits.as<float>(),
                        on.rows,
                        on.shape.vocab,
                        on.shape.vocab_used,
                        on.how.as<DeviceSampling>(),
                        on.counts.as<int32_t>(),
                        on.scratch.as<void>(),
                        on.token.as<int32_t>());
  }
  void Count(const Launched& on) {
    Expect(DeviceCount(&queue(),
                       on.token.as<int32_t>(),
                       on.how.as<DeviceSampling>(),
                       on.rows,
                       on.shape.vocab_used,
                       on.counts.as<int32_t>()));
  }
  std::vector<int32_t> Tokens(const Launched& on) {
    return Down(queue(), on.token.as<int32_t>(), on.token.bytes() / 4);
  }

  // Twice, with the same scratch; both must choose the same.
  std::vector<int32_t> Choose(const std::vector<Row>& rows,
                              const Shape& shape,
                              const std::vector<float>& logits) {
    const Launched on = Prepare(rows, shape, logits);
    Expect(Sample(on));
    const auto first = Tokens(on);
    Expect(queue().Fill(on.token, 0x5a));
    Expect(Sample(on));
    EXPECT_EQ(Tokens(on), first);
    return first;
  }

  void ExpectAsHost(const std::vector<Row>& rows,
                    const Shape& shape,
                    const std::vector<float>& logits) {
    const auto got = Choose(rows, shape, logits);
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(got[i], OnHost(rows[i], shape, logits, i))
          << "row " << i << " of " << rows.size() << ", temperature "
          << rows[i].params.temperature << ", top_k " << rows[i].params.top_k;
    }
  }

 private:
  std::unique_ptr<DeviceQueue> queue_;
};

// Bell-shaped, as a model's are. step > 0: multiples of it, so many are equal.
// Ids that are not used are larger than all others.
std::vector<float> Logits(Seeded* random,
                          size_t rows,
                          const Shape& shape,
                          float step = 0) {
  std::vector<float> out;
  for (size_t r = 0; r < rows; ++r) {
    for (int32_t id = 0; id < shape.vocab; ++id) {
      double x = 0;
      for (int i = 0; i < 6; ++i) x += random->Real(4);
      if (step > 0) x = std::round(x / step) * step;
      out.push_back(id < shape.vocab_used ? static_cast<float>(x) : 100.0f);
    }
  }
  return out;
}

// Number i of a walk through all combinations of the parameters.
Row Combination(size_t i, Seeded* random, int32_t vocab_used) {
  const auto pick = [&i](const auto& values) {
    const auto value = values[i % std::size(values)];
    i /= std::size(values);
    return value;
  };
  Row row;
  row.params.temperature = pick(std::vector<double>{0, 0.7, 1, 1.7});
  row.params.top_k = pick(std::vector<int32_t>{0, 20, 1, 4500});
  row.params.top_p = pick(std::vector<double>{1, 0.95, 0.3});
  row.params.min_p = pick(std::vector<double>{0, 0.05});
  if (pick(std::vector<bool>{false, true})) {
    row.params.presence_penalty = 0.7;
    row.params.frequency_penalty = 0.3;
    row.params.repetition_penalty = 1.3;
  }
  for (int n = 0; n < 400; ++n) {
    row.prompt.push_back(random->Int(vocab_used));
    row.generated.push_back(random->Int(vocab_used));
    if (n % 5 == 0) row.generated.push_back(row.prompt.back());
    if (n % 7 == 0) row.generated.push_back(row.generated.back());
  }
  row.seed = random->Next();
  row.position = random->Int(1 << 20);
  return row;
}
constexpr size_t kCombinations = 4 * 4 * 3 * 2 * 2;

std::vector<Row> Combinations(size_t from, size_t n, Seeded* random, Shape of) {
  std::vector<Row> out;
  while (out.size() < n) {
    out.push_back(Combination(from + out.size(), random, of.vocab_used));
  }
  return out;
}

TEST(DeviceSampling, ChoosesAsTheHost) {
  CONCLAVE_REQUIRE_GPU();
  Device device;
  Seeded random(1);
  for (const Shape& shape : {kSmall, kOdd, kModel}) {
    const size_t seeds = shape.vocab == kModel.vocab ? 1 : 8;
    for (size_t i = 0; i < kCombinations * seeds; i += 64) {
      const auto rows = Combinations(i, 64, &random, shape);
      device.ExpectAsHost(rows, shape, Logits(&random, 64, shape));
    }
  }
}

// Equal logits lie across every border: the lower ids are kept.
TEST(DeviceSampling, KeepsTheLowestOfEquals) {
  CONCLAVE_REQUIRE_GPU();
  Device device;
  Seeded random(2);
  for (const Shape& shape : {kSmall, kOdd, kModel}) {
    for (const float step : {0.25f, 4.0f, 1000.0f}) {  // the last: all are 0
      const auto rows = Combinations(64, 64, &random, shape);
      device.ExpectAsHost(rows, shape, Logits(&random, 64, shape, step));
    }
  }
}

TEST(DeviceSampling, GreedyTakesTheLowestOfEquals) {
  CONCLAVE_REQUIRE_GPU();
  Device device;
  Seeded random(8);
  for (const Shape& shape : {kSmall, kOdd, kModel}) {
    std::vector<float> logits(static_cast<size_t>(shape.vocab), -1.0f);
    const auto rows = Combinations(0, 1, &random, shape);
    EXPECT_EQ(device.Choose(rows, shape, logits)[0], 0);
    // Zeros of both signs are equal.
    const auto used = static_cast<size_t>(shape.vocab_used);
    logits[used - 1] = 0.0f;
    EXPECT_EQ(device.Choose(rows, shape, logits)[0], shape.vocab_used - 1);
    logits[used / 2] = -0.0f;
    EXPECT_EQ(device.Choose(rows, shape, logits)[0], shape.vocab_used / 2);
  }
}

TEST(DeviceSampling, MixesRows) {
  CONCLAVE_REQUIRE_GPU();
  Device device;
  Seeded random(3);
  for (const size_t n : {1u, 5u, 64u}) {
    const auto rows = Combinations(101, n, &random, kOdd);
    device.ExpectAsHost(rows, kOdd, Logits(&random, n, kOdd));
  }
}

// Far apart, close together and very hot: weights that vanish, and ranks that
// differ in their last bits only.
TEST(DeviceSampling, HoldsAtTheEnds) {
  CONCLAVE_REQUIRE_GPU();
  Device device;
  Seeded random(4);
  for (const float factor : {1e-6f, 50.0f, 1e30f}) {
    for (const double temperature : {1e-3, 2.0}) {
      auto rows = Combinations(64, 64, &random, kOdd);
      for (Row& row : rows) row.params.temperature = temperature;
      auto logits = Logits(&random, rows.size(), kOdd);
      for (float& x : logits) x = x * factor + (factor < 1 ? 3.0f : 0.0f);
      device.ExpectAsHost(rows, kOdd, logits);
    }
  }
}

TEST(DeviceSampling, RowsThatAreNotFiniteStandAlone) {
  CONCLAVE_REQUIRE_GPU();
  Device device;
  Seeded random(5);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float bad[] = {kInfinity, -kInfinity, std::nanf("")};
  const auto rows = Combinations(64, 64, &random, kOdd);
  auto logits = Logits(&random, 64, kOdd);
  constexpr size_t kVocab = kOdd.vocab;
  constexpr size_t kUsed = kOdd.vocab_used;
  for (size_t r = 0; r < 64; ++r) {
    // Every third row; in the others only where nothing is used.
    const size_t at =
        r % 3 == 0 ? r * 77 % kUsed : kUsed + r % (kVocab - kUsed);
    logits[r * kVocab + at] = bad[r / 3 % 3];
  }
  const auto got = device.Choose(rows, kOdd, logits);
  for (size_t r = 0; r < 64; ++r) {
    const int32_t want = r % 3 == 0 ? -1 : OnHost(rows[r], kOdd, logits, r);
    EXPECT_EQ(got[r], want) << r;
  }
}

// 2048 draws of 24 tokens, chi-square of 23 degrees of freedom: above 49.7 in
// one of a thousand seeds; this one is fixed.
TEST(DeviceSampling, DrawsTheModelsDistribution) {
  CONCLAVE_REQUIRE_GPU();
  Device device;
  Seeded random(6);
  constexpr size_t kUsed = 24;
  constexpr Shape kFew = {32, kUsed};
  constexpr size_t kDraws = 2048;
  const auto one = random.Floats(32, 1.5);
  std::vector<float> logits;
  std::vector<Row> rows(kDraws);
  for (size_t i = 0; i < kDraws; ++i) {
    rows[i].seed = 42;
    rows[i].position = static_cast<int32_t>(i);
    logits.insert(logits.end(), one.begin(), one.end());
  }
  std::vector<double> times(kUsed);
  for (const int32_t id : device.Choose(rows, kFew, logits)) {
    ASSERT_TRUE(id >= 0 && id < kFew.vocab_used) << id;
    times[static_cast<size_t>(id)] += 1;
  }
  double total = 0;
  for (size_t id = 0; id < kUsed; ++id) total += std::exp(one[id]);
  double chi_square = 0;
  for (size_t id = 0; id < kUsed; ++id) {
    const double expected = kDraws * std::exp(one[id]) / total;
    chi_square += std::pow(times[id] - expected, 2) / expected;
  }
  EXPECT_LT(chi_square, 49.7);
}

// A recorded step of sampling and counting, replayed: the tokens of a whole
// reply are the host's, penalties included.
TEST(DeviceSampling, FollowsTheHostThroughAReply) {
  CONCLAVE_REQUIRE_GPU();
  Device device;
  Seeded random(7);
  auto rows = Combinations(96, 64, &random, kOdd);  // penalties
  const auto logits = Logits(&random, 64, kOdd, 0.5f);
  const Launched on = device.Prepare(rows, kOdd, logits);
  device.Expect(device.queue().BeginRecording());
  device.Expect(device.Sample(on));
  device.Count(on);
  auto graph = device.queue().EndRecording();
  ASSERT_TRUE(graph.ok()) << graph.status();
  for (int step = 0; step < 12; ++step) {
    std::vector<DeviceSampling> how;
    for (size_t i = 0; i < 64; ++i) {
      rows[i].position = step;
      how.push_back(ForDevice(rows[i], static_cast<int32_t>(63 - i)));
    }
    device.Expect(
        device.queue().Upload(how.data(), on.how.bytes(), on.how.as<void>()));
    device.Expect(device.queue().Launch(*graph));
    const auto got = device.Tokens(on);
    for (size_t i = 0; i < 64; ++i) {
      ASSERT_EQ(got[i], OnHost(rows[i], kOdd, logits, i)) << i << " " << step;
      rows[i].generated.push_back(got[i]);
    }
  }
}

TEST(DeviceSampling, CountsWhatWasChosen) {
  CONCLAVE_REQUIRE_GPU();
  Device device;
  // Rows 0 and 1 are one sequence; the last two have no token to count.
  Launched on = {{3, 3}, 5};
  on.token = Up(device.queue(), std::vector<int32_t>{2, 2, 1, -1, 3});
  std::vector<DeviceSampling> how(5);
  for (const size_t r : {0u, 1u, 4u}) how[r].counts_row = 1;
  on.how = Up(device.queue(), how);
  on.counts = Up(device.queue(), std::vector<int32_t>{0, -1, 0, 5, -3, 0});
  device.Count(on);
  EXPECT_EQ(Down(device.queue(), on.counts.as<int32_t>(), 6),
            (std::vector<int32_t>{0, -2, 0, 5, -3, 2}));
}

TEST(DeviceSampling, RefusesRowsThatAreTooShort) {
  CONCLAVE_REQUIRE_GPU();
  Device device;
  for (const Shape& shape : {Shape{10, 11}, Shape{10, 0}}) {
    EXPECT_EQ(device.Sample({shape, 1}).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace conclave::kernels

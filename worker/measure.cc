// SPDX-License-Identifier: Apache-2.0
#include "worker/measure.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/buffer.h"
#include "common/limits.h"
#include "common/memory.h"
#include "common/stacked_experts.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "kernels/context.h"
#include "kernels/moe.h"

namespace conclave::worker {
namespace {

constexpr uint64_t kWeightBytesMax = uint64_t{256} << 20;
constexpr absl::Duration kMeasureFor = absl::Milliseconds(1200);
constexpr double kBeginAfterMax_s = 10;
constexpr size_t kRoundsMin = 5;
constexpr int32_t kBlock = 128;  // of FP8 scales
// Patterns of small numbers: the time of a product depends on no value, as
// long as none is denormal or NaN.
constexpr auto kWeightByte = std::byte{0x3c};  // bf16 0.0115, e4m3 1.5
constexpr auto kScaleByte = std::byte{0x3a};   // bf16 0.0007
constexpr float kInput = 0.5f;

absl::Status Check(const v1::MeasureRequest& r) {
  if (!(r.begin_after_s() >= 0 && r.begin_after_s() <= kBeginAfterMax_s)) {
    return absl::InvalidArgumentError(absl::StrCat("measure: begin_after_s ",
                                                   r.begin_after_s(),
                                                   ", at most ",
                                                   kBeginAfterMax_s));
  }
  if (r.hidden() == 0) return absl::OkStatus();
  if (r.hidden() < 1 || r.hidden() > limits::kHiddenMax || r.width() < 1 ||
      r.width() > limits::kHiddenMax || r.top_k() < 1 ||
      r.top_k() > limits::kTopKMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("measure: hidden ",
                     r.hidden(),
                     ", width ",
                     r.width(),
                     ", top_k ",
                     r.top_k(),
                     " are the sizes of no model"));
  }
  if (r.weights().empty() || r.weights() == "bf16" || r.weights() == "fp8") {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("measure: weights '", r.weights(), "'; bf16 or fp8"));
}

Buffer Filled(uint64_t size, std::byte value) {
  Buffer buffer(size);
  std::fill(buffer.bytes().begin(), buffer.bytes().end(), value);
  return buffer;
}

struct Product {
  int32_t slices = 1;
  int32_t rows = 1;    // of each slice
  double seconds = 0;  // result
};

// Made-up experts, enough of them that no cache helps, used in turn.
class Bench {
 public:
  Bench(const v1::MeasureRequest& request,
        int32_t sets,
        ThreadPool* pool,
        Clock* clock)
      : top_k_(request.top_k()), clock_(clock) {
    context_ = {kernels::Backend::kCpu, pool, &workspace_};
    experts_.slices = sets * top_k_;
    experts_.width = request.width();
    experts_.hidden = request.hidden();
    experts_.dtype = request.weights() == "fp8" ? DType::kF8E4M3 : DType::kBF16;
    const uint64_t elements = static_cast<uint64_t>(experts_.slices) *
                              request.width() * request.hidden();
    up_ = Filled(2 * elements * SizeOf(experts_.dtype), kWeightByte);
    down_ = Filled(elements * SizeOf(experts_.dtype), kWeightByte);
    experts_.gate_up = up_.data();
    experts_.down = down_.data();
    if (experts_.dtype != DType::kF8E4M3) return;
    experts_.up_block = std::gcd(kBlock, request.width());
    experts_.down_block = std::gcd(kBlock, request.hidden());
    const auto scales = [this](int64_t rows, int64_t block, int64_t columns) {
      return Filled(static_cast<uint64_t>(rows / block *
                                          ((columns + kBlock - 1) / kBlock)) *
                        2,
                    kScaleByte);
    };
    up_scales_ = scales(int64_t{2} * experts_.slices * experts_.width,
                        experts_.up_block,
                        experts_.hidden);
    down_scales_ = scales(int64_t{1} * experts_.slices * experts_.hidden,
                          experts_.down_block,
                          experts_.width);
    experts_.gate_up_scales = up_scales_.data();
    experts_.down_scales = down_scales_.data();
  }

  // Mean seconds of products of each shape, in turn, so that what disturbs one
  // disturbs all.
  absl::Status Run(std::span<Product> products) {
    size_t rounds = 0;
    const absl::Time until = clock_->Now() + kMeasureFor;
    for (Product& product : products) product.seconds = 0;
    for (; rounds < kRoundsMin || clock_->Now() < until; ++rounds) {
      for (Product& product : products) {
        const absl::Time begin = clock_->Now();
        RETURN_IF_ERROR(Compute(product));
        product.seconds += absl::ToDoubleSeconds(clock_->Now() - begin);
      }
    }
    for (Product& product : products) {
      product.seconds /= static_cast<double>(rounds);
    }
    return absl::OkStatus();
  }

  double SliceBytes() const {
    return 3.0 * experts_.width * experts_.hidden * SizeOf(experts_.dtype);
  }

 private:
  // The next slices, so many rows each.
  absl::Status Compute(const Product& product) {
    const auto entries = static_cast<size_t>(product.slices * product.rows);
    if (next_ + product.slices > experts_.slices) next_ = 0;
    slice_.resize(entries);
    row_.resize(entries);
    weight_.assign(entries, 1.0f);
    for (size_t i = 0; i < entries; ++i) {
      slice_[i] = next_ + static_cast<int32_t>(i) / product.rows;
      row_[i] = static_cast<int32_t>(i) % product.rows;
    }
    next_ += product.slices;
    x_.assign(static_cast<size_t>(product.rows) * experts_.hidden, kInput);
    out_.resize(x_.size());
    const kernels::Workspace::Scope scope(&workspace_);
    return kernels::ExpertFfn(context_,
                              kernels::ViewOf(experts_),
                              {slice_, row_, weight_},
                              x_,
                              product.rows,
                              out_);
  }

  const int32_t top_k_;
  Clock* const clock_;
  kernels::Workspace workspace_;
  kernels::Context context_;
  StackedExperts experts_;
  Buffer up_, down_, up_scales_, down_scales_;
  std::vector<int32_t> slice_, row_;
  std::vector<float> weight_, x_, out_;
  int32_t next_ = 0;  // slice
};

absl::Status MeasureExperts(const v1::MeasureRequest& request,
                            absl::Time begin,
                            ThreadPool* pool,
                            Clock* clock,
                            v1::MeasureReply* reply) {
  const uint64_t set = uint64_t{6} * request.width() * request.hidden() *
                       static_cast<uint64_t>(request.top_k());
  const uint64_t room = std::min(kWeightBytesMax, MemoryNow().free_bytes / 4);
  if (room / set < 2) {
    return absl::ResourceExhaustedError(
        absl::StrCat("measure: too little free memory for ",
                     2 * request.top_k(),
                     " experts"));
  }
  const auto sets = static_cast<int32_t>(std::min<uint64_t>(
      room / set,
      limits::kExpertsMax / static_cast<uint64_t>(request.top_k())));
  Bench bench(request, std::max(sets, 1), pool, clock);
  const int32_t many = 2 * request.top_k();
  Product products[] = {{1, 1, 0}, {many, 1, 0}, {many, 2, 0}};
  clock->SleepUntil(begin);
  RETURN_IF_ERROR(bench.Run(products));
  const double one = products[0].seconds, all = products[1].seconds;
  const double slice = std::max((all - one) / (many - 1), all / many / 4);
  reply->set_expert_call_s(std::max(one - slice, 0.0));
  reply->set_expert_bytes_per_s(bench.SliceBytes() / std::max(slice, 1e-9));
  reply->set_expert_row_share(
      std::max((products[2].seconds - all) / (slice * many), 0.0));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::MeasureReply> Measure(const v1::MeasureRequest& request,
                                         int32_t threads,
                                         int32_t spin_us,
                                         Clock* clock) {
  RETURN_IF_ERROR(Check(request));
  const absl::Time begin =
      clock->Now() + absl::Seconds(request.begin_after_s());
  ThreadPool pool(threads, spin_us);
  v1::MeasureReply reply;
  reply.set_memory_bytes_per_s(MemoryReadRate(&pool, clock));
  if (request.hidden() != 0) {
    RETURN_IF_ERROR(MeasureExperts(request, begin, &pool, clock, &reply));
  }
  return reply;
}

}  // namespace conclave::worker

// SPDX-License-Identifier: Apache-2.0
#include "worker/measure.h"

#include <algorithm>
#include <numeric>
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

constexpr uint64_t kWeightBytesMax = uint64_t{512} << 20;
constexpr absl::Duration kEach = absl::Milliseconds(150);
constexpr size_t kCallsMin = 5;
constexpr int32_t kBlock = 128;  // of FP8 scales
// Patterns of small numbers: the time of a product depends on no value, as
// long as none is denormal or NaN.
constexpr auto kWeightByte = std::byte{0x3c};  // bf16 0.0115, e4m3 1.5
constexpr auto kScaleByte = std::byte{0x3a};   // bf16 0.0007
constexpr float kInput = 0.5f;

absl::Status Check(const v1::MeasureRequest& r) {
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

  // Median seconds of a product of `slices` slices with `rows` rows each.
  absl::StatusOr<double> Seconds(int32_t slices, int32_t rows) {
    const std::vector<float> x(static_cast<size_t>(rows) * experts_.hidden,
                               kInput);
    std::vector<float> out(x.size());
    std::vector<int32_t> slice, row;
    const std::vector<float> weight(
        static_cast<size_t>(slices) * static_cast<size_t>(rows), 1.0f);
    const kernels::ShardLayerWeights weights = kernels::ViewOf(experts_);
    std::vector<double> times;
    const absl::Time until = clock_->Now() + kEach;
    while (times.size() < kCallsMin || clock_->Now() < until) {
      slice.clear();
      row.clear();
      if (next_ + slices > experts_.slices) next_ = 0;
      for (int32_t s = 0; s < slices; ++s) {
        slice.insert(slice.end(), static_cast<size_t>(rows), next_ + s);
        for (int32_t r = 0; r < rows; ++r) row.push_back(r);
      }
      next_ += slices;
      const kernels::Workspace::Scope scope(&workspace_);
      const absl::Time begin = clock_->Now();
      RETURN_IF_ERROR(kernels::ExpertFfn(
          context_, weights, {slice, row, weight}, x, rows, out));
      times.push_back(absl::ToDoubleSeconds(clock_->Now() - begin));
    }
    const auto middle =
        times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
    std::nth_element(times.begin(), middle, times.end());
    return *middle;
  }

  double SliceBytes() const {
    return 3.0 * experts_.width * experts_.hidden * SizeOf(experts_.dtype);
  }

 private:
  const int32_t top_k_;
  Clock* const clock_;
  kernels::Workspace workspace_;
  kernels::Context context_;
  StackedExperts experts_;
  Buffer up_, down_, up_scales_, down_scales_;
  int32_t next_ = 0;
};

absl::Status MeasureExperts(const v1::MeasureRequest& request,
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
  const int32_t many = std::max(request.top_k(), 2);
  RETURN_IF_ERROR(bench.Seconds(1, 1).status());  // grows the workspace
  ASSIGN_OR_RETURN(const double one, bench.Seconds(1, 1));
  ASSIGN_OR_RETURN(const double all, bench.Seconds(many, 1));
  ASSIGN_OR_RETURN(const double twice, bench.Seconds(many, 2));
  const double slice = std::max((all - one) / (many - 1), all / many / 4);
  reply->set_expert_call_s(std::max(one - slice, 0.0));
  reply->set_expert_bytes_per_s(bench.SliceBytes() / std::max(slice, 1e-9));
  reply->set_expert_row_share(std::max((twice - all) / (slice * many), 0.0));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::MeasureReply> Measure(const v1::MeasureRequest& request,
                                         int32_t threads,
                                         int32_t spin_us,
                                         Clock* clock) {
  if (request.hidden() != 0) RETURN_IF_ERROR(Check(request));
  ThreadPool pool(threads, spin_us);
  v1::MeasureReply reply;
  reply.set_memory_bytes_per_s(MemoryReadRate(&pool, clock));
  if (request.hidden() != 0) {
    RETURN_IF_ERROR(MeasureExperts(request, &pool, clock, &reply));
  }
  return reply;
}

}  // namespace conclave::worker

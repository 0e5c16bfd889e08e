// SPDX-License-Identifier: Apache-2.0
#include "worker/measure.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/buffer.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/memory.h"
#include "common/stacked_experts.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "common/weight_layout.h"
#include "kernels/context.h"
#include "kernels/moe.h"

namespace conclave::worker {
namespace {

constexpr uint64_t kWeightBytesMax = uint64_t{256} << 20;
constexpr absl::Duration kMeasureFor = absl::Milliseconds(1200);
constexpr double kBeginAfterMax_s = 10;
constexpr size_t kRoundsMin = 5;
constexpr int64_t kGptqGroup = 128, kMlxGroup = 64;
constexpr int32_t kGroupMin = 32;
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
  return absl::OkStatus();
}

// How a format stores a linear of so many columns, stacked to `rows` rows of
// which `of_slice` belong to one slice.
absl::StatusOr<WeightLayout> LayoutOf(const std::string& format,
                                      int64_t rows,
                                      int64_t of_slice,
                                      int64_t cols) {
  WeightLayout layout{.dtype = DType::kBF16, .rows = rows, .cols = cols};
  const bool gptq = format == "gptq-int4";
  if (format == "fp8") {
    layout.dtype = DType::kF8E4M3;
    layout.group = static_cast<int32_t>(std::gcd(int64_t{kFp8Block}, of_slice));
  } else if (gptq || (format.starts_with("mlx") && format.size() == 4)) {
    layout.dtype = DType::kU32;
    layout.bits = gptq ? 4 : format[3] - '0';
    layout.group =
        static_cast<int32_t>(std::gcd(gptq ? kGptqGroup : kMlxGroup, cols));
    layout.scale_dtype = gptq ? DType::kF16 : DType::kBF16;
    layout.biases = !gptq;
    constexpr std::string_view kBits = "34568";
    if (kBits.find(static_cast<char>('0' + layout.bits)) == kBits.npos ||
        layout.group % kGroupMin != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "measure: weights '", format, "' with ", cols, " columns"));
    }
  } else if (!format.empty() && format != "bf16") {
    return absl::InvalidArgumentError(
        absl::StrCat("measure: weights '", format, "' are unknown"));
  }
  return layout;
}

Buffer Filled(uint64_t size, std::byte value) {
  Buffer buffer(size);
  std::fill(buffer.bytes().begin(), buffer.bytes().end(), value);
  return buffer;
}

// Memory of one stacked linear.
class Made {
 public:
  explicit Made(const WeightLayout& layout)
      : layout_(layout),
        data_(Filled(layout.data_bytes(), kWeightByte)),
        scales_(Filled(layout.scale_bytes(), kScaleByte)),
        biases_(Filled(layout.bias_bytes(), kScaleByte)) {}
  StoredWeight view() const {
    return {layout_, data_.data(), scales_.data(), biases_.data()};
  }
  uint64_t bytes() const { return layout_.bytes(); }

 private:
  WeightLayout layout_;
  Buffer data_, scales_, biases_;
};

// The three linears of so many slices.
absl::StatusOr<std::vector<Made>> MakeExperts(const v1::MeasureRequest& r,
                                              int64_t slices) {
  std::vector<Made> made;
  for (const auto& [rows, cols] : {std::pair(r.width(), r.hidden()),
                                   {r.width(), r.hidden()},
                                   {r.hidden(), r.width()}}) {
    ASSIGN_OR_RETURN(const WeightLayout layout,
                     LayoutOf(r.weights(), slices * rows, rows, cols));
    made.emplace_back(layout);
  }
  return made;
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
        int32_t slices,
        std::vector<Made> made,
        kernels::Activations activations,
        ThreadPool* pool,
        Clock* clock)
      : clock_(clock), made_(std::move(made)) {
    context_ = {kernels::Backend::kCpu, pool, &workspace_, activations};
    experts_ = {.slices = slices,
                .width = request.width(),
                .hidden = request.hidden(),
                .gate = made_[0].view(),
                .up = made_[1].view(),
                .down = made_[2].view()};
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
    uint64_t bytes = 0;
    for (const Made& one : made_) bytes += one.bytes();
    return static_cast<double>(bytes) / experts_.slices;
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

  Clock* const clock_;
  kernels::Workspace workspace_;
  kernels::Context context_;
  StackedExperts experts_;
  std::vector<Made> made_;
  std::vector<int32_t> slice_, row_;
  std::vector<float> weight_, x_, out_;
  int32_t next_ = 0;  // slice
};

absl::Status MeasureExperts(const v1::MeasureRequest& request,
                            absl::Time begin,
                            ThreadPool* pool,
                            Clock* clock,
                            v1::MeasureReply* reply) {
  ASSIGN_OR_RETURN(const kernels::Activations activations,
                   kernels::ParseActivations(request.activations()));
  const uint64_t set = uint64_t{6} * request.width() * request.hidden() *
                       static_cast<uint64_t>(request.top_k());
  const uint64_t room = std::min(kWeightBytesMax, MemoryNow().free_bytes / 4);
  if (room / set < 2) {
    return absl::ResourceExhaustedError(
        absl::StrCat("measure: too little free memory for ",
                     2 * request.top_k(),
                     " experts"));
  }
  const auto slices =
      static_cast<int32_t>(std::min<uint64_t>(
          room / set,
          limits::kExpertsMax / static_cast<uint64_t>(request.top_k()))) *
      request.top_k();
  ASSIGN_OR_RETURN(std::vector<Made> made, MakeExperts(request, slices));
  Bench bench(request, slices, std::move(made), activations, pool, clock);
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
  log::Info(
      absl::StrCat("measured experts, weights ",
                   request.weights().empty() ? "bf16" : request.weights(),
                   ", activations ",
                   activations == kernels::Activations::kInt8 ? "int8" : "f32",
                   ": ",
                   reply->expert_bytes_per_s() * 1e-9,
                   " GB/s"));
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

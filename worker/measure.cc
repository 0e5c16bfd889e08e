// SPDX-License-Identifier: Apache-2.0
#include "worker/measure.h"

#include <algorithm>
#include <memory>
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
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "common/weight_layout.h"
#include "kernels/context.h"
#include "kernels/device.h"
#include "worker/held_shard.h"
#include "worker/shard_sums.h"

namespace conclave::worker {
namespace {

constexpr uint64_t kWeightBytesMax = uint64_t{256} << 20;
// Of a GPU: far more than its caches hold.
constexpr uint64_t kReadBytesMax = uint64_t{1} << 30;
constexpr int32_t kReadRepeats = 5;
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

uint64_t FreeBytes(const MeasureOn& on) {
  return on.device == nullptr ? MemoryNow().free_bytes
                              : on.device->memory().free_bytes;
}

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

// How a format stores a linear of one slice.
absl::StatusOr<WeightLayout> LayoutOf(const std::string& format,
                                      int64_t rows,
                                      int64_t cols) {
  WeightLayout layout{.dtype = DType::kBF16, .rows = rows, .cols = cols};
  const bool gptq = format == "gptq-int4";
  if (format == "fp8") {
    layout.dtype = DType::kF8E4M3;
    layout.group = static_cast<int32_t>(std::gcd(int64_t{kFp8Block}, rows));
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

absl::StatusOr<checkpoint::StackedWeight> MakeWeight(const std::string& format,
                                                     int32_t slices,
                                                     int64_t rows,
                                                     int64_t cols) {
  ASSIGN_OR_RETURN(const WeightLayout each, LayoutOf(format, rows, cols));
  return checkpoint::StackedWeight{
      .each = each,
      .data = Filled(slices * each.data_bytes(), kWeightByte),
      .scales = Filled(slices * each.scale_bytes(), kScaleByte),
      .biases = Filled(slices * each.bias_bytes(), kScaleByte)};
}

// A shard of one layer with so many slices.
absl::StatusOr<HeldShard> MakeExperts(const v1::MeasureRequest& r,
                                      int32_t slices) {
  checkpoint::ShardLayer layer;
  layer.slices = slices;
  layer.width = r.width();
  const std::string& format = r.weights();
  ASSIGN_OR_RETURN(layer.gate,
                   MakeWeight(format, slices, r.width(), r.hidden()));
  ASSIGN_OR_RETURN(layer.up, MakeWeight(format, slices, r.width(), r.hidden()));
  ASSIGN_OR_RETURN(layer.down,
                   MakeWeight(format, slices, r.hidden(), r.width()));
  HeldShard out;
  out.weights.bytes =
      layer.gate.bytes() + layer.up.bytes() + layer.down.bytes();
  out.weights.layers.push_back(std::move(layer));
  return out;
}

struct Product {
  int32_t slices = 1;
  int32_t rows = 1;    // of each slice
  double seconds = 0;  // result
};

// Made-up experts, enough of them that no cache helps, used in turn.
class Bench {
 public:
  Bench(HeldShard made,
        int32_t hidden,
        kernels::Activations activations,
        ShardSums* sums,
        Clock* clock)
      : clock_(clock),
        sums_(sums),
        made_(std::move(made)),
        slices_(made_.weights.layers[0].slices),
        hidden_(hidden),
        activations_(activations) {}

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
    return static_cast<double>(made_.weights.bytes) / slices_;
  }

 private:
  // The next slices, so many rows each.
  absl::Status Compute(const Product& product) {
    const auto entries = static_cast<size_t>(product.slices * product.rows);
    if (next_ + product.slices > slices_) next_ = 0;
    slice_.resize(entries);
    row_.resize(entries);
    weight_.assign(entries, 1.0f);
    for (size_t i = 0; i < entries; ++i) {
      slice_[i] = next_ + static_cast<int32_t>(i) / product.rows;
      row_[i] = static_cast<int32_t>(i) % product.rows;
    }
    next_ += product.slices;
    rows_.resize(static_cast<size_t>(product.rows));
    std::iota(rows_.begin(), rows_.end(), 0);
    x_.assign(rows_.size() * static_cast<size_t>(hidden_), kInput);
    out_.resize(x_.size());
    return sums_->Sum(
        {.shard = &made_,
         .layer = 0,
         .hidden = hidden_,
         .activations = activations_,
         .x = std::as_bytes(std::span(x_)),
         .dtype = DType::kF32,
         .rows = rows_,
         .entries = {.slice = slice_, .row = row_, .weight = weight_}},
        out_);
  }

  Clock* const clock_;
  ShardSums* const sums_;
  const HeldShard made_;
  const int32_t slices_;
  const int32_t hidden_;
  const kernels::Activations activations_;
  std::vector<int32_t> slice_, row_, rows_;
  std::vector<float> weight_, x_, out_;
  int32_t next_ = 0;  // slice
};

// The worker's GPU once more, with little room: another queue leaves what the
// worker serves alone.
absl::StatusOr<std::unique_ptr<ExpertDevice>> SecondDevice(
    const ExpertDevice& device) {
  constexpr int32_t kRows = 2;  // of the largest product
  ASSIGN_OR_RETURN(auto queue, kernels::DeviceQueue::Create(device.number()));
  return std::make_unique<ExpertDevice>(
      std::move(queue),
      ExpertDevice::Options{.name = device.name(),
                            .memory = nullptr,
                            .rows_max = kRows,
                            .pairs_max = 2 * kRows * limits::kTopKMax});
}

absl::Status MeasureExperts(const v1::MeasureRequest& request,
                            const MeasureOn& on,
                            absl::Time begin,
                            ThreadPool* pool,
                            v1::MeasureReply* reply) {
  ASSIGN_OR_RETURN(const kernels::Activations activations,
                   kernels::ParseActivations(request.activations()));
  const uint64_t set = uint64_t{6} * request.width() * request.hidden() *
                       static_cast<uint64_t>(request.top_k());
  const uint64_t room = std::min(kWeightBytesMax, FreeBytes(on) / 4);
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
  ASSIGN_OR_RETURN(HeldShard made, MakeExperts(request, slices));
  HostShardSums host(kernels::Backend::kCpu, pool);
  std::unique_ptr<ExpertDevice> device;
  if (on.device != nullptr) {
    ASSIGN_OR_RETURN(device, SecondDevice(*on.device));
    RETURN_IF_ERROR(
        device->Reserve({.hidden = request.hidden(),
                         .width = request.width(),
                         .exact = activations == kernels::Activations::kF32}));
    made.on_device.resize(1);
    RETURN_IF_ERROR(device->Load(&made, 0));
  }
  ShardSums* sums = &host;
  if (device != nullptr) sums = device.get();
  Bench bench(std::move(made), request.hidden(), activations, sums, on.clock);
  const int32_t many = 2 * request.top_k();
  Product products[] = {{1, 1, 0}, {many, 1, 0}, {many, 2, 0}};
  on.clock->SleepUntil(begin);
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
                                         const MeasureOn& on) {
  RETURN_IF_ERROR(Check(request));
  const absl::Time begin =
      on.clock->Now() + absl::Seconds(request.begin_after_s());
  ThreadPool pool(on.threads, on.spin_us);
  v1::MeasureReply reply;
  double rate = 0;
  if (on.device == nullptr) {
    rate = MemoryReadRate(&pool, on.clock);
  } else {
    ASSIGN_OR_RETURN(rate,
                     kernels::MeasureReadBandwidth(
                         on.device->number(),
                         std::min(kReadBytesMax, FreeBytes(on) / 4),
                         kReadRepeats));
  }
  reply.set_memory_bytes_per_s(rate);
  if (request.hidden() != 0) {
    RETURN_IF_ERROR(MeasureExperts(request, on, begin, &pool, &reply));
  }
  return reply;
}

}  // namespace conclave::worker

// SPDX-License-Identifier: Apache-2.0
#include "worker/linked_steps.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/device_pairs.h"

namespace conclave::worker {
namespace {

using kernels::DeviceBuffer;
using kernels::LinkPart;

constexpr int32_t kUnitCols = 64;
constexpr int32_t kExactGroup = 8;
constexpr int32_t kCoordinatorRank = 0;
constexpr int64_t kExchangesOfLayer = 2;

size_t Padded(int32_t cols) {
  return static_cast<size_t>((cols + kUnitCols - 1) / kUnitCols * kUnitCols);
}

bool Exact(const Assignment& assignment) {
  return assignment.activations == kernels::Activations::kF32;
}

size_t BytesOfNumber(bool exact) {
  return exact ? sizeof(float) : sizeof(uint16_t);
}

// Rows that are computed at a time.
int32_t RowsOfPiece(const LinkedSteps::Shape& shape) {
  return std::clamp(shape.pairs_max / shape.per_row, 1, shape.rows_max);
}

struct Bytes {
  uint64_t x, wide, choices, words, hidden, y, sums;
  uint64_t sum() const {
    return x + wide + 2 * choices + words + hidden + y + sums;
  }
};

Bytes SizesOf(const Assignment& assignment, const LinkedSteps::Shape& shape) {
  const auto rows = static_cast<uint64_t>(shape.rows_max);
  const auto hidden = static_cast<uint64_t>(assignment.hidden);
  const bool exact = Exact(assignment);
  int32_t width = 0;
  std::vector<uint64_t> parts(static_cast<size_t>(assignment.layers));
  for (const auto& [id, held] : assignment.held) {
    for (size_t l = 0; l < held->weights.layers.size(); ++l) {
      if (held->weights.layers[l].slices == 0) continue;
      width = std::max(width, held->weights.layers[l].width);
      ++parts[l];
    }
  }
  const int32_t piece = RowsOfPiece(shape);
  const uint64_t pairs =
      static_cast<uint64_t>(piece) * static_cast<uint64_t>(shape.per_row);
  const uint64_t most =
      parts.empty() ? 0 : *std::max_element(parts.begin(), parts.end());
  return {
      .x = rows * hidden * BytesOfNumber(exact),
      .wide = rows * hidden * sizeof(uint16_t),
      .choices = rows * static_cast<uint64_t>(shape.per_row) * sizeof(int32_t),
      .words = kernels::HeldPairsBytes(piece, shape.per_row),
      .hidden = pairs * Padded(width) * BytesOfNumber(exact),
      .y = pairs * hidden * sizeof(float),
      .sums = most * rows * hidden * sizeof(float)};
}

}  // namespace

absl::StatusOr<uint64_t> LinkedSteps::BytesOf(const Assignment& assignment,
                                              const Shape& shape) {
  if (assignment.hidden % kUnitCols != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("join: rows of ",
                     assignment.hidden,
                     " columns cannot travel over NCCL, which takes a multiple "
                     "of 64; use exchange.over: grpc"));
  }
  return SizesOf(assignment, shape).sum();
}

LinkedSteps::LinkedSteps(std::unique_ptr<kernels::DeviceQueue> queue,
                         std::shared_ptr<const Assignment> assignment,
                         const Shape& shape)
    : queue_(std::move(queue)),
      assignment_(std::move(assignment)),
      shape_(shape),
      exact_(Exact(*assignment_)) {}

LinkedSteps::~LinkedSteps() = default;

absl::Status LinkedSteps::MakeBuffers() {
  const Bytes bytes = SizesOf(*assignment_, shape_);
  const std::pair<DeviceBuffer*, uint64_t> all[] = {{&x_, bytes.x},
                                                    {&wide_, bytes.wide},
                                                    {&expert_, bytes.choices},
                                                    {&weight_, bytes.choices},
                                                    {&words_, bytes.words},
                                                    {&hidden_, bytes.hidden},
                                                    {&y_, bytes.y},
                                                    {&sums_, bytes.sums}};
  for (const auto& [buffer, size] : all) {
    ASSIGN_OR_RETURN(*buffer, queue_->Allocate(size, "rows of a link"));
  }
  return queue_->Fill(hidden_, 0);
}

absl::Status LinkedSteps::MakeLayers() {
  const auto experts = static_cast<size_t>(shape_.experts);
  std::vector<int32_t> numbers;
  for (int32_t l = 0; l < assignment_->layers; ++l) {
    Layer layer{.index = l, .parts = {}};
    const auto at = static_cast<size_t>(l);
    for (const auto& [id, held] : assignment_->held) {
      const checkpoint::ShardLayer& weights = held->weights.layers[at];
      if (weights.slices == 0) continue;
      if (held->on_device.size() <= at || held->on_device[at] == nullptr) {
        return absl::FailedPreconditionError(absl::StrCat(
            "join: layer ", l, " of shard ", Index(id), " is not on the GPU"));
      }
      layer.parts.push_back(
          {.stack = held->on_device[at].get(),
           .width = weights.width,
           .held = {.experts = shape_.experts, .numbers = weights.slices}});
      may_record_ = may_record_ && weights.width % kUnitCols == 0;
      const size_t first = numbers.size();
      numbers.resize(first + experts, -1);
      int32_t next = 0;
      for (const Slice& slice : held->weights.shard.slices) {
        if (Index(slice.layer) != l) continue;
        const auto expert = static_cast<size_t>(Index(slice.expert));
        if (expert >= experts) {
          return absl::InvalidArgumentError(
              absl::StrCat("join: experts ", experts, ", one is ", expert));
        }
        numbers[first + expert] = next++;
      }
    }
    if (!layer.parts.empty()) layers_.push_back(std::move(layer));
  }
  const size_t bytes = numbers.size() * sizeof(int32_t);
  ASSIGN_OR_RETURN(numbers_, queue_->Allocate(bytes, "numbers of experts"));
  RETURN_IF_ERROR(queue_->Upload(numbers.data(), bytes, numbers_.as<void>()));
  const auto* next = numbers_.as<int32_t>();
  for (Layer& layer : layers_) {
    for (Part& part : layer.parts) {
      part.held.number = next;
      next += experts;
    }
  }
  return queue_->Wait();
}

absl::StatusOr<std::unique_ptr<LinkedSteps>> LinkedSteps::Create(
    std::unique_ptr<kernels::DeviceQueue> queue,
    std::shared_ptr<const Assignment> assignment,
    const Shape& shape,
    const kernels::DeviceLink::Options& link) {
  auto out = std::unique_ptr<LinkedSteps>(
      new LinkedSteps(std::move(queue), std::move(assignment), shape));
  RETURN_IF_ERROR(out->MakeBuffers());
  RETURN_IF_ERROR(out->MakeLayers());
  ASSIGN_OR_RETURN(out->link_,
                   kernels::DeviceLink::Create(out->queue_.get(), link));
  return out;
}

absl::Status LinkedSteps::Receive(int32_t rows) {
  const auto count = static_cast<size_t>(rows);
  const size_t choices =
      count * static_cast<size_t>(shape_.per_row) * sizeof(int32_t);
  const LinkPart parts[] = {{kCoordinatorRank,
                             x_.as<void>(),
                             count * static_cast<size_t>(assignment_->hidden) *
                                 BytesOfNumber(exact_)},
                            {kCoordinatorRank, expert_.as<void>(), choices},
                            {kCoordinatorRank, weight_.as<void>(), choices}};
  return link_->Exchange({}, parts);
}

absl::Status LinkedSteps::SumPart(const Part& part, int32_t rows, float* out) {
  const int32_t piece = RowsOfPiece(shape_);
  const auto hidden = static_cast<int64_t>(assignment_->hidden);
  const int64_t pairs = int64_t{std::min(piece, rows)} * (shape_.per_row - 1) *
                        part.held.numbers / shape_.experts;
  const int32_t group_rows =
      exact_ ? kExactGroup
             : kernels::GroupRowsFor(std::max<int64_t>(pairs, 1),
                                     part.held.numbers);
  for (int64_t begin = 0; begin < rows; begin += piece) {
    const kernels::DeviceChoices choices{
        .rows = std::min(piece, rows - static_cast<int32_t>(begin)),
        .per_row = shape_.per_row,
        .expert = expert_.as<int32_t>() + begin * shape_.per_row,
        .weight = weight_.as<float>() + begin * shape_.per_row};
    const kernels::HeldPairs held = kernels::HeldPairsAt(
        choices, part.held, group_rows, words_.as<int32_t>());
    RETURN_IF_ERROR(
        kernels::DeviceHeldPairs(queue_.get(), choices, part.held, held));
    // Products read whole units of columns, of which gate and up write whole
    // tiles only.
    if (!may_record_) RETURN_IF_ERROR(queue_->Fill(hidden_, 0));
    const auto row_bytes = hidden * static_cast<int64_t>(BytesOfNumber(exact_));
    RETURN_IF_ERROR(kernels::DeviceExperts(
        queue_.get(),
        *part.stack,
        held.entries,
        {x_.as<std::byte>() + begin * row_bytes, !exact_, wide_.as<void>()},
        {hidden_.as<void>(), !exact_},
        y_.as<float>()));
    RETURN_IF_ERROR(kernels::DeviceSumPairs(queue_.get(),
                                            held.sums,
                                            y_.as<float>(),
                                            assignment_->hidden,
                                            out + begin * hidden));
  }
  return absl::OkStatus();
}

absl::Status LinkedSteps::QueueStep(int32_t rows) {
  const size_t plane =
      static_cast<size_t>(rows) * static_cast<size_t>(assignment_->hidden);
  for (const Layer& layer : layers_) {
    RETURN_IF_ERROR(Receive(rows));
    std::vector<LinkPart> sums;
    for (size_t i = 0; i < layer.parts.size(); ++i) {
      float* out = sums_.as<float>() + i * plane;
      RETURN_IF_ERROR(SumPart(layer.parts[i], rows, out));
      sums.push_back({kCoordinatorRank, out, plane * sizeof(float)});
    }
    RETURN_IF_ERROR(link_->Exchange(sums, {}));
  }
  return absl::OkStatus();
}

absl::Status LinkedSteps::Launch(int32_t rows) {
  kernels::DeviceGraph& graph = graphs_[rows];
  if (!graph.recorded()) {
    RETURN_IF_ERROR(queue_->BeginRecording());
    const absl::Status status = QueueStep(rows);
    absl::StatusOr<kernels::DeviceGraph> recorded = queue_->EndRecording();
    RETURN_IF_ERROR(status);
    ASSIGN_OR_RETURN(graph, std::move(recorded));
  }
  return queue_->Launch(graph);
}

absl::Status LinkedSteps::Run(int32_t rows, bool record) {
  if (rows < 1 || rows > shape_.rows_max) {
    return absl::InvalidArgumentError(absl::StrCat(
        "step: rows ", rows, ", the link is for ", shape_.rows_max));
  }
  begun_at_ = link_->passed();
  absl::Status status = record && may_record_ ? Launch(rows) : QueueStep(rows);
  const absl::Status ended = link_->Wait();
  if (status.ok()) status = ended;
  if (status.ok()) return status;
  const auto done = static_cast<size_t>(layers());
  if (done >= layers_.size()) return status;
  const bool received = (link_->passed() - begun_at_) % kExchangesOfLayer != 0;
  return absl::Status(
      status.code(),
      absl::StrCat(received ? "sending sums" : "waiting for rows",
                   " of layer ",
                   layers_[done].index,
                   ": ",
                   status.message()));
}

int32_t LinkedSteps::layers() const {
  return static_cast<int32_t>((link_->passed() - begun_at_) /
                              kExchangesOfLayer);
}

}  // namespace conclave::worker

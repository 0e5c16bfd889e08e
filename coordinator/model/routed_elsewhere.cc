// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/routed_elsewhere.h"

#include <algorithm>

#include "common/status_macros.h"

namespace conclave::model {

using kernels::DeviceEntries;
using kernels::DeviceQueue;

namespace {

// Arrays of shared_, [rows_max] each but the groups, [rows_max, 4], and their
// count. Groups, which are read 16 bytes at a time, come first.
enum Array : int32_t {
  kGroups,
  kOrder = kGroups + 4,
  kExpert,
  kWeight,
  kCount
};

}  // namespace

absl::Status ReadChoices::Read(DeviceQueue* queue,
                               const DeviceEntries& entries) {
  rows = entries.rows;
  top_k = entries.per_row - 1;  // the last of a row is the shared expert
  const size_t all = static_cast<size_t>(rows) * entries.per_row;
  expert.resize(all);
  weight.resize(all);
  shared.resize(static_cast<size_t>(rows));
  RETURN_IF_ERROR(
      queue->Download(entries.expert, all * sizeof(int32_t), expert.data()));
  RETURN_IF_ERROR(
      queue->Download(entries.weight, all * sizeof(float), weight.data()));
  for (size_t r = 0; r < shared.size(); ++r) {
    const size_t from = r * entries.per_row, to = r * top_k;
    shared[r] = weight[from + top_k];
    std::copy_n(&expert[from], top_k, &expert[to]);
    std::copy_n(&weight[from], top_k, &weight[to]);
  }
  expert.resize(shared.size() * top_k);
  weight.resize(shared.size() * top_k);
  return absl::OkStatus();
}

absl::StatusOr<RoutedElsewhere> RoutedElsewhere::Create(
    DeviceQueue* queue,
    experts::Experts* experts,
    const checkpoint::ModelConfig& config,
    int32_t rows_max,
    int32_t micro_batch) {
  RoutedElsewhere out;
  out.queue_ = queue;
  out.experts_ = experts;
  out.hidden_ = config.hidden_size;
  out.micro_batch_ = micro_batch;
  out.rows_max_ = rows_max;
  const size_t numbers = static_cast<size_t>(kCount) * rows_max + 1;
  ASSIGN_OR_RETURN(
      out.numbers_,
      queue->Allocate(numbers * sizeof(int32_t), "pairs of the shared expert"));
  auto* base = out.numbers_.as<int32_t>();
  const auto at = [&](Array array) { return base + int64_t{array} * rows_max; };
  out.shared_ = {.per_row = 1, .experts = config.num_experts + 1};
  out.shared_.row = at(kOrder);
  out.shared_.place = at(kOrder);
  out.shared_.expert = at(kExpert);
  out.shared_.weight = reinterpret_cast<float*>(at(kWeight));
  out.shared_.groups = at(kGroups);
  out.shared_.group_count = at(kCount);
  return out;
}

absl::Status RoutedElsewhere::BeginStep(const DeviceEntries& all) {
  failure_ = absl::OkStatus();
  if (shared_.rows == all.rows) return absl::OkStatus();
  shared_.rows = all.rows;
  shared_.group_rows = all.group_rows;
  shared_.groups_max = (all.rows + all.group_rows - 1) / all.group_rows;
  const int32_t expert = shared_.experts - 1;
  std::vector<int32_t> host(static_cast<size_t>(kCount) * rows_max_ + 1);
  const auto at = [&](Array array) {
    return host.begin() + int64_t{array} * rows_max_;
  };
  for (int32_t r = 0; r < all.rows; ++r) {
    at(kOrder)[r] = r;
    at(kExpert)[r] = expert;
  }
  for (int32_t g = 0; g < shared_.groups_max; ++g) {
    const int32_t first = g * all.group_rows;
    const int32_t group[4] = {
        expert, first, std::min(all.group_rows, all.rows - first), 0};
    std::copy_n(group, 4, at(kGroups) + 4 * g);
  }
  *at(kCount) = shared_.groups_max;
  return queue_->Upload(
      host.data(), host.size() * sizeof(int32_t), numbers_.as<void>());
}

absl::Status RoutedElsewhere::Start(LayerId layer, const DeviceEntries& all) {
  RETURN_IF_ERROR(choices_.Read(queue_, all));
  RETURN_IF_ERROR(queue_->Upload(choices_.shared.data(),
                                 choices_.shared.size() * sizeof(float),
                                 shared_.weight));
  experts::Routing routing = choices_.routing();
  routing.micro_batch = micro_batch_;
  const auto ticket = experts_->Start(layer, rows_, routing);
  if (!ticket.ok()) return failure_ = ticket.status();
  ticket_ = *ticket;
  return absl::OkStatus();
}

absl::Status RoutedElsewhere::Finish(float* out) {
  sum_.resize(static_cast<size_t>(shared_.rows) * hidden_);
  failure_ = experts_->Finish(ticket_, sum_);
  RETURN_IF_ERROR(failure_);
  return queue_->Upload(sum_.data(), sum_.size() * sizeof(float), out);
}

}  // namespace conclave::model

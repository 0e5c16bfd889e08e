// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/device_weights_maker.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/model/rank_sources.h"

namespace conclave::model {
namespace {

using kernels::CanShare;
using kernels::DeviceBuffer;
using kernels::DeviceExpertStack;
using kernels::DeviceMatrix;
using kernels::ExpertLayouts;
using kernels::MatrixPlan;
using kernels::WeightView;

ExpertLayouts LayoutsOf(const ExpertSources& e) {
  return {e.gate.layout, e.up.layout, e.down.layout};
}

// FNV-1a: ranks of a group have the same numbers where they have the same
// part, whatever else they hold.
uint64_t SeedOf(const std::string& name) {
  uint64_t out = 0xcbf29ce484222325u;
  for (const char c : name) {
    out = (out ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  }
  return out;
}

}  // namespace

absl::Status DeviceWeightsMaker::Linears(const std::vector<Source>& sources,
                                         const std::string& what,
                                         DeviceLinears* to,
                                         int32_t width) {
  to->width = width;
  for (const Source& s : sources) {
    if (width == 0) to->width += static_cast<int32_t>(s.layout.rows);
  }
  int32_t column = 0;
  for (size_t begin = 0; begin < sources.size();) {
    MatrixPlan plan{
        .parts = {}, .first_column = column, .row_width = to->width};
    size_t end = begin;
    while (end < sources.size() &&
           CanShare(sources[begin].layout, sources[end].layout)) {
      plan.parts.push_back(sources[end].layout);
      column += static_cast<int32_t>(sources[end].layout.rows);
      ++end;
    }
    // A format that is not known shares with nothing, not even itself.
    if (end == begin) plan.parts.push_back(sources[end++].layout);
    if (queue_ == nullptr) {
      out_->dense_bytes += kernels::MatrixBytes(plan);
      begin = end;
      continue;
    }
    ASSIGN_OR_RETURN(DeviceMatrix matrix,
                     kernels::MakeMatrix(queue_, plan, what));
    if (!sources[begin].host.has_value()) {
      RETURN_IF_ERROR(MakeUp(absl::StrCat(what, " ", begin), &matrix));
    }
    for (size_t i = begin; i < end; ++i) {
      if (!sources[i].host.has_value()) continue;
      RETURN_IF_ERROR(loader_.Load(
          *sources[i].host, plan, 0, static_cast<int32_t>(i - begin), &matrix));
    }
    out_->dense_bytes += matrix.bytes();
    to->parts.push_back(std::move(matrix));
    begin = end;
  }
  return absl::OkStatus();
}

absl::Status DeviceWeightsMaker::Head(const Source& whole,
                                      const RankCut& cut,
                                      DeviceLinears* to) {
  if (cut.tokens.size() == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Source part, PartOfHead(whole, cut));
  // Made-up numbers go by the name: no two tokens have the same.
  const std::string what =
      cut.tokens.begin == 0
          ? "lm_head"
          : absl::StrCat("lm_head, tokens from ", cut.tokens.begin);
  const auto vocab = static_cast<int32_t>(whole.layout.rows);
  return Linears({part}, what, to, LogitColumns(cut, vocab));
}

absl::Status DeviceWeightsMaker::Experts(
    int32_t count,
    const std::function<ExpertSources(int32_t)>& expert,
    const ExpertSources& shared,
    const std::string& what,
    std::vector<DeviceExpertStack>* to) {
  const ExpertSources first = expert(0);
  const bool one = CanShare(first.gate.layout, shared.gate.layout) &&
                   CanShare(first.down.layout, shared.down.layout) &&
                   first.gate.layout.rows == shared.gate.layout.rows;
  if (queue_ == nullptr) {
    out_->expert_bytes += kernels::ExpertStackBytes(LayoutsOf(first), count);
    return SharedExpert(count, shared, what, to);
  }
  ASSIGN_OR_RETURN(DeviceExpertStack routed,
                   Stack(first, count + (one ? 1 : 0), what));
  for (int32_t i = 0; first.gate.host.has_value() && i < count; ++i) {
    RETURN_IF_ERROR(Fill(expert(i), i, &routed));
  }
  const uint64_t all = routed.gate_up.bytes() + routed.down.bytes();
  const uint64_t each = all / static_cast<uint64_t>(routed.gate_up.stack);
  out_->expert_bytes += each * static_cast<uint64_t>(count);
  if (one) {
    if (shared.gate.host.has_value()) {
      RETURN_IF_ERROR(Fill(shared, count, &routed));
    }
    out_->dense_bytes += each;
    to->push_back(std::move(routed));
    return absl::OkStatus();
  }
  to->push_back(std::move(routed));
  return SharedExpert(count, shared, what, to);
}

absl::Status DeviceWeightsMaker::SharedExpert(
    int32_t count,
    const ExpertSources& shared,
    const std::string& what,
    std::vector<DeviceExpertStack>* to) {
  if (queue_ == nullptr) {
    out_->dense_bytes += kernels::ExpertStackBytes(LayoutsOf(shared), 1);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(DeviceExpertStack own, Stack(shared, 1, what));
  own.first = count;
  if (shared.gate.host.has_value()) RETURN_IF_ERROR(Fill(shared, 0, &own));
  out_->dense_bytes += own.gate_up.bytes() + own.down.bytes();
  to->push_back(std::move(own));
  return absl::OkStatus();
}

absl::Status DeviceWeightsMaker::Floats(std::span<const float> from,
                                        const float** to) {
  ASSIGN_OR_RETURN(DeviceBuffer buffer,
                   queue_->Allocate(from.size_bytes(), "vectors"));
  RETURN_IF_ERROR(
      queue_->Upload(from.data(), from.size_bytes(), buffer.as<void>()));
  *to = buffer.as<float>();
  out_->dense_bytes += from.size_bytes();
  out_->storage.push_back(std::move(buffer));
  return absl::OkStatus();
}

void DeviceWeightsMaker::CountFloats(int64_t size) {
  out_->dense_bytes += static_cast<uint64_t>(size) * sizeof(float);
}

absl::Status DeviceWeightsMaker::Ones(int64_t size, const float** to) {
  return Floats(std::vector<float>(static_cast<size_t>(size), 1.0f), to);
}

absl::Status DeviceWeightsMaker::Table(const WeightLayout& layout,
                                       const WeightView& host,
                                       WeightView* to) {
  if (queue_ == nullptr) {
    out_->dense_bytes += layout.bytes();
    return absl::OkStatus();
  }
  *to = host;
  const auto copy =
      [&](const void* from, uint64_t bytes, const void** at) -> absl::Status {
    if (bytes == 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(DeviceBuffer buffer, queue_->Allocate(bytes, "embedding"));
    if (from != nullptr) {
      RETURN_IF_ERROR(queue_->Upload(from, bytes, buffer.as<void>()));
    }
    *at = buffer.as<void>();
    out_->dense_bytes += bytes;
    out_->storage.push_back(std::move(buffer));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(copy(host.data, layout.data_bytes(), &to->data));
  RETURN_IF_ERROR(copy(host.scales, layout.scale_bytes(), &to->scales));
  RETURN_IF_ERROR(copy(host.biases, layout.bias_bytes(), &to->biases));
  if (host.data != nullptr) return absl::OkStatus();
  return kernels::FillMadeUpTable(queue_, SeedOf("embedding"), *to);
}

absl::Status DeviceWeightsMaker::MakeUp(const std::string& name,
                                        DeviceMatrix* matrix) {
  return kernels::FillMadeUp(queue_, SeedOf(name), 1.0, matrix);
}

absl::StatusOr<DeviceExpertStack> DeviceWeightsMaker::Stack(
    const ExpertSources& each, int32_t stack, const std::string& what) {
  ASSIGN_OR_RETURN(
      DeviceExpertStack out,
      kernels::MakeExpertStack(queue_, LayoutsOf(each), stack, what));
  if (each.gate.host.has_value()) return out;
  RETURN_IF_ERROR(MakeUp(what + ", gate and up", &out.gate_up));
  RETURN_IF_ERROR(MakeUp(what + ", down", &out.down));
  return out;
}

absl::Status DeviceWeightsMaker::Fill(const ExpertSources& e,
                                      int32_t index,
                                      DeviceExpertStack* to) {
  return kernels::LoadExpert(
      &loader_, {*e.gate.host, *e.up.host, *e.down.host}, index, to);
}

std::string LayerName(size_t layer, const char* part) {
  return absl::StrCat("layer ", layer, ", ", part);
}

}  // namespace conclave::model

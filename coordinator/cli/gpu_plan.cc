// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/gpu_plan.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "coordinator/cli/backend_choice.h"
#include "coordinator/cli/gpu_fit.h"
#include "coordinator/cli/group_flags.h"
#include "coordinator/cli/group_shares.h"
#include "coordinator/engine.h"
#include "coordinator/model/device_needs.h"
#include "coordinator/model/group_lane.h"
#include "coordinator/model/rank_cut.h"
#include "kernels/device_group.h"

namespace conclave::cli {
namespace {

using model::DeviceNeeds;
using model::GroupForm;
using model::RankConfig;

// What a rank takes, with the slots of its group.
absl::StatusOr<DeviceNeeds> NeedsOf(const GpuPlanRequest& request,
                                    const GpuPlace& place,
                                    const RankConfig& rank) {
  const v1::Coordinator& c = request.config->coordinator();
  const checkpoint::ModelConfig& model = request.checkpoint->config();
  const model::StateSizes least =
      CachesFor(request.config->limits(), model, {});
  const bool two = rank.ranks > 1 && rank.form == GroupForm::kLone &&
                   request.config->exchange().micro_batches() != 1;
  const int32_t lanes = two ? 2 : 1;
  ASSIGN_OR_RETURN(DeviceNeeds needs,
                   model::DeviceNeedsOf(*request.checkpoint,
                                        place.queue.get(),
                                        {.rows_max = least.step_rows,
                                         .sequences_max = least.state_slots,
                                         .exact = request.activations ==
                                                  kernels::Activations::kF32,
                                         .kv = KvDTypeOf(c),
                                         .gdn = GdnDTypeOf(c),
                                         .here = request.here,
                                         .rank = rank,
                                         .lanes = lanes}));
  needs.arrays += request.link_bytes;
  if (rank.ranks == 1) return needs;
  ASSIGN_OR_RETURN(const kernels::GroupExchange exchange,
                   ParseExchange(c.group_exchange()));
  for (int32_t lane = 1; lane <= lanes; ++lane) {
    kernels::DeviceGroup::Options exchanges = model::ExchangesOf(
        rank.ranks,
        model.hidden_size,
        model.vocab_size,
        {.sizes = {},
         .rows_max = (least.step_rows + lane - 1) / lane,
         .sequences_max = (least.state_slots + lane - 1) / lane});
    exchanges.exchange = exchange;
    needs.arrays +=
        kernels::DeviceGroup::BytesOf(rank.ranks, rank.rank, exchanges);
  }
  return needs;
}

absl::StatusOr<std::vector<DeviceNeeds>> AllNeeds(
    const GpuPlanRequest& request,
    std::span<const GpuPlace> places,
    RankConfig rank) {
  std::vector<DeviceNeeds> out;
  for (const GpuPlace& place : places) {
    ASSIGN_OR_RETURN(out.emplace_back(), NeedsOf(request, place, rank));
    ++rank.rank;
  }
  return out;
}

// By memory; `even` is what ranks with even shares need.
absl::StatusOr<std::vector<int32_t>> LoneShares(
    const GpuPlanRequest& request,
    std::span<const GpuPlace> places,
    const std::vector<DeviceNeeds>& even) {
  const checkpoint::ModelConfig& model = request.checkpoint->config();
  const v1::Limits& limits = request.config->limits();
  ASSIGN_OR_RETURN(const model::ColumnMultiples multiples,
                   model::MultiplesOf(*request.checkpoint));
  ShareNeeds needs;
  needs.units =
      (model.moe_intermediate_size + multiples.routed - 1) / multiples.routed;
  uint64_t experts = 0;
  for (size_t r = 0; r < places.size(); ++r) {
    experts += even[r].experts;
    needs.free.push_back(places[r].memory.free_bytes);
    needs.rest.push_back(FixedBytes(even[r], limits, model, places[r].memory) -
                         even[r].experts);
  }
  needs.unit_bytes = experts / static_cast<uint64_t>(needs.units);
  // Without room: kv_tokens, else one context.
  const model::StateSizes cache =
      CachesFor(limits, model, {.each = even[0].each, .bytes = 0});
  needs.cache = static_cast<uint64_t>(cache.kv_blocks) *
                static_cast<uint64_t>(even[0].each.per_kv_block);
  return SharesByMemory(needs);
}

absl::StatusOr<std::string> Uneven(const GpuPlanRequest& request,
                                   const std::vector<std::string>& names,
                                   RankConfig rank) {
  ASSIGN_OR_RETURN(const model::ColumnMultiples multiples,
                   model::MultiplesOf(*request.checkpoint));
  std::vector<int64_t> columns;
  for (rank.rank = 0; rank.rank < rank.ranks; ++rank.rank) {
    ASSIGN_OR_RETURN(
        const model::RankCut cut,
        model::CutFor(request.checkpoint->config(), rank, multiples));
    columns.push_back(cut.columns.size());
  }
  return DescribeShares(names, columns);
}

absl::Status WithShares(const absl::Status& status, const v1::Coordinator& c) {
  if (c.group_shares().empty()) return status;
  return {status.code(),
          absl::StrCat(status.message(),
                       "; or change coordinator.group_shares, ",
                       absl::StrJoin(c.group_shares(), ","))};
}

absl::StatusOr<GpuPlace> Open(const kernels::ListGpusFn& list, int32_t number) {
  ASSIGN_OR_RETURN(const std::vector<kernels::CudaDevice> gpus, list(number));
  GpuPlace out;
  ASSIGN_OR_RETURN(out.name, GpuName(gpus, number));
  const kernels::CudaDevice& device = gpus[static_cast<size_t>(number)];
  out.memory = {.total_bytes = device.memory_total_bytes,
                .free_bytes = device.memory_free_bytes};
  ASSIGN_OR_RETURN(out.queue, kernels::DeviceQueue::Create(number));
  return out;
}

}  // namespace

kernels::KvDType KvDTypeOf(const v1::Coordinator& coordinator) {
  return coordinator.kv_dtype() == "fp8" ? kernels::KvDType::kFp8
                                         : kernels::KvDType::kBF16;
}

kernels::GdnDType GdnDTypeOf(const v1::Coordinator& coordinator) {
  return coordinator.gdn_state() == "bf16" ? kernels::GdnDType::kBF16
                                           : kernels::GdnDType::kF32;
}

absl::StatusOr<GpuPlan> PlanOn(std::span<const GpuPlace> places,
                               const GpuPlanRequest& request) {
  const v1::Coordinator& c = request.config->coordinator();
  RankConfig rank{.ranks = static_cast<int32_t>(places.size()),
                  .shares = {c.group_shares().begin(), c.group_shares().end()}};
  ASSIGN_OR_RETURN(rank.form, ParseForm(c.group_form()));
  ASSIGN_OR_RETURN(std::vector<DeviceNeeds> needs,
                   AllNeeds(request, places, rank));
  const bool lone = rank.form == GroupForm::kLone && rank.ranks > 1;
  if (lone && rank.shares.empty()) {
    ASSIGN_OR_RETURN(rank.shares, LoneShares(request, places, needs));
    ASSIGN_OR_RETURN(needs, AllNeeds(request, places, rank));
  }
  GpuPlan out;
  std::vector<std::string> names;
  for (size_t r = 0; r < places.size(); ++r) {
    names.push_back(places[r].name);
    const absl::StatusOr<model::StateSizes> fits =
        FitOnGpu(needs[r],
                 request.config->limits(),
                 request.checkpoint->config(),
                 places[r].name,
                 places[r].memory);
    if (!fits.ok()) return WithShares(fits.status(), c);
    // A rank without heads has no caches to make room for.
    if (r > 0 && lone) continue;
    if (r == 0 || fits->kv_blocks < out.caches.kv_blocks) out.caches = *fits;
  }
  out.gpus = absl::StrJoin(names, " and ");
  ASSIGN_OR_RETURN(out.uneven, Uneven(request, names, rank));
  out.shares = std::move(rank.shares);
  return out;
}

absl::StatusOr<GpuPlan> PlanGpus(const kernels::ListGpusFn& list,
                                 const GpuPlanRequest& request) {
  const v1::Coordinator& c = request.config->coordinator();
  std::vector<int32_t> numbers(c.gpus().begin(), c.gpus().end());
  if (numbers.empty()) numbers.push_back(c.gpu());
  std::vector<GpuPlace> places;
  for (const int32_t number : numbers) {
    ASSIGN_OR_RETURN(places.emplace_back(), Open(list, number));
  }
  return PlanOn(places, request);
}

}  // namespace conclave::cli

// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/link_failure.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace conclave::experts {
namespace {

constexpr int64_t kExchangesOfLayer = 2;  // rows, then sums

// Those of a layer that are behind it, as far as they said.
std::vector<WorkerId> Late(const LinkFailure& failure,
                           const LinkLayers::Layer& layer,
                           const std::function<LinkPeer(WorkerId)>& look) {
  std::vector<WorkerId> all, silent, behind;
  for (const LinkLayers::Holder& holder : layer.holders) {
    const LinkPeer peer = look(holder.worker);
    all.push_back(holder.worker);
    if (peer.silent || !peer.gone.ok()) silent.push_back(holder.worker);
    const bool knows = peer.link == failure.link && peer.step == failure.step;
    if (!knows || peer.layers <= holder.ordinal) {
      behind.push_back(holder.worker);
    }
  }
  if (!silent.empty()) return silent;
  return behind.empty() ? all : behind;
}

std::string WhatHappened(const LinkFailure& failure) {
  if (failure.lost.has_value() || !absl::IsDeadlineExceeded(failure.status)) {
    return std::string(failure.status.message());
  }
  const bool sent = failure.passed % kExchangesOfLayer != 0;
  return absl::StrCat(sent ? "no sums" : "rows not taken",
                      " within ",
                      absl::FormatDuration(failure.deadline));
}

}  // namespace

absl::Status NameFailure(const LinkFailure& failure,
                         const LinkLayers& layers,
                         const std::function<LinkPeer(WorkerId)>& look,
                         const std::function<std::string(WorkerId)>& name) {
  const auto at =
      std::min(static_cast<size_t>(failure.passed / kExchangesOfLayer),
               layers.elsewhere().size() - 1);
  const LinkLayers::Layer& layer = layers.elsewhere()[at];
  const std::vector<WorkerId> who = failure.lost.has_value()
                                        ? std::vector<WorkerId>{*failure.lost}
                                        : Late(failure, layer, look);
  return absl::UnavailableError(
      absl::StrCat("worker ",
                   absl::StrJoin(who,
                                 ", ",
                                 [&name](std::string* out, WorkerId worker) {
                                   out->append(name(worker));
                                 }),
                   ": exchange over NCCL, layer ",
                   layer.index,
                   ": ",
                   WhatHappened(failure)));
}

}  // namespace conclave::experts

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/model_config.h"
#include "coordinator/model/device_weights_maker.h"
#include "coordinator/model/rank_cut.h"

// The linears of a layer, of which a rank takes its part: rows of those into a
// mixer, columns of those out of it. `config` is the whole model's; `what` is
// named in errors.
namespace conclave::model {

struct AttentionSources {
  Source q, k, v, o;
};
struct GdnSources {
  Source qkv, z, b, a, out;
};

absl::StatusOr<std::vector<Source>> PartIn(
    const AttentionSources& from,
    const checkpoint::ModelConfig& config,
    const RankCut& cut);
absl::StatusOr<Source> PartOut(const AttentionSources& from,
                               const checkpoint::ModelConfig& config,
                               const RankCut& cut,
                               const std::string& what);

// q, k and v of a rank's heads one after the other.
absl::StatusOr<std::vector<Source>> PartIn(
    const GdnSources& from,
    const checkpoint::ModelConfig& config,
    const RankCut& cut);
absl::StatusOr<Source> PartOut(const GdnSources& from,
                               const checkpoint::ModelConfig& config,
                               const RankCut& cut,
                               const std::string& what);

// Rows of gate and up, columns of down.
absl::StatusOr<ExpertSources> PartOf(const ExpertSources& whole,
                                     const Range& columns,
                                     const std::string& what);

// Rows of the language model's head.
absl::StatusOr<Source> PartOfHead(const Source& whole, const RankCut& cut);

// The channels of a GDN layer that a rank has, as ranges of the whole's.
std::vector<Range> GdnChannels(const checkpoint::ModelConfig& config,
                               const RankCut& cut);

}  // namespace conclave::model

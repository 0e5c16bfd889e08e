// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/flags/declare.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/v1/config.pb.h"
#include "coordinator/model/rank_cut.h"
#include "kernels/device_group.h"

ABSL_DECLARE_FLAG(std::string, gpus);
ABSL_DECLARE_FLAG(std::string, form);
ABSL_DECLARE_FLAG(std::string, group_shares);
ABSL_DECLARE_FLAG(std::string, group_exchange);

// What --gpus, --form, --group-shares and --group-exchange mean
// (docs/multi-gpu.md).
namespace conclave::cli {

// "0,1": these; "2": the first two; "": none. InvalidArgument: another text, or
// one GPU twice.
absl::StatusOr<std::vector<int32_t>> ParseGpus(const std::string& text);

// "symmetric" (or empty), "lone".
absl::StatusOr<model::GroupForm> ParseForm(const std::string& word);

// "2,3": of each expert's columns, one for each GPU; "": none.
// InvalidArgument: another text; how many there must be is not checked here.
absl::StatusOr<std::vector<int32_t>> ParseShares(const std::string& text);

// "peer" (or empty), "nccl".
absl::StatusOr<kernels::GroupExchange> ParseExchange(const std::string& word);

// Puts those flags that are given into the coordinator's fields.
absl::Status ApplyGroupFlags(v1::Coordinator* coordinator);

}  // namespace conclave::cli

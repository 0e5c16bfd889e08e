// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/group_flags.h"

#include <algorithm>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/limits.h"
#include "common/status_macros.h"

ABSL_FLAG(std::string,
          gpus,
          "",
          "GPUs that compute the model together: which, \"0,1\", or how many, "
          "\"2\"; empty: one");
ABSL_FLAG(std::string,
          form,
          "",
          "how they share it: symmetric or lone; empty: as the configuration "
          "says, symmetric if nothing");
ABSL_FLAG(std::string,
          group_shares,
          "",
          "what each GPU holds of the experts, relative, comma list; empty: as "
          "the configuration says; if nothing, the same for all, and for serve "
          "in lone form by memory");
ABSL_FLAG(std::string,
          group_exchange,
          "",
          "how they exchange rows: peer or nccl; empty: as the configuration "
          "says, peer if nothing");

namespace conclave::cli {

absl::StatusOr<std::vector<int32_t>> ParseGpus(const std::string& text) {
  std::vector<int32_t> out;
  if (text.empty()) return out;
  for (const auto& word : absl::StrSplit(text, ',')) {
    int32_t number = 0;
    if (!absl::SimpleAtoi(word, &number) || number < 0 ||
        std::find(out.begin(), out.end(), number) != out.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--gpus: \"", text, "\"; say which, 0,1, or how many, 2"));
    }
    out.push_back(number);
  }
  if (out.size() == 1 && text.find(',') == text.npos) {
    const int32_t count = out[0];
    out.clear();
    for (int32_t i = 0; i < std::min(count, limits::kRanksMax + 1); ++i) {
      out.push_back(i);
    }
  }
  if (!out.empty() && out.size() <= size_t{limits::kRanksMax}) return out;
  return absl::InvalidArgumentError(
      absl::StrCat("--gpus: 1 to ", limits::kRanksMax, " GPUs"));
}

absl::StatusOr<model::GroupForm> ParseForm(const std::string& word) {
  if (word.empty() || word == "symmetric") return model::GroupForm::kSymmetric;
  if (word == "lone") return model::GroupForm::kLone;
  return absl::InvalidArgumentError("--form: symmetric or lone");
}

absl::StatusOr<std::vector<int32_t>> ParseShares(const std::string& text) {
  std::vector<int32_t> out;
  if (text.empty()) return out;
  for (const auto& word : absl::StrSplit(text, ',')) {
    int32_t share = 0;
    if (!absl::SimpleAtoi(word, &share) || share < 1 ||
        share > limits::kRankShareMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("--group-shares: \"",
                       text,
                       "\"; one number for each GPU, 2,3, each 1 to ",
                       limits::kRankShareMax));
    }
    out.push_back(share);
  }
  return out;
}

absl::StatusOr<kernels::GroupExchange> ParseExchange(const std::string& word) {
  if (word.empty() || word == "peer") return kernels::GroupExchange::kPeer;
  if (word == "nccl") return kernels::GroupExchange::kNccl;
  return absl::InvalidArgumentError("--group-exchange: peer or nccl");
}

absl::Status ApplyGroupFlags(v1::Coordinator* coordinator) {
  v1::Coordinator& c = *coordinator;
  if (const std::string form = absl::GetFlag(FLAGS_form); !form.empty()) {
    c.set_group_form(form);
  }
  if (const std::string exchange = absl::GetFlag(FLAGS_group_exchange);
      !exchange.empty()) {
    c.set_group_exchange(exchange);
  }
  ASSIGN_OR_RETURN(const std::vector<int32_t> shares,
                   ParseShares(absl::GetFlag(FLAGS_group_shares)));
  if (!shares.empty()) {
    c.mutable_group_shares()->Assign(shares.begin(), shares.end());
  }
  ASSIGN_OR_RETURN(const std::vector<int32_t> gpus,
                   ParseGpus(absl::GetFlag(FLAGS_gpus)));
  if (!gpus.empty()) c.mutable_gpus()->Assign(gpus.begin(), gpus.end());
  return absl::OkStatus();
}

}  // namespace conclave::cli

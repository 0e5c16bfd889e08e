// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/rank_cut.h"

#include <algorithm>
#include <iterator>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/checkpoint/linear.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::model {
namespace {

using checkpoint::ModelConfig;

absl::Status Uncut(const RankConfig& rank,
                   int32_t count,
                   const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(
      count, " ", what, " cannot be cut for ", rank.ranks, " GPUs; use fewer"));
}

// Consecutive ones; where there are fewer than ranks, neighbours share one.
absl::StatusOr<Range> CutHeads(int32_t count,
                               const RankConfig& rank,
                               const std::string& what) {
  if (count % rank.ranks == 0) {
    const int64_t each = count / rank.ranks;
    return Range{rank.rank * each, (rank.rank + 1) * each};
  }
  if (count <= 0 || rank.ranks % count != 0) return Uncut(rank, count, what);
  const int64_t one = rank.rank / (rank.ranks / count);
  return Range{one, one + 1};
}

// Where each rank's part of `units` begins, and the end, [ranks + 1].
std::vector<int64_t> Bounds(int64_t units, const RankConfig& rank) {
  std::vector<int64_t> shares(rank.shares.begin(), rank.shares.end());
  if (shares.empty()) shares.assign(static_cast<size_t>(rank.ranks), 1);
  const int64_t all = std::accumulate(shares.begin(), shares.end(), int64_t{0});
  std::vector<int64_t> out = {0};
  int64_t before = 0;
  for (int32_t r = 1; r <= rank.ranks; ++r) {
    before += shares[static_cast<size_t>(r) - 1];
    const int64_t nearest = (2 * units * before + all - 1) / (2 * all);
    out.push_back(
        std::clamp(nearest, out.back() + 1, units - (rank.ranks - r)));
  }
  return out;
}

absl::StatusOr<Range> CutColumns(int32_t width,
                                 int32_t multiple,
                                 const RankConfig& rank,
                                 const std::string& what) {
  const int64_t units = (width + multiple - 1) / multiple;
  if (units < rank.ranks) {
    return Uncut(
        rank, width, absl::StrCat(what, " (in multiples of ", multiple, ")"));
  }
  const std::vector<int64_t> bounds = Bounds(units, rank);
  const auto at = [&](int32_t r) {
    return std::min<int64_t>(bounds[static_cast<size_t>(r)] * multiple, width);
  };
  return Range{at(rank.rank), at(rank.rank + 1)};
}

absl::Status CheckRank(const RankConfig& rank) {
  if (rank.ranks < 1 || rank.ranks > limits::kRanksMax || rank.rank < 0 ||
      rank.rank >= rank.ranks) {
    return absl::InvalidArgumentError(absl::StrCat("rank ",
                                                   rank.rank,
                                                   " of ",
                                                   rank.ranks,
                                                   " GPUs; a group has 1 to ",
                                                   limits::kRanksMax));
  }
  const bool fits =
      rank.shares.empty() || std::ssize(rank.shares) == rank.ranks;
  if (fits &&
      std::all_of(rank.shares.begin(), rank.shares.end(), [](int32_t s) {
        return s >= 1 && s <= limits::kRankShareMax;
      })) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("shares ",
                   absl::StrJoin(rank.shares, ","),
                   " of ",
                   rank.ranks,
                   " GPUs; give one for each, 1 to ",
                   limits::kRankShareMax));
}

}  // namespace

std::vector<int32_t> HeadBounds(int32_t vocab, int32_t ranks) {
  // Of a device matrix; FP8 blocks hold whole ones.
  constexpr int32_t kTileRows = 16;
  const int64_t tiles = (int64_t{vocab} + kTileRows - 1) / kTileRows;
  std::vector<int32_t> out;
  for (int64_t r = 0; r <= ranks; ++r) {
    const int64_t first = (tiles * r + ranks - 1) / ranks;
    out.push_back(
        static_cast<int32_t>(std::min<int64_t>(first * kTileRows, vocab)));
  }
  return out;
}

int32_t LogitColumns(const RankCut& cut, int32_t vocab) {
  return cut.tokens.begin == 0 ? vocab
                               : static_cast<int32_t>(cut.tokens.size());
}

int32_t ColumnMultipleOf(const WeightLayout& down) {
  constexpr int32_t kPlain = 16;
  if (down.dtype == DType::kF8E4M3) return kFp8Block;
  return down.dtype == DType::kU32 ? std::max(down.group, kPlain) : kPlain;
}

absl::StatusOr<ColumnMultiples> MultiplesOf(
    const checkpoint::Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  ColumnMultiples out{.routed = config.expert_shape().column_multiple};
  for (int32_t i = 0; i < config.num_hidden_layers; ++i) {
    ASSIGN_OR_RETURN(
        const checkpoint::Linear down,
        checkpoint::FindLinear(
            checkpoint,
            absl::StrCat("layers.", i, ".mlp.shared_expert.down_proj")));
    out.shared = std::lcm(out.shared, ColumnMultipleOf(down.layout));
  }
  return out;
}

absl::StatusOr<RankCut> CutFor(const ModelConfig& config,
                               const RankConfig& rank,
                               const ColumnMultiples& multiples) {
  RETURN_IF_ERROR(CheckRank(rank));
  RankCut out;
  ASSIGN_OR_RETURN(out.columns,
                   CutColumns(config.moe_intermediate_size,
                              multiples.routed,
                              rank,
                              "columns of an expert"));
  ASSIGN_OR_RETURN(out.shared_columns,
                   CutColumns(config.shared_expert_intermediate_size,
                              multiples.shared,
                              rank,
                              "columns of the shared expert"));
  const std::vector<int32_t> bounds = HeadBounds(config.vocab_size, rank.ranks);
  const auto own = static_cast<size_t>(rank.rank);
  out.tokens = {bounds[own], bounds[own + 1]};
  const bool lone = rank.form == GroupForm::kLone;
  out.mixers = !lone || rank.rank == 0;
  if (!out.mixers) return out;
  const RankConfig by = lone ? RankConfig{} : rank;
  if (config.num_attention_heads % by.ranks != 0) {
    return Uncut(rank, config.num_attention_heads, "attention heads");
  }
  if (config.linear_num_value_heads % by.ranks != 0) {
    return Uncut(rank, config.linear_num_value_heads, "GDN value heads");
  }
  ASSIGN_OR_RETURN(out.heads,
                   CutHeads(config.num_attention_heads, by, "attention heads"));
  ASSIGN_OR_RETURN(out.kv_heads,
                   CutHeads(config.num_key_value_heads, by, "KV heads"));
  ASSIGN_OR_RETURN(out.key_heads,
                   CutHeads(config.linear_num_key_heads, by, "GDN key heads"));
  ASSIGN_OR_RETURN(
      out.value_heads,
      CutHeads(config.linear_num_value_heads, by, "GDN value heads"));
  return out;
}

ModelConfig ConfigOf(const ModelConfig& whole, const RankCut& cut) {
  ModelConfig out = whole;
  out.num_attention_heads = static_cast<int32_t>(cut.heads.size());
  out.num_key_value_heads = static_cast<int32_t>(cut.kv_heads.size());
  out.linear_num_key_heads = static_cast<int32_t>(cut.key_heads.size());
  out.linear_num_value_heads = static_cast<int32_t>(cut.value_heads.size());
  out.moe_intermediate_size = static_cast<int32_t>(cut.columns.size());
  out.shared_expert_intermediate_size =
      static_cast<int32_t>(cut.shared_columns.size());
  return out;
}

}  // namespace conclave::model

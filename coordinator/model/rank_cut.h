// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/model_config.h"
#include "common/weight_layout.h"

// Which part of a model one rank of a group of devices holds
// (docs/multi-gpu.md).
namespace conclave::model {

enum class GroupForm : uint8_t {
  kSymmetric,  // each rank has a part of the heads and of every expert
  kLone,       // rank 0 has all heads, each rank a part of every expert
};

struct RankConfig {
  int32_t rank = 0;
  int32_t ranks = 1;
  GroupForm form = GroupForm::kSymmetric;
  // [ranks], of the columns of each expert, relative, 1 to
  // limits::kRankShareMax; empty: the same for all. Heads do not follow them.
  std::vector<int32_t> shares = {};
};

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  // Of things of which each of these has `n`.
  Range Times(int64_t n) const { return {begin * n, end * n}; }
  Range After(int64_t n) const { return {begin + n, end + n}; }
};

// Consecutive heads. Key and KV heads are held more than once where there are
// more ranks than heads.
struct RankCut {
  Range heads, kv_heads;         // of attention
  Range key_heads, value_heads;  // of GDN
  Range columns;                 // of every routed expert
  Range shared_columns;          // of the shared one
  Range tokens;                  // of the language model's head
  bool mixers = true;            // this rank has any head of the two above
};

// The first token of each rank's part of the language model's head, and behind
// the last one's, [ranks + 1]: in either form even parts of whole tiles, of
// which ranks but the first may have none.
std::vector<int32_t> HeadBounds(int32_t vocab, int32_t ranks);
// Columns of a rank's logits: rank 0's own are the first of all.
int32_t LogitColumns(const RankCut& cut, int32_t vocab);

// Columns of experts' intermediate dimensions are cut at multiples of these.
struct ColumnMultiples {
  int32_t routed = 16;
  int32_t shared = 16;
};
// Of an expert whose down projection is stored so.
int32_t ColumnMultipleOf(const WeightLayout& down);
absl::StatusOr<ColumnMultiples> MultiplesOf(
    const checkpoint::Checkpoint& checkpoint);

// Columns are cut at the multiple that is nearest to the shares; each rank has
// one multiple of them at the least. InvalidArgument says what cannot be cut
// for so many ranks, or which share is none.
absl::StatusOr<RankCut> CutFor(const checkpoint::ModelConfig& config,
                               const RankConfig& rank,
                               const ColumnMultiples& multiples);

// The model as that rank sees it: with its numbers of heads and columns.
checkpoint::ModelConfig ConfigOf(const checkpoint::ModelConfig& whole,
                                 const RankCut& cut);

}  // namespace conclave::model

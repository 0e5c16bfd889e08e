// SPDX-License-Identifier: Apache-2.0
#include "coordinator/model/rank_sources.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace conclave::model {
namespace {

using checkpoint::ModelConfig;

absl::StatusOr<Source> CutRows(const Source& whole, const Range& rows) {
  if (rows.size() == whole.layout.rows) return whole;
  // A tile of a device matrix has one FP8 scale per 128 columns.
  constexpr int64_t kTileRows = 16;
  if (whole.layout.dtype == DType::kF8E4M3 && rows.begin % kTileRows != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "FP8 rows from ", rows.begin, " on: a multiple of ", kTileRows));
  }
  Source out = whole;
  out.layout.rows = rows.size();
  if (out.host.has_value()) {
    out.host = kernels::Rows(*whole.host, rows.begin, rows.size());
  }
  return out;
}

absl::StatusOr<Source> CutColumns(const Source& whole,
                                  const Range& columns,
                                  const std::string& what) {
  if (columns.size() == whole.layout.cols) return whole;
  const bool plain =
      whole.layout.dtype == DType::kBF16 || whole.layout.dtype == DType::kF32;
  const int64_t multiple = plain ? 1 : ColumnMultipleOf(whole.layout);
  if (columns.begin % multiple != 0 ||
      (columns.end % multiple != 0 && columns.end != whole.layout.cols)) {
    return absl::InvalidArgumentError(absl::StrCat(what,
                                                   ": columns ",
                                                   columns.begin,
                                                   " to ",
                                                   columns.end,
                                                   " cut a group of ",
                                                   multiple,
                                                   "; use fewer GPUs"));
  }
  Source out = whole;
  out.layout.cols = columns.size();
  if (out.host.has_value()) {
    out.host = kernels::Columns(*whole.host, columns.begin, columns.end);
  }
  return out;
}

// Parts of one linear or several, one after the other.
class Parts {
 public:
  absl::Status Add(const Source& whole, const Range& rows) {
    ASSIGN_OR_RETURN(Source part, CutRows(whole, rows));
    out.push_back(std::move(part));
    return absl::OkStatus();
  }
  std::vector<Source> out;
};

}  // namespace

absl::StatusOr<std::vector<Source>> PartIn(const AttentionSources& from,
                                           const ModelConfig& config,
                                           const RankCut& cut) {
  const int64_t dim = config.head_dim;
  Parts parts;
  RETURN_IF_ERROR(parts.Add(from.q, cut.heads.Times(2 * dim)));
  RETURN_IF_ERROR(parts.Add(from.k, cut.kv_heads.Times(dim)));
  RETURN_IF_ERROR(parts.Add(from.v, cut.kv_heads.Times(dim)));
  return std::move(parts.out);
}

absl::StatusOr<Source> PartOut(const AttentionSources& from,
                               const ModelConfig& config,
                               const RankCut& cut,
                               const std::string& what) {
  return CutColumns(from.o, cut.heads.Times(config.head_dim), what);
}

std::vector<Range> GdnChannels(const ModelConfig& config, const RankCut& cut) {
  const int64_t keys =
      int64_t{config.linear_num_key_heads} * config.linear_key_head_dim;
  const Range own = cut.key_heads.Times(config.linear_key_head_dim);
  return {own,
          own.After(keys),
          cut.value_heads.Times(config.linear_value_head_dim).After(2 * keys)};
}

absl::StatusOr<std::vector<Source>> PartIn(const GdnSources& from,
                                           const ModelConfig& config,
                                           const RankCut& cut) {
  Parts parts;
  for (const Range& rows : GdnChannels(config, cut)) {
    RETURN_IF_ERROR(parts.Add(from.qkv, rows));
  }
  RETURN_IF_ERROR(
      parts.Add(from.z, cut.value_heads.Times(config.linear_value_head_dim)));
  RETURN_IF_ERROR(parts.Add(from.b, cut.value_heads));
  RETURN_IF_ERROR(parts.Add(from.a, cut.value_heads));
  return std::move(parts.out);
}

absl::StatusOr<Source> PartOut(const GdnSources& from,
                               const ModelConfig& config,
                               const RankCut& cut,
                               const std::string& what) {
  return CutColumns(
      from.out, cut.value_heads.Times(config.linear_value_head_dim), what);
}

absl::StatusOr<Source> PartOfHead(const Source& whole, const RankCut& cut) {
  return CutRows(whole, cut.tokens);
}

absl::StatusOr<ExpertSources> PartOf(const ExpertSources& whole,
                                     const Range& columns,
                                     const std::string& what) {
  ExpertSources out;
  ASSIGN_OR_RETURN(out.gate, CutRows(whole.gate, columns));
  ASSIGN_OR_RETURN(out.up, CutRows(whole.up, columns));
  ASSIGN_OR_RETURN(out.down, CutColumns(whole.down, columns, what));
  return out;
}

}  // namespace conclave::model

// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/linear.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/tensor_check.h"
#include "common/checkpoint/tensor_list.h"
#include "common/status_macros.h"

namespace conclave::checkpoint {
namespace {

// [.., rows, cols] -> the last two.
absl::Status SetShape(Linear& out) {
  const std::vector<int64_t>& shape = out.weight.shape;
  if (shape.size() < 2) return BadTensor(out.weight, "is no matrix");
  out.layout.rows = shape[shape.size() - 2];
  out.layout.cols = shape.back();
  out.layout.dtype = out.weight.dtype;
  return absl::OkStatus();
}

absl::StatusOr<Linear> FindGptq(const Checkpoint& checkpoint,
                                const std::string& module) {
  Linear out;
  const Quantisation& q = checkpoint.config().quantisation;
  ASSIGN_OR_RETURN(out.weight,
                   checkpoint.Find(module + std::string(kGptqCodes)));
  ASSIGN_OR_RETURN(out.scales,
                   checkpoint.Find(module + std::string(kAffineScales)));
  ASSIGN_OR_RETURN(out.zeros, checkpoint.Find(module + ".qzeros"));
  ASSIGN_OR_RETURN(out.order, checkpoint.Find(module + ".g_idx"));
  out.transposed = true;
  out.zero = q.gptq_zero;
  out.layout = {.dtype = DType::kU32,
                .rows = out.weight.shape[1],
                .cols = out.weight.shape[0] * 32 / q.affine.bits,
                .bits = q.affine.bits,
                .group = q.affine.group,
                .scale_dtype = out.scales->dtype};
  return out;
}

absl::StatusOr<Linear> FindAffine(const Checkpoint& checkpoint,
                                  const std::string& module) {
  Linear out;
  ASSIGN_OR_RETURN(out.weight, checkpoint.Find(module + ".weight"));
  ASSIGN_OR_RETURN(out.scales,
                   checkpoint.Find(module + std::string(kAffineScales)));
  ASSIGN_OR_RETURN(out.biases,
                   checkpoint.Find(module + std::string(kAffineBiases)));
  const AffineFormat format = checkpoint.config().quantisation.Of(module);
  RETURN_IF_ERROR(SetShape(out));
  out.layout.cols = out.scales->shape.back() * format.group;
  out.layout.bits = format.bits;
  out.layout.group = format.group;
  out.layout.scale_dtype = out.scales->dtype;
  out.layout.biases = true;
  if (out.biases->dtype != out.scales->dtype) {
    return BadTensor(*out.biases, "its dtype differs from that of the scales");
  }
  return out;
}

}  // namespace

absl::StatusOr<Linear> FindLinear(const Checkpoint& checkpoint,
                                  const std::string& module) {
  const std::string name = module + ".weight";
  if (checkpoint.Has(module + std::string(kGptqCodes))) {
    return FindGptq(checkpoint, module);
  }
  if (checkpoint.Has(module + std::string(kAffineScales))) {
    return FindAffine(checkpoint, module);
  }
  Linear out;
  ASSIGN_OR_RETURN(out.weight, checkpoint.Find(name));
  RETURN_IF_ERROR(SetShape(out));
  if (out.weight.dtype != DType::kF8E4M3) return out;
  ASSIGN_OR_RETURN(out.scales,
                   checkpoint.Find(name + std::string(kScaleSuffix)));
  out.layout.group = kFp8Block;
  return out;
}

absl::StatusOr<Expert> FindExpert(const Checkpoint& checkpoint,
                                  const std::string& at,
                                  ExpertId expert) {
  const int64_t e = Index(expert);
  const ModelConfig& config = checkpoint.config();
  Expert out;
  const std::string fused = at + "experts.";
  if (checkpoint.Has(fused + "gate_up_proj")) {
    ASSIGN_OR_RETURN(out.gate.weight, checkpoint.Find(fused + "gate_up_proj"));
    ASSIGN_OR_RETURN(out.down.weight, checkpoint.Find(fused + "down_proj"));
    RETURN_IF_ERROR(SetShape(out.gate));
    RETURN_IF_ERROR(SetShape(out.down));
    const int64_t width = out.gate.layout.rows /= 2;
    out.gate.first_row = 2 * e * width;
    out.up = out.gate;
    out.up.first_row += width;
    out.down.first_row = e * config.hidden_size;
    return out;
  }
  const std::string stacked = at + "switch_mlp.";
  const bool is_stacked = checkpoint.Has(stacked + "gate_proj.weight");
  const std::string own = is_stacked ? stacked : absl::StrCat(fused, e, ".");
  ASSIGN_OR_RETURN(out.gate, FindLinear(checkpoint, own + "gate_proj"));
  ASSIGN_OR_RETURN(out.up, FindLinear(checkpoint, own + "up_proj"));
  ASSIGN_OR_RETURN(out.down, FindLinear(checkpoint, own + "down_proj"));
  if (is_stacked) {
    out.gate.first_row = out.up.first_row = e * out.gate.layout.rows;
    out.down.first_row = e * out.down.layout.rows;
  }
  return out;
}

absl::StatusOr<WeightLayout> LayoutOf(const Linear& linear,
                                      const Cut& cut,
                                      bool stacked) {
  WeightLayout out = linear.layout;
  const bool fp8 = out.dtype == DType::kF8E4M3;
  const auto fits = [](int64_t begin, int64_t end, int64_t whole, int64_t of) {
    return begin % of == 0 && (end % of == 0 || end == whole);
  };
  const int64_t multiple = fp8 ? kFp8Block : std::max(out.group, 1);
  if (!fits(cut.col_begin, cut.col_end, out.cols, multiple) ||
      (fp8 && !fits(cut.row_begin, cut.row_end, out.rows, multiple))) {
    return BadTensor(
        linear.weight,
        absl::StrCat("can only be cut at multiples of ", multiple));
  }
  out.rows = cut.rows();
  out.cols = cut.cols();
  if (fp8 && stacked) {
    // Rows that share a scale wherever a part of the stack begins.
    out.group = static_cast<int32_t>(std::gcd(int64_t{kFp8Block}, out.rows));
  }
  return out;
}

}  // namespace conclave::checkpoint

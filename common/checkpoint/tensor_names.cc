// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/tensor_names.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace conclave::checkpoint {
namespace {

constexpr std::array kPrefixes = {
    Prefix{"model.language_model.", ""},
    Prefix{"language_model.model.", "language_model."},
    Prefix{"model.", ""},
};

std::string NotFloat(DType dtype) {
  if (dtype == DType::kF8E4M3) {
    return absl::StrCat(
        "has no scales (", std::string(kScaleSuffix), " behind its name)");
  }
  if (dtype == DType::kU32) {
    return "has no scales, or config.json does not say \"quantization\"";
  }
  return "only BF16 and F32 are supported";
}

}  // namespace

std::span<const Prefix> Prefixes() { return kPrefixes; }

bool IsVision(std::string_view name) {
  return name.starts_with("model.visual.") || name.starts_with("visual.") ||
         name.starts_with("vision_tower.");
}

bool IsTop(std::string_view name) {
  return name.starts_with("lm_head.") || name.starts_with("mtp.");
}

std::string Canonical(const std::string& name, const Prefix& prefix) {
  if (name.starts_with(prefix.model)) return name.substr(prefix.model.size());
  for (std::string_view top : {prefix.top, std::string_view()}) {
    if (!name.starts_with(top)) continue;
    const std::string rest = name.substr(top.size());
    if (IsTop(rest)) return rest;
  }
  return "";
}

std::string ShapeText(const TensorView& tensor) {
  return absl::StrCat(std::string(Name(tensor.dtype)),
                      " [",
                      absl::StrJoin(tensor.shape, ", "),
                      "]");
}

std::string WantedDType(TensorKind kind, DType dtype) {
  switch (kind) {
    case TensorKind::kFloat:
      return dtype == DType::kBF16 || dtype == DType::kF32 ? ""
                                                           : NotFloat(dtype);
    case TensorKind::kFp8:
      return dtype == DType::kF8E4M3 ? "" : "it has scales, so F8_E4M3 is due";
    case TensorKind::kFp8Scales:
      return dtype == DType::kBF16 ? "" : "scales are BF16";
    case TensorKind::kAffine:
      return dtype == DType::kU32 ? "" : "it has scales, so U32 is due";
    case TensorKind::kHalf:
      return dtype == DType::kBF16 || dtype == DType::kF16
                 ? ""
                 : "scales and biases are BF16 or F16";
    case TensorKind::kGptq:
    case TensorKind::kIndex:
      return dtype == DType::kI32 ? "" : "I32 is due";
  }
  return "";
}

}  // namespace conclave::checkpoint

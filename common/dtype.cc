// SPDX-License-Identifier: Apache-2.0
#include "common/dtype.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace conclave {
namespace {

struct Row {
  std::string_view name;
  size_t size_bytes;
};
constexpr std::array<Row, 9> kRows = {{{"F32", 4},
                                       {"BF16", 2},
                                       {"F16", 2},
                                       {"I8", 1},
                                       {"U8", 1},
                                       {"I32", 4},
                                       {"U32", 4},
                                       {"I64", 8},
                                       {"F8_E4M3", 1}}};

const Row& Find(DType dtype) {
  const auto index = static_cast<size_t>(dtype);
  CONCLAVE_CHECK_LT(index, kRows.size());
  return kRows[index];
}

}  // namespace

size_t SizeOf(DType dtype) { return Find(dtype).size_bytes; }

std::string_view Name(DType dtype) { return Find(dtype).name; }

absl::StatusOr<DType> DTypeFromName(std::string_view name) {
  for (size_t i = 0; i < kRows.size(); ++i) {
    if (kRows[i].name == name) return static_cast<DType>(i);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown tensor dtype \"", std::string(name), "\""));
}

}  // namespace conclave

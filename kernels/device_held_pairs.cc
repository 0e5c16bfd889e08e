// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_held_pairs.h"

#include "absl/strings/str_cat.h"

namespace conclave::kernels {
namespace {

constexpr int32_t kGroupWords = 4;

size_t Pairs(int32_t rows, int32_t per_row) {
  return static_cast<size_t>(rows) * static_cast<size_t>(per_row);
}

}  // namespace

HeldPairs HeldPairsAt(const DeviceChoices& choices,
                      const DeviceHeld& held,
                      int32_t group_rows,
                      int32_t* words) {
  const size_t pairs = Pairs(choices.rows, choices.per_row);
  HeldPairs out;
  DeviceEntries& e = out.entries;
  e = {.rows = choices.rows,
       .per_row = choices.per_row,
       .experts = held.numbers,
       .group_rows = group_rows};
  e.groups_max =
      GroupsMax(static_cast<int64_t>(pairs), held.numbers, group_rows);
  // Groups, which are read 16 bytes at a time, come first.
  e.groups = words;
  e.group_count = words + kGroupWords * pairs;
  e.row = e.group_count + 1;
  e.place = e.row + pairs;
  out.first = e.place + pairs;
  out.pair = out.first + choices.rows + 1;
  out.weight = reinterpret_cast<float*>(out.pair + pairs);
  out.sums = {.rows = choices.rows,
              .first = out.first,
              .pair = out.pair,
              .weight = out.weight};
  return out;
}

size_t HeldPairsBytes(int32_t rows, int32_t per_row) {
  // No more groups than pairs.
  constexpr size_t kArrays = kGroupWords + 4;
  return (kArrays * Pairs(rows, per_row) + static_cast<size_t>(rows) + 2) *
         sizeof(int32_t);
}

absl::Status CheckHeld(const DeviceHeld& held) {
  if (held.numbers <= kHeldNumbersMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("pairs of ",
                   held.numbers,
                   " experts on a device: the limit is ",
                   kHeldNumbersMax));
}

}  // namespace conclave::kernels

// SPDX-License-Identifier: Apache-2.0
// A safetensors file of any bytes: every view that comes back lies inside it.

#include <cstdint>
#include <cstdlib>

#include "common/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using conclave::checkpoint::ParseSafetensors;
  const auto file = std::as_bytes(std::span(data, size));
  const auto tensors = ParseSafetensors(file, "fuzz");
  if (!tensors.ok()) return 0;
  unsigned sum = 0;
  for (const auto& tensor : *tensors) {
    uint64_t bytes = conclave::SizeOf(tensor.dtype);
    for (int64_t dimension : tensor.shape) bytes *= dimension;
    if (bytes != tensor.data.size()) std::abort();
    for (std::byte b : tensor.data) sum += std::to_integer<unsigned>(b);
  }
  volatile unsigned read = sum;
  (void)read;
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
#include "common/buffer.h"

#include <sys/mman.h>

namespace conclave {
namespace {

constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
// From here on the ends that are no whole huge page do not count.
constexpr size_t kLarge = size_t{8} << 20;

}  // namespace

std::byte* Buffer::Allocate(size_t size) {
  auto* out = static_cast<std::byte*>(::operator new[](size, kAlignment));
  if (size >= kLarge) {
    const auto address = reinterpret_cast<uintptr_t>(out);
    const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t end = (address + size) / kHugePage * kHugePage;
    // Advice: a system without huge pages ignores it.
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
  return out;
}

}  // namespace conclave

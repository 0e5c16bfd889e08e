// SPDX-License-Identifier: Apache-2.0
// Linked where CONCLAVE_NCCL is OFF: there is never a link.
#include "kernels/device_link.h"

namespace conclave::kernels {
namespace {

absl::Status NotBuilt() {
  return absl::UnavailableError(
      "this build has no NCCL (CONCLAVE_NCCL=OFF); use exchange.over: grpc, or "
      "configure with -DCONCLAVE_NCCL=ON");
}

}  // namespace

struct DeviceLink::Impl {};

absl::StatusOr<std::string> DeviceLink::NewId() { return NotBuilt(); }

absl::StatusOr<std::unique_ptr<DeviceLink>> DeviceLink::Create(DeviceQueue*,
                                                               const Options&) {
  return NotBuilt();
}

DeviceLink::DeviceLink(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceLink::~DeviceLink() = default;

absl::Status DeviceLink::Exchange(std::span<const LinkPart>,
                                  std::span<const LinkPart>) {
  return NotBuilt();
}
absl::Status DeviceLink::Wait() { return NotBuilt(); }
void DeviceLink::Abort() {}
int64_t DeviceLink::passed() const { return 0; }

}  // namespace conclave::kernels

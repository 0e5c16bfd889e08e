// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nccl.h>

#include "absl/status/status.h"

namespace conclave::kernels::cuda {

// libnccl.so.2, opened when it is first asked for; functions that it lacks are
// null.
struct NcclLibrary {
  decltype(&ncclCommInitAll) init_all = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) init_rank = nullptr;
  decltype(&ncclCommGetAsyncError) async_error = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) receive = nullptr;
  decltype(&ncclGetErrorString) error = nullptr;

  // Unavailable: not there or too old; says what to install.
  absl::Status Check() const;
};

const NcclLibrary& Nccl();

// `what` was done. ncclInProgress is no error.
absl::Status FromNccl(ncclResult_t result, const char* what);

}  // namespace conclave::kernels::cuda

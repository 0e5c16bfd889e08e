// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace conclave::kernels::cuda {
namespace {

template <typename F>
void Find(void* library, const char* name, F* to) {
  *to = reinterpret_cast<F>(dlsym(library, name));
}

// Connections are made with the communicators, since nothing can be allocated
// while a step is recorded, and not over NVLink multicast; buffers are not
// registered with recordings, which an abort would wait for. Who set these
// variables is heard.
NcclLibrary Open() {
  setenv("NCCL_RUNTIME_CONNECT", "0", 0);
  setenv("NCCL_NVLS_ENABLE", "0", 0);
  setenv("NCCL_GRAPH_REGISTER", "0", 0);
  NcclLibrary out;
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return out;
  Find(library, "ncclCommInitAll", &out.init_all);
  Find(library, "ncclGetUniqueId", &out.get_unique_id);
  Find(library, "ncclCommInitRankConfig", &out.init_rank);
  Find(library, "ncclCommGetAsyncError", &out.async_error);
  Find(library, "ncclCommAbort", &out.abort);
  Find(library, "ncclGroupStart", &out.group_start);
  Find(library, "ncclGroupEnd", &out.group_end);
  Find(library, "ncclAllGather", &out.all_gather);
  Find(library, "ncclBroadcast", &out.broadcast);
  Find(library, "ncclSend", &out.send);
  Find(library, "ncclRecv", &out.receive);
  Find(library, "ncclGetErrorString", &out.error);
  return out;
}

}  // namespace

absl::Status NcclLibrary::Check() const {
  if (init_all != nullptr && get_unique_id != nullptr && init_rank != nullptr &&
      async_error != nullptr && abort != nullptr && group_start != nullptr &&
      group_end != nullptr && all_gather != nullptr && broadcast != nullptr &&
      send != nullptr && receive != nullptr && error != nullptr) {
    return absl::OkStatus();
  }
  return absl::UnavailableError(
      "libnccl.so.2 is not there or too old; install NCCL 2.18 or newer");
}

const NcclLibrary& Nccl() {
  static const NcclLibrary library = Open();
  return library;
}

absl::Status FromNccl(ncclResult_t result, const char* what) {
  if (result == ncclSuccess || result == ncclInProgress) {
    return absl::OkStatus();
  }
  return absl::InternalError(
      absl::StrCat("NCCL: ", what, ": ", Nccl().error(result)));
}

}  // namespace conclave::kernels::cuda

// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/process.h"

#include <cstdlib>
#include <mutex>

namespace conclave::kernels::cuda {

void PrepareProcess() {
  static std::once_flag once;
  std::call_once(once, [] { setenv("CUDA_MODULE_LOADING", "EAGER", 0); });
}

}  // namespace conclave::kernels::cuda

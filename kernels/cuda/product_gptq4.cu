// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/products.cuh"

namespace conclave::kernels::cuda {

template struct Products<DeviceFormat::kGptq4>;

}  // namespace conclave::kernels::cuda

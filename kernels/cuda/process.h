// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace conclave::kernels::cuda {

// Before the first call of CUDA; later ones do nothing. Has all kernels loaded
// with the context, unless CUDA_MODULE_LOADING is set: one that is loaded when
// it is first launched waits for all that runs on the device, and a kernel that
// runs may wait for what the launching thread is yet to send. Sets an
// environment variable: due while no other thread reads one.
void PrepareProcess();

}  // namespace conclave::kernels::cuda

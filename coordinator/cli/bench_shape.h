// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/status/status.h"
#include "coordinator/cli/command.h"

namespace conclave::cli {

// `bench decode --shape`: a published shape with made-up weights on the GPU.
absl::Status BenchShapeDecode();

// `bench prefill`: the same for prompts.
Command BenchPrefillCommand();

}  // namespace conclave::cli

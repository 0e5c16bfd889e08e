// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/flags/declare.h"
#include "absl/status/statusor.h"
#include "conclave/v1/config.pb.h"
#include "kernels/context.h"

// Flags that several subcommands read. Each overrides its field of the file.
ABSL_DECLARE_FLAG(std::string, config);
ABSL_DECLARE_FLAG(std::string, model);
ABSL_DECLARE_FLAG(std::string, kv_dtype);
ABSL_DECLARE_FLAG(std::string, gdn_state);
ABSL_DECLARE_FLAG(std::string, simd);
ABSL_DECLARE_FLAG(std::string, log_level);
ABSL_DECLARE_FLAG(std::string, out);
ABSL_DECLARE_FLAG(std::string, api_key);
ABSL_DECLARE_FLAG(std::string, sequences);
ABSL_DECLARE_FLAG(int32_t, context);

namespace conclave::cli {

// Puts --model and --activations into a configuration.
absl::Status ApplyFlags(v1::ClusterConfig* config);

// --config, or the defaults, with these flags applied. InvalidArgument when
// neither says which model.
absl::StatusOr<v1::ClusterConfig> ConfigFromFlags();

// --simd (else the file's), --log-level.
absl::Status UseProcessFlags(const std::string& simd);

// --kv-dtype, or bf16: for what reads no file.
std::string KvDtypeFromFlags();
// --gdn-state, or f32: likewise.
std::string GdnStateFromFlags();

// "1,8,32": numbers from `min` to `max`. An empty list means the fallback.
absl::StatusOr<std::vector<int32_t>> Counts(const std::string& list,
                                            const std::string& fallback,
                                            int32_t max = 1024,
                                            int32_t min = 1);

// "conclave serve: <message>" to standard error; returns exit code 1.
int Fail(const std::string& command, const absl::Status& status);

}  // namespace conclave::cli

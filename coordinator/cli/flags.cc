// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/flags.h"

#include <iostream>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/config/cluster_config.h"
#include "common/log.h"
#include "common/status_macros.h"

ABSL_FLAG(std::string, config, "", "cluster file (docs/configuration.md)");
ABSL_FLAG(std::string, model, "", "folder of the checkpoint");
ABSL_FLAG(std::string,
          activations,
          "",
          "of products with quantised weights: int8 or f32; empty: as the "
          "configuration says, int8 if nothing");
ABSL_FLAG(std::string,
          kv_dtype,
          "",
          "keys and values: bf16, fp8 or, in plans, f32; empty: as the "
          "configuration says, bf16 if nothing");
ABSL_FLAG(std::string,
          gdn_state,
          "",
          "Gated DeltaNet's states on a GPU or in plans: f32 or bf16; empty: "
          "as the configuration says, f32 if nothing");
ABSL_FLAG(std::string, simd, "", "pin one SIMD target, e.g. AVX2; empty: best");
ABSL_FLAG(std::string, log_level, "info", "debug, info, warning, error or off");
ABSL_FLAG(std::string,
          out,
          "",
          "where the result goes (doctor: file; quantize: new folder)");
ABSL_FLAG(std::string, api_key, "", "key of the HTTP port");
ABSL_FLAG(std::string,
          sequences,
          "",
          "sequences at once, comma list (bench: 1,8; plan: 1,8,32)");
ABSL_FLAG(int32_t,
          context,
          0,
          "tokens of each sequence; 0: 128 in bench, 16384 in plan");

namespace conclave::cli {

absl::Status ApplyFlags(v1::ClusterConfig* config) {
  const std::string model = absl::GetFlag(FLAGS_model);
  if (!model.empty()) config->set_model(model);
  const std::string activations = absl::GetFlag(FLAGS_activations);
  if (activations.empty()) return absl::OkStatus();
  config->mutable_coordinator()->set_activations(activations);
  return kernels::ParseActivations(activations).status();
}

absl::StatusOr<v1::ClusterConfig> ConfigFromFlags() {
  v1::ClusterConfig config = config::DefaultClusterConfig();
  const std::string file = absl::GetFlag(FLAGS_config);
  if (!file.empty()) {
    ASSIGN_OR_RETURN(config, config::LoadClusterConfig(file));
  }
  RETURN_IF_ERROR(ApplyFlags(&config));
  if (config.model().empty()) {
    return absl::InvalidArgumentError(
        "no model: give --model DIR, or --config FILE with a model: line");
  }
  return config;
}

absl::Status UseProcessFlags(const std::string& simd) {
  if (!log::SetLevel(absl::GetFlag(FLAGS_log_level))) {
    return absl::InvalidArgumentError(
        absl::StrCat("--log-level ",
                     absl::GetFlag(FLAGS_log_level),
                     ": use debug, info, warning, error or off"));
  }
  const std::string flag = absl::GetFlag(FLAGS_simd);
  return kernels::PinSimdTarget(flag.empty() ? simd : flag);
}

std::string KvDtypeFromFlags() {
  const std::string word = absl::GetFlag(FLAGS_kv_dtype);
  return word.empty() ? "bf16" : word;
}

std::string GdnStateFromFlags() {
  const std::string word = absl::GetFlag(FLAGS_gdn_state);
  return word.empty() ? "f32" : word;
}

absl::StatusOr<std::vector<int32_t>> Counts(const std::string& list,
                                            const std::string& fallback,
                                            int32_t max,
                                            int32_t min) {
  std::vector<int32_t> out;
  for (const auto& word : absl::StrSplit(list.empty() ? fallback : list, ',')) {
    int32_t value = 0;
    if (!absl::SimpleAtoi(word, &value) || value < min || value > max) {
      return absl::InvalidArgumentError(absl::StrCat(
          "\"", list, "\": numbers from ", min, " to ", max, ", with commas"));
    }
    out.push_back(value);
  }
  return out;
}

int Fail(const std::string& command, const absl::Status& status) {
  std::cerr << "conclave " << command << ": " << status.message() << "\n";
  return 1;
}

}  // namespace conclave::cli

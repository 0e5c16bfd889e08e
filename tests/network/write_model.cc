// SPDX-License-Identifier: Apache-2.0
// A checkpoint of random weights, for measurements where the embedded model is
// too small. No tokenizer: for `conclave bench`, not for `serve`.
//
//   write_model FOLDER LAYERS HIDDEN EXPERTS TOP_K INTERMEDIATE [NAME=VALUE...]
//   write_model FOLDER LAYERS SHAPE [NAME=VALUE...]
//
// SHAPE: 35b-a3b, 122b-a10b or 397b-a17b, with so many layers of it. Names:
// format (bf16, fp8, gptq-int4, mlx3 to mlx6, mlx8), vocab, shared, heads,
// kv_heads, head_dim, gdn_key_heads, gdn_value_heads, gdn_key_dim,
// gdn_value_dim, positions, files. One tensor at a time is in memory.

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "common/status_macros.h"
#include "coordinator/planner/shapes.h"
#include "tests/testing/checkpoint_writer.h"

namespace {

using conclave::checkpoint::QuantFormat;
using conclave::planner::WeightFormat;
using conclave::testing::CheckpointOptions;

constexpr char kUsage[] =
    "write_model FOLDER LAYERS (HIDDEN EXPERTS TOP_K INTERMEDIATE | SHAPE) "
    "[NAME=VALUE...]";

absl::Status UseShape(const std::string& name, CheckpointOptions* options) {
  ASSIGN_OR_RETURN(const conclave::checkpoint::ModelConfig shape,
                   conclave::planner::ShapeOf(name));
  CheckpointOptions& o = *options;
  o.hidden = shape.hidden_size;
  o.vocab = shape.vocab_size;
  o.experts = shape.num_experts;
  o.experts_per_token = shape.num_experts_per_tok;
  o.intermediate = shape.moe_intermediate_size;
  o.shared = shape.shared_expert_intermediate_size;
  o.heads = shape.num_attention_heads;
  o.kv_heads = shape.num_key_value_heads;
  o.head_dim = shape.head_dim;
  o.gdn_key_heads = shape.linear_num_key_heads;
  o.gdn_value_heads = shape.linear_num_value_heads;
  o.gdn_key_dim = shape.linear_key_head_dim;
  o.gdn_value_dim = shape.linear_value_head_dim;
  o.positions = shape.max_position_embeddings;
  return absl::OkStatus();
}

absl::Status UseFormat(const std::string& name, CheckpointOptions* o) {
  ASSIGN_OR_RETURN(const WeightFormat format,
                   conclave::planner::ParseFormat(name));
  switch (format) {
    case WeightFormat::kBf16:
      break;
    case WeightFormat::kFp8:
      o->format = QuantFormat::kFp8;
      break;
    case WeightFormat::kGptqInt4:
      o->format = QuantFormat::kGptq;
      o->affine = {4, 128};
      break;
    default:  // "mlx" and the bits
      o->format = QuantFormat::kMlx;
      o->affine = {name.back() - '0', 64};
  }
  return absl::OkStatus();
}

absl::Status UseWord(const std::string& word, CheckpointOptions* o) {
  const std::map<std::string, int*> numbers = {
      {"vocab", &o->vocab},
      {"shared", &o->shared},
      {"heads", &o->heads},
      {"kv_heads", &o->kv_heads},
      {"head_dim", &o->head_dim},
      {"gdn_key_heads", &o->gdn_key_heads},
      {"gdn_value_heads", &o->gdn_value_heads},
      {"gdn_key_dim", &o->gdn_key_dim},
      {"gdn_value_dim", &o->gdn_value_dim},
      {"positions", &o->positions},
      {"files", &o->files}};
  const size_t equals = word.find('=');
  const std::string name = word.substr(0, equals);
  if (equals == word.npos) {
    return absl::InvalidArgumentError(word + " is not NAME=VALUE");
  }
  const std::string value = word.substr(equals + 1);
  if (name == "format") return UseFormat(value, o);
  const auto number = numbers.find(name);
  if (number == numbers.end()) {
    return absl::InvalidArgumentError(name + " is no name of an option");
  }
  *number->second = std::atoi(value.c_str());
  return absl::OkStatus();
}

absl::Status Write(int argc, char** argv) {
  if (argc < 4) return absl::InvalidArgumentError(kUsage);
  CheckpointOptions options;
  options.layers = std::atoi(argv[2]);
  int next = 4;
  const std::string shape = argv[3];
  if (shape.find('-') == shape.npos) {  // a number
    if (argc < 7) return absl::InvalidArgumentError(kUsage);
    options.hidden = std::atoi(shape.c_str());
    options.experts = std::atoi(argv[4]);
    options.experts_per_token = std::atoi(argv[5]);
    options.intermediate = std::atoi(argv[6]);
    options.vocab = 4096;
    next = 7;
  } else {
    RETURN_IF_ERROR(UseShape(shape, &options));
  }
  for (; next < argc; ++next) RETURN_IF_ERROR(UseWord(argv[next], &options));
  conclave::testing::WriteCheckpoint(argv[1], options);
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  const absl::Status status = Write(argc, argv);
  if (status.ok()) return EXIT_SUCCESS;
  std::fprintf(
      stderr, "write_model: %s\n", std::string(status.message()).c_str());
  return EXIT_FAILURE;
}

// SPDX-License-Identifier: Apache-2.0
// write_model FOLDER LAYERS HIDDEN EXPERTS TOP_K INTERMEDIATE [NAME=VALUE...]:
// a checkpoint of random weights, for measurements where the embedded model is
// too small. Names: vocab, shared, heads, kv_heads, head_dim, gdn_key_heads,
// gdn_value_heads, gdn_key_dim, gdn_value_dim.

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "tests/testing/checkpoint_writer.h"

int main(int argc, char** argv) {
  if (argc < 7) {
    std::fprintf(stderr,
                 "write_model FOLDER LAYERS HIDDEN EXPERTS TOP_K "
                 "INTERMEDIATE [NAME=VALUE...]\n");
    return EXIT_FAILURE;
  }
  conclave::testing::CheckpointOptions options;
  options.layers = std::atoi(argv[2]);
  options.hidden = std::atoi(argv[3]);
  options.experts = std::atoi(argv[4]);
  options.experts_per_token = std::atoi(argv[5]);
  options.intermediate = std::atoi(argv[6]);
  options.vocab = 4096;
  const std::map<std::string, int*> names = {
      {"vocab", &options.vocab},
      {"shared", &options.shared},
      {"heads", &options.heads},
      {"kv_heads", &options.kv_heads},
      {"head_dim", &options.head_dim},
      {"gdn_key_heads", &options.gdn_key_heads},
      {"gdn_value_heads", &options.gdn_value_heads},
      {"gdn_key_dim", &options.gdn_key_dim},
      {"gdn_value_dim", &options.gdn_value_dim}};
  for (int i = 7; i < argc; ++i) {
    const std::string word = argv[i];
    const size_t equals = word.find('=');
    const auto name = names.find(word.substr(0, equals));
    if (equals == word.npos || name == names.end()) {
      std::fprintf(stderr, "write_model: %s is not NAME=VALUE\n", argv[i]);
      return EXIT_FAILURE;
    }
    *name->second = std::atoi(word.c_str() + equals + 1);
  }
  conclave::testing::WriteCheckpoint(argv[1], options);
  return EXIT_SUCCESS;
}

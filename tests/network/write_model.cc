// SPDX-License-Identifier: Apache-2.0
// write_model FOLDER LAYERS HIDDEN EXPERTS TOP_K INTERMEDIATE: a checkpoint of
// random weights, for measurements where the embedded model is too small.

#include <cstdio>
#include <cstdlib>

#include "tests/testing/checkpoint_writer.h"

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr,
                 "write_model FOLDER LAYERS HIDDEN EXPERTS TOP_K "
                 "INTERMEDIATE\n");
    return EXIT_FAILURE;
  }
  conclave::testing::CheckpointOptions options;
  options.layers = std::atoi(argv[2]);
  options.hidden = std::atoi(argv[3]);
  options.experts = std::atoi(argv[4]);
  options.experts_per_token = std::atoi(argv[5]);
  options.intermediate = std::atoi(argv[6]);
  options.vocab = 4096;
  conclave::testing::WriteCheckpoint(argv[1], options);
  return EXIT_SUCCESS;
}

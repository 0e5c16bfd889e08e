// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "coordinator/cli/bench_decode.h"
#include "coordinator/cli/bench_exchange.h"
#include "coordinator/cli/bench_load.h"
#include "coordinator/cli/bench_shape.h"
#include "coordinator/cli/chat.h"
#include "coordinator/cli/command.h"
#include "coordinator/cli/doctor.h"
#include "coordinator/cli/plan.h"
#include "coordinator/cli/quantize.h"
#include "coordinator/cli/serve.h"

int main(int argc, char** argv) {
  namespace cli = conclave::cli;
  const std::array commands = {cli::ServeCommand(),
                               cli::ChatCommand(),
                               cli::PlanCommand(),
                               cli::DoctorCommand(),
                               cli::QuantizeCommand(),
                               cli::BenchDecodeCommand(),
                               cli::BenchExchangeCommand(),
                               cli::BenchLoadCommand(),
                               cli::BenchPrefillCommand()};
  return cli::Dispatch("conclave", commands, argc, argv);
}

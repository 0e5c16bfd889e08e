// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace conclave::cli {

// One subcommand. Flags are Abseil flags, all defined in the subcommands' own
// files or in flags.cc; `flags` lists those that this one reads, and any other
// flag on its command line is refused.
struct Command {
  std::string_view name;     // "serve", "bench decode"
  std::string_view summary;  // one line
  std::string_view usage;    // "serve (--config FILE | --model DIR)"
  std::string_view examples;
  std::vector<std::string_view> flags;
  // Positional arguments that are left; returns the exit code.
  int (*run)(const std::vector<std::string>& arguments);
};

// Finds the subcommand in argv, parses its flags, prints help or runs it.
// Exit codes: 0, 1 (the command failed), 2 (wrong usage).
int Dispatch(std::string_view program,
             std::span<const Command> commands,
             int argc,
             char** argv);

}  // namespace conclave::cli

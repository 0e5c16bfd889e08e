// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/command.h"

#include <algorithm>
#include <iomanip>
#include <iostream>
#include <numeric>
#include <optional>

#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/version.h"

namespace conclave::cli {
namespace {

constexpr int kUsageError = 2;
constexpr int kFlagColumn = 26;

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
    }
  }
  return row[b.size()];
}

std::string Nearest(std::string_view word,
                    const std::vector<std::string_view>& names) {
  const auto best =
      std::min_element(names.begin(), names.end(), [word](auto a, auto b) {
        return EditDistance(word, a) < EditDistance(word, b);
      });
  if (best == names.end() || EditDistance(word, *best) > 3) return "";
  return absl::StrCat("; did you mean ", std::string(*best), "?");
}

std::string Dashed(std::string_view name) {
  return absl::StrReplaceAll(std::string(name), {{"_", "-"}});
}

void PrintOverview(std::string_view program,
                   std::span<const Command> commands) {
  std::cout << "Usage: " << program << " COMMAND [--flag=value ...]\n\n"
            << "Serves Qwen3.5 MoE models over several machines.\n\n"
            << "Commands:\n";
  for (const Command& command : commands) {
    std::cout << "  " << std::left << std::setw(16) << command.name
              << command.summary << "\n";
  }
  std::cout << "\n"
            << program << " COMMAND --help shows a command's flags and "
            << "examples; " << program << " --version the version.\n";
}

void PrintHelp(std::string_view program, const Command& command) {
  std::cout << command.summary << "\n\nUsage: " << program << " "
            << command.usage << "\n\nFlags:\n";
  for (const std::string_view name : command.flags) {
    const absl::CommandLineFlag* flag =
        absl::FindCommandLineFlag(std::string(name));
    if (flag == nullptr) continue;
    const std::string value = flag->DefaultValue();
    std::cout << "  " << std::left << std::setw(kFlagColumn)
              << absl::StrCat("--", Dashed(name)) << flag->Help();
    if (!value.empty()) std::cout << " (default " << value << ")";
    std::cout << "\n";
  }
  std::cout << "\nExamples:\n" << command.examples;
}

// "--max-queue=3" -> "max_queue"; nullopt for what is no flag.
std::optional<std::string> FlagName(std::string_view argument) {
  if (!argument.starts_with("--") || argument.size() == 2) {
    return std::nullopt;
  }
  argument.remove_prefix(2);
  argument = argument.substr(0, argument.find('='));
  return absl::StrReplaceAll(std::string(argument), {{"-", "_"}});
}

bool IsFlagOf(const Command& command, std::string_view name) {
  const auto& flags = command.flags;
  if (std::find(flags.begin(), flags.end(), name) != flags.end()) return true;
  return name.starts_with("no") &&
         std::find(flags.begin(), flags.end(), name.substr(2)) != flags.end();
}

// Flags of this command only, with underscores, as Abseil knows them.
int ParseAndRun(std::string_view program,
                const Command& command,
                std::vector<std::string> arguments) {
  for (std::string& argument : arguments) {
    if (argument == "--") break;
    const auto name = FlagName(argument);
    if (!name) continue;
    if (*name == "help") {
      PrintHelp(program, command);
      return 0;
    }
    if (!IsFlagOf(command, *name)) {
      std::cerr << program << " " << command.name << ": unknown flag --"
                << Dashed(*name) << Nearest(*name, command.flags) << "\n";
      return kUsageError;
    }
    const size_t equals = argument.find('=');
    argument = absl::StrCat(
        "--",
        *name,
        equals == std::string::npos ? "" : argument.substr(equals));
  }
  std::vector<char*> argv;
  std::string self(program);
  argv.push_back(self.data());
  for (std::string& argument : arguments) argv.push_back(argument.data());
  const auto rest =
      absl::ParseCommandLine(static_cast<int>(argv.size()), argv.data());
  return command.run({rest.begin() + 1, rest.end()});
}

}  // namespace

int Dispatch(std::string_view program,
             std::span<const Command> commands,
             int argc,
             char** argv) {
  const std::vector<std::string> arguments(argv + std::min(argc, 1),
                                           argv + argc);
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "help" ||
      arguments[0] == "-h") {
    PrintOverview(program, commands);
    return arguments.empty() ? kUsageError : 0;
  }
  if (arguments[0] == "--version") {
    std::cout << program << " " << Version() << "\n";
    return 0;
  }
  const std::string two =
      arguments.size() > 1 ? absl::StrCat(arguments[0], " ", arguments[1]) : "";
  std::vector<std::string_view> names;
  for (const Command& command : commands) {
    names.push_back(command.name);
    for (const size_t words : {size_t{1}, size_t{2}}) {
      if (command.name != (words == 1 ? arguments[0] : two)) continue;
      return ParseAndRun(
          program,
          command,
          {arguments.begin() + static_cast<ptrdiff_t>(words), arguments.end()});
    }
  }
  const auto group = [&](const Command& command) {
    return command.name.starts_with(arguments[0] + " ");
  };
  if (std::any_of(commands.begin(), commands.end(), group)) {
    for (const Command& command : commands) {
      if (group(command)) {
        std::cout << "  " << program << " " << std::left << std::setw(16)
                  << command.name << command.summary << "\n";
      }
    }
    return arguments.size() > 1 && arguments[1] == "--help" ? 0 : kUsageError;
  }
  std::cerr << program << ": unknown command " << arguments[0]
            << Nearest(arguments[0], names) << " (see " << program
            << " --help)\n";
  return kUsageError;
}

}  // namespace conclave::cli

// SPDX-License-Identifier: Apache-2.0
#include "common/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <string>

namespace conclave::log {
namespace {

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = std::make_shared<spdlog::logger>(
        "conclave", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%-7l%$ %v");
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *logger;
}

}  // namespace

void Debug(std::string_view message) { Logger().debug("{}", message); }
void Info(std::string_view message) { Logger().info("{}", message); }
void Warning(std::string_view message) { Logger().warn("{}", message); }
void Error(std::string_view message) { Logger().error("{}", message); }

bool SetLevel(std::string_view level) {
  for (auto value : {spdlog::level::debug,
                     spdlog::level::info,
                     spdlog::level::warn,
                     spdlog::level::err,
                     spdlog::level::off}) {
    const auto name = spdlog::level::to_string_view(value);
    if (level == std::string_view(name.data(), name.size())) {
      Logger().set_level(value);
      return true;
    }
  }
  return false;
}

}  // namespace conclave::log

// SPDX-License-Identifier: Apache-2.0
// Byte 0 chooses thinking and tools, byte 1 the cuts; the rest is the reply.
// Streamed it must give what it gives at once, and where no format applies no
// byte may get lost.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/reply_parser.h"
#include "tests/unit/text/reply_strings.h"

namespace conclave::text {
namespace {

std::vector<Tool> Tools() {
  return {{.name = "get_weather",
           .json = "{}",
           .parameters_json = R"({"properties": {
               "city": {"type": "string"}, "days": {"type": "integer"}}})"},
          {.name = "now", .json = "{}", .parameters_json = "{}"}};
}

void CheckNothingIsLost(const Reply& reply,
                        bool thinking,
                        std::string_view text) {
  if (!reply.calls.empty()) std::abort();
  if (text.find("<think>") != std::string_view::npos ||
      text.find("</think>") != std::string_view::npos) {
    return;
  }
  if (!thinking) {
    if (reply.content != text || !reply.reasoning.empty()) std::abort();
    return;
  }
  // The prompt ends inside of the block: a newline may lead.
  if (text.starts_with('\n')) text.remove_prefix(1);
  if (reply.reasoning != text || !reply.content.empty()) std::abort();
}

void Run(uint8_t mode, uint8_t cuts, const std::string& text) {
  const bool thinking = (mode & 1) != 0;
  const auto tools = (mode & 2) != 0 ? Tools() : std::vector<Tool>();
  const Reply whole = ParseReply({text}, thinking, tools);
  testing::Seeded random(cuts);
  const auto pieces = Cut(text, random, 1 + cuts % 16);
  if (ParseReply(pieces, thinking, tools) != whole) std::abort();
  if (!whole.in_order) std::abort();
  if (tools.empty()) CheckNothingIsLost(whole, thinking, text);
}

}  // namespace
}  // namespace conclave::text

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  conclave::text::Run(
      data[0],
      data[1],
      std::string(reinterpret_cast<const char*>(data) + 2, size - 2));
  return 0;
}

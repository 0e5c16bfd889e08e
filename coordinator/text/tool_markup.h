// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace conclave::text {

// Recognisers of the tool-call markup at the start of a text that may go on.
// Each answer but kMaybe holds whatever comes next; kMaybe is only given while
// a bounded number of further bytes can decide.
enum class Match : uint8_t { kNo, kMaybe, kYes };

// A marker that is known in full.
Match MatchMarker(std::string_view text, std::string_view marker);

struct Found {
  Match match = Match::kNo;
  size_t length = 0;      // of the markup, if kYes
  std::string_view name;  // of the function or parameter, if kYes
  size_t tool = 0;        // index in the names, if a call
};

// "[<tool_call>] <function=NAME>" with a declared name, and then something
// that a call goes on with: prose that mentions the markup is no call.
// is_end: no further text will come.
Found MatchCall(std::string_view text,
                const std::vector<std::string>& names,
                bool is_end);

// "<parameter=KEY>".
Found MatchParameter(std::string_view text);

}  // namespace conclave::text

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/schedule/request.h"

namespace conclave::text {

// Where a tool call begins at the front of `text`, if it does.
struct CallStart {
  enum Kind { kNo, kYes, kMore } kind = kNo;  // kMore: not enough text yet
  size_t length = 0;                          // of the opening, if kYes
  const Tool* tool = nullptr;
};

// `text` begins with "<tool_call>" or "<function=". Only declared tools count;
// at most kOpeningBytesMax are looked at. `final`: no more text will come.
CallStart FindCallStart(std::string_view text,
                        const std::vector<Tool>& tools,
                        bool final);

// The body of one call, from behind "<function=NAME>" on.
struct CallBody {
  bool complete = false;  // else more text is needed
  size_t length = 0;      // bytes taken, closers included
  std::string arguments;  // a JSON object
};

// Tolerates missing </parameter>, </function> and </tool_call>. `final`: takes
// what there is.
CallBody ParseCallBody(std::string_view text, const Tool& tool, bool final);

}  // namespace conclave::text

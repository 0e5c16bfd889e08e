// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace conclave::http {

// Server-sent events as OpenAI uses them; pure text functions.

// "data: {...}\n\n"; json is one line.
std::string SseData(std::string_view json);

// The last event of a reply that ended well.
std::string SseDone();

// Reads events from a stream that comes in arbitrary pieces.
class SseReader {
 public:
  // The data of every event that is complete now, in order.
  std::vector<std::string> Push(std::string_view bytes);
  // Bytes that no event has used yet.
  size_t held_bytes() const { return held_.size() + data_.size(); }

 private:
  std::string held_;  // an incomplete line
  std::string data_;  // of the event that is being read
  bool has_data_ = false;
};

}  // namespace conclave::http

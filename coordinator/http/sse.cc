// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/sse.h"

#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "coordinator/http/views.h"

namespace conclave::http {

std::string SseData(std::string_view json) {
  return absl::StrCat("data: ", Abs(json), "\n\n");
}

std::string SseDone() { return "data: [DONE]\n\n"; }

std::vector<std::string> SseReader::Push(std::string_view bytes) {
  std::vector<std::string> events;
  held_.append(bytes);
  size_t begin = 0;
  for (size_t end; (end = held_.find('\n', begin)) != std::string::npos;
       begin = end + 1) {
    absl::string_view line(held_.data() + begin, end - begin);
    absl::ConsumeSuffix(&line, "\r");
    if (line.empty()) {
      if (has_data_) events.push_back(std::move(data_));
      data_.clear();
      has_data_ = false;
    } else if (absl::ConsumePrefix(&line, "data:")) {
      absl::ConsumePrefix(&line, " ");
      if (has_data_) data_.push_back('\n');
      data_.append(line.data(), line.size());
      has_data_ = true;
    }
  }
  held_.erase(0, begin);
  return events;
}

}  // namespace conclave::http

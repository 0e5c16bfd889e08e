// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/check.h"
#include "coordinator/http/openai.h"
#include "coordinator/http/openai_reply.h"
#include "coordinator/http/status_map.h"
#include "coordinator/http/utf8.h"

// Any bytes as a request body: a request, or an error of the client's that
// makes a valid response.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1,
                              size - 1);
  http::ParseOptions options;
  options.model = "tiny";
  auto parsed = data[0] % 2 == 0 ? http::ParseChatRequest(body, options)
                                 : http::ParseCompletionRequest(body, options);
  if (parsed.ok()) {
    CONCLAVE_CHECK(!parsed->requests.empty());
    CONCLAVE_CHECK_LE(parsed->requests.size(),
                      static_cast<size_t>(http::kPromptsMax));
    return 0;
  }
  const int status = http::HttpStatusOf(parsed.status().code());
  CONCLAVE_CHECK(status == 400 || status == 404);
  const std::string error = http::ErrorJson(parsed.status(), status);
  CONCLAVE_CHECK(http::FirstInvalidUtf8(error) == std::string::npos);
  return 0;
}

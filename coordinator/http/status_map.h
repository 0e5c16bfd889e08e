// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace conclave::http {

// The one table between status codes and HTTP. Codes that have no row are 500.
int HttpStatusOf(absl::StatusCode code);

// The way back, for our own client.
absl::StatusCode CodeOfHttpStatus(int http_status);

// OpenAI's "type" of an error object.
std::string_view ErrorTypeOf(int http_status);

// "Not Found" and so on; "Unknown" for codes that we never send.
std::string_view ReasonOf(int http_status);

// A message "max_tokens: must be ..." is about the field before the colon;
// empty when the message names none.
std::string_view FieldOf(std::string_view message);

}  // namespace conclave::http

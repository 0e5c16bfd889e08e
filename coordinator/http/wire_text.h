// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "coordinator/http/message.h"

namespace conclave::http {

// HTTP/1.1 as bytes; pure text functions.

// A whole response with Content-Length.
std::string ResponseBytes(const Response& response, bool keep_alive);

// The head of a stream: chunked, or (HTTP/1.0) until the connection ends.
std::string StreamHead(std::string_view content_type,
                       bool chunked,
                       bool keep_alive);
std::string ChunkBytes(std::string_view data);
std::string_view LastChunk();

}  // namespace conclave::http
